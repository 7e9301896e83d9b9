"""What repr shows of a cell. In: the cell and the defaults of its options; out: its sizes and the options that differ from them."""

from __future__ import annotations

from typing import Any

from .activations import ACTIVATIONS


def described(cell: Any, **defaults: Any) -> str:
    names = {function: repr(name) for name, function in ACTIVATIONS.items()}
    told = [str(cell.input_size), str(cell.hidden_size)]
    for option, default in defaults.items():
        if (value := getattr(cell, option)) != default:
            told.append(f"{option}={names[value] if option == 'activation' and value in names else repr(value)}")
    return ", ".join(told)
