"""What a rule has to work with. In: a node and the columns of it that are wanted; out: a Triton expression for them.

A value is a tile ``[columns, rows]``: of a vector the columns that this program owns of its width, of a number a row ``[1, rows]``, of one
number a scalar. Most rules ask for the same columns of their operands; a view, a broadcast or a reduction asks for others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import sympy
import torch
from torch.fx import Node

from ...optimise.graph import location, operator_name, value
from . import types
from .columns import C, Columns, joined, taken_apart, text


class Writer(Protocol):
    """Who writes the step: it names what is asked for."""

    def demand(self, node: Node, columns: Columns | None) -> str:
        """The name of a node's value at columns."""

    def load(self, node: Node, index: Sequence[Any], width: int, by_row: bool = False) -> str:
        """What is known before the loop, for this program's rows.

        Args:
            index: of one row: an expression of columns, or a text, for each dimension but the batch.
            width: of the columns.
            by_row: a text differs from row to row.
        """

    def is_known(self, node: Node) -> bool:
        """Whether `load` has it."""

    def accumulate(self, size: int, dtype: str, first: str, columns: Columns | None, update: Callable[[Any, str], str]) -> str:
        """The name of what so many rounds make of ``first``, a zero, the lowest key or a tile; ``update`` has the round and the name."""

    def fault(self, condition: str, columns: Columns | None) -> None:
        """A row for which this holds, and which is not finished, is an error of the program."""

    def size(self, node: Node, dim: int) -> str:
        """The size of a dimension of a tensor that is known before the loop, as an expression."""

    def dims(self, node: Any) -> tuple[int, ...]:
        """The sizes of one row."""

    def width(self, node: Any) -> int | None:
        """How many columns a node has; None for a number."""

    def place(self, node: Any, dim: int) -> int:
        """A dimension of torch's tensor as one of a row."""

    def is_rows(self, node: Any, dim: int) -> bool:
        """Whether a dimension of torch's tensor is the batch."""

    def rows(self, node: Any) -> Any:
        """Where the batch is; None for what belongs to no row."""

    def is_row_ids(self, node: Any) -> bool:
        """Whether element b along the batch is b itself."""

    def extent(self, node: Any, dim: int) -> int:
        """The size of a dimension of torch's tensor."""

    def number(self, node: Any, size: Any) -> int:
        """A size that the kernel is made for."""

    def real(self, node: Any, made: Any) -> float:
        """A number made of sizes that the kernel is made for."""


class Lowering:
    """One node being lowered."""

    def __init__(self, node: Node, columns: Columns | None, writer: Writer) -> None:
        self.node: Any = node
        self.columns, self.writer = columns, writer

    @property
    def dtype(self) -> torch.dtype:
        return value(self.node).dtype  # type: ignore[no-any-return]

    @property
    def dims(self) -> tuple[int, ...]:
        return self.writer.dims(self.node)

    @property
    def tile(self) -> int:
        """The width of the tile."""
        return self.columns.width if self.columns is not None else 0

    @property
    def index(self) -> list[Any]:
        """Of the columns, in the dimensions of a row."""
        if self.columns is None:
            return [sympy.Integer(0)] * len(self.dims)
        return taken_apart(self.columns.at, self.dims, self.tile)

    def text(self, at: Any) -> str:
        return text(at, self.tile)

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        args = self.node.args
        return args[place] if len(args) > place else self.node.kwargs.get(name, default)

    def number(self, place: int, name: str) -> int | None:
        """An argument that is a number or a size that the kernel is made for."""
        given = value(self.argument(place, name))
        return None if given is None else self.writer.number(self.node, given)

    def at(self, node: Node, index: Sequence[Any]) -> str:
        """An operand at an index of one of its rows."""
        if self.writer.width(node) is None:
            return self.writer.demand(node, None)
        return self.flat(node, joined(index, self.writer.dims(node)))

    def flat(self, node: Node, at: Any) -> str:
        """An operand at a column."""
        return self.writer.demand(node, Columns(self.tile if C in at.free_symbols else 0, at))

    def aligned(self, node: Node) -> list[Any]:
        """The index of a broadcast operand."""
        mine, theirs, sizes, index = self.writer.rows(self.node), self.writer.rows(node), self.writer.dims(node), self.index
        if mine is not None and mine.inner == 1 and theirs is None:  # it may have a dimension of size 1 in the place of the batch
            index = [*index[: mine.dim], sympy.Integer(0), *index[mine.dim :]]
        index = index[len(index) - len(sizes) :] if sizes else []
        return [sympy.Integer(0) if size == 1 else place for place, size in zip(index, sizes, strict=True)]

    def operand(self, node: Node) -> str:
        """A tensor at the columns of the result, broadcast."""
        width = self.writer.width(node)
        if width is None:
            return self.writer.demand(node, None)
        if width == self.writer.width(self.node):
            return self.writer.demand(node, self.columns)
        return self.at(node, self.aligned(node))

    def read(self, argument: Any, dtype: torch.dtype) -> str:
        """An operand, a Python number or a size, promoted to a dtype."""
        if isinstance(argument, Node):
            made = value(argument)
            if isinstance(made, torch.Tensor):
                return types.promoted(self.operand(argument), made.dtype, dtype)
            if isinstance(made, torch.SymInt):
                return self.writer.demand(argument, None)
            argument = self.writer.real(self.node, made) if isinstance(made, torch.SymFloat) else made
        if isinstance(argument, torch.SymInt):
            raise Unlowered(self.node, "a size that is not known when the kernel is made")
        return types.literal(argument, dtype)


def of_torch(self: Lowering) -> list[Any]:
    """The index of the result in torch's dimensions; None for the batch."""
    rows, index = self.writer.rows(self.node), self.index
    return [*index[: rows.dim], None, *index[rows.dim :]] if rows is not None and rows.inner == 1 else index


Rule = Callable[[Lowering], str]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return register


class Unlowered(Exception):
    """The persistent kernel cannot hold a node.

    Attributes:
        reason: which operator and why.
        location: ``file:line`` of the user's code.
    """

    def __init__(self, node: Node | None, what: str) -> None:
        name = f"{operator_name(node)}: " if node is not None and node.op == "call_function" else ""
        super().__init__(f"{name}{what}")
        self.reason = str(self)
        self.location = None if node is None else location(node)
