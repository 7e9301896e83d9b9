"""The cases, a file each. In: a name; out: the work, its peers and its shapes, as `bench.case.Case` declares them."""

from __future__ import annotations

import importlib

from ..case import Case

NAMES = ("g2p", "sequence", "ragged", "layer_norm", "custom", "decode", "training", "growth")


def case(name: str) -> Case:
    """The case of a file."""
    found: Case = importlib.import_module(f".{name}", __package__).CASE
    return found
