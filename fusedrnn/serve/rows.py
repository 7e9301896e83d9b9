"""What a slot's row begins with. In: the tensors of a loop over slots, and values of requests; out: the tensors with the values written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Value = Any  # a tensor, a numpy array, or a number where a row holds one
_KINDS = {bool: "a bool", int: "an int", float: "a float"}


@dataclass(frozen=True)
class Row:
    """A tensor that loop_fn closes over and that holds something of each slot.

    Attributes:
        tensor: with the slots along ``dim``. The engine writes into it.
        dim: 0 for ``[slots, ...]``; 1 for ``[T, slots, ...]``, which loop_fn reads as ``tensor[time]``.
    """

    tensor: torch.Tensor
    dim: int = 0


class Rows:
    """The tensors of a loop that hold something of each slot.

    Args:
        rows: by name.
        slots: how many there are.
        closed_over: the tensors that loop_fn closes over.

    Raises:
        ValueError: one has not the slots in its dimension, or is not closed over.
    """

    def __init__(self, rows: Mapping[str, Row], slots: int, closed_over: Sequence[torch.Tensor]) -> None:
        for name, row in rows.items():
            if row.tensor.ndim <= row.dim or row.tensor.shape[row.dim] != slots:
                raise ValueError(f"{name} must have the {slots} slots in dimension {row.dim}, got shape {list(row.tensor.shape)}")
            if not any(tensor is row.tensor for tensor in closed_over):
                raise ValueError(f"{name} is not among the tensors that loop_fn closes over")
        self._rows = dict(rows)
        self._rooms = {name: row.tensor.select(row.dim, 0).shape for name, row in rows.items()}
        self._numbers = {name: _types(row.tensor.dtype) for name, row in rows.items() if row.tensor.ndim == 1}

    def checked(self, values: Mapping[str, Value]) -> None:
        """Whether a request's values fit.

        Raises:
            ValueError: a name is missing or unknown, or a value has another dtype or shape, or is a number that the dtype does not hold.
        """
        if values.keys() != self._rows.keys():
            raise ValueError(f"a request must give {', '.join(sorted(self._rows))}; got {', '.join(sorted(values)) or 'nothing'}")
        for name, value in values.items():
            if type(value) in _KINDS and name in self._numbers:
                self._check_number(name, value)
            else:
                self._check_tensor(name, torch.as_tensor(value))

    def _check_number(self, name: str, value: Any) -> None:
        dtype = self._rows[name].tensor.dtype
        if type(value) not in self._numbers[name]:
            raise ValueError(f"{name} must be {dtype}, got {_KINDS[type(value)]}")
        if type(value) is int and not dtype.is_floating_point:
            room = torch.iinfo(dtype)
            if not room.min <= value <= room.max:
                raise ValueError(f"{name} must be {dtype}, which does not hold {value}")

    def _check_tensor(self, name: str, value: torch.Tensor) -> None:
        dtype, dim, room = self._rows[name].tensor.dtype, self._rows[name].dim, self._rooms[name]
        if value.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {value.dtype}")
        shape = value.shape
        if shape != room and not (dim == 1 and len(shape) == len(room) and shape[1:] == room[1:] and shape[0] <= room[0]):
            raise ValueError(f"{name} must have shape {list(room)}{' or fewer in the first dimension' * dim}, got {list(shape)}")

    def write(self, slots: Sequence[int], given: Sequence[Mapping[str, Value]]) -> None:
        """Put values that were checked where these slots have theirs; shorter ones along time are filled up with zeros."""
        index = torch.tensor(slots)
        for name, row in self._rows.items():
            column = [values[name] for values in given]
            to = row.tensor
            here = index if to.device.type == "cpu" else index.to(to.device)
            if row.dim == 1:
                to.index_fill_(1, here, 0)
                padded = nn.utils.rnn.pad_sequence([torch.as_tensor(value) for value in column])
                to[: len(padded)].index_copy_(1, here, padded.to(to.device))
            elif name in self._numbers and all(type(value) in _KINDS for value in column):
                to.index_copy_(0, here, torch.tensor(column, dtype=to.dtype, device=to.device))
            else:
                to.index_copy_(0, here, torch.stack([torch.as_tensor(value) for value in column]).to(to.device))

    def clear(self, slots: Sequence[int]) -> None:
        """Zeros where these slots have theirs."""
        index = torch.tensor(slots)
        for row in self._rows.values():
            row.tensor.index_fill_(row.dim, index.to(row.tensor.device), 0)


def _types(dtype: torch.dtype) -> tuple[type, ...]:
    """Of numbers that a dtype stands for."""
    if dtype == torch.bool:
        return (bool,)
    return (int, float) if dtype.is_floating_point else (int,)
