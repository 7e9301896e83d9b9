"""What a rule asks for. In: a node; out: the columns of its operands that its rule reads for the columns that a program owns of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from .columns import Columns, counter
from .rule import Lowering
from .rules import lower
from .step import Step


@dataclass
class Asked:
    """What a rule has asked for.

    Attributes:
        operands: the vectors that the step computes, with the columns.
        loops: whether it takes a loop.
    """

    operands: list[tuple[Node, Columns]] = field(default_factory=list)
    loops: bool = False


def asked(node: Node, step: Step) -> Asked:
    """What the rule of a node asks for."""
    width = step.width(node)
    probe = _Probe(step)
    lower(Lowering(node, None if width is None else Columns(width), probe))
    return probe.found


class _Probe:
    """A `Writer` that writes nothing."""

    def __init__(self, step: Step) -> None:
        self.step, self.found = step, Asked()
        self.dims, self.width, self.place, self.is_rows, self.rows = step.dims, step.width, step.place, step.is_rows, step.rows
        self.is_row_ids, self.extent, self.is_known = step.is_row_ids, step.extent, step.is_known
        self.number, self.real = step.number, step.real

    def demand(self, node: Node, columns: Columns | None) -> str:
        if columns is not None:
            self.found.operands.append((node, columns))
        return "x"

    def load(self, node: Node, index: Sequence[Any], width: int, by_row: bool = False) -> str:
        return "x"

    def accumulate(self, size: int, dtype: str, first: str, columns: Columns | None, update: Callable[[Any, str], str]) -> str:
        self.found.loops = True
        update(counter(0, size), "x")
        return "x"

    def fault(self, condition: str, columns: Columns | None) -> None:
        pass

    def size(self, node: Node, dim: int) -> str:
        return "1"
