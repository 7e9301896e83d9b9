"""What a rule has to work with. In: a node and the columns of it that are wanted; out: a Triton expression for them.

A value is a tile ``[columns, rows]``: of a vector the columns that this program owns of its width, of a number a row ``[1, rows]``, of one
number a scalar. Most rules ask for the same columns of their operands; a slice asks for others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.fx import Node

from ...optimise.graph import location, operator_name, value
from . import types


@dataclass(frozen=True)
class Columns:
    """The columns that a program owns of vectors of ``width``, counted from ``shift`` on; with a width of 0 the one column ``shift``."""

    width: int
    shift: int = 0

    @property
    def index(self) -> str:
        if not self.width:
            return str(self.shift)
        return f"c{self.width}" if not self.shift else f"(c{self.width} + {self.shift})"

    @property
    def mask(self) -> str | None:
        """Which of them there are; None: all."""
        return f"in{self.width}" if self.width else None

    def moved(self, by: int) -> Columns:
        return Columns(self.width, self.shift + by)


class Writer(Protocol):
    """Who writes the step: it names what is asked for."""

    def demand(self, node: Node, columns: Columns | None) -> str:
        """The name of a node's value at columns."""

    def external(self, node: Node, columns: Columns | None, at: tuple[int, str] | None = None, row: str | None = None) -> str:
        """What is known before the loop, at columns and this program's rows; ``at``: a dimension and its index; ``row``: of dimension 0."""

    def fault(self, condition: str) -> None:
        """A row for which this holds, and which is not finished, is an error of the program."""

    def size(self, node: Node, dim: int) -> str:
        """The size of a dimension of a tensor that is known before the loop, as an expression."""

    def width(self, node: Any) -> int | None:
        """How many columns a node has; None for a number."""


class Lowering:
    """One node being lowered."""

    def __init__(self, node: Node, columns: Columns | None, writer: Writer) -> None:
        self.node: Any = node
        self.columns, self.writer = columns, writer

    @property
    def dtype(self) -> torch.dtype:
        return value(self.node).dtype  # type: ignore[no-any-return]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        args = self.node.args
        return args[place] if len(args) > place else self.node.kwargs.get(name, default)

    def operand(self, node: Node) -> str:
        """A tensor at the columns of the result; broadcast where it is a number."""
        return self.writer.demand(node, None if self.writer.width(node) is None else self.columns)

    def read(self, argument: Any, dtype: torch.dtype) -> str:
        """An operand, a Python number or a size, promoted to a dtype."""
        if isinstance(argument, Node):
            made = value(argument)
            if isinstance(made, torch.Tensor):
                return types.promoted(self.operand(argument), made.dtype, dtype)
            if isinstance(made, torch.SymInt):
                return self.writer.demand(argument, None)
            argument = made
        if isinstance(argument, torch.SymInt):
            raise Unlowered(self.node, "a size that is not known when the kernel is made")
        return types.literal(argument, dtype)


Rule = Callable[[Lowering], str]
RULES: dict[Any, Rule] = {}
MOVES: set[Any] = set()  # rules that ask for other columns than their result's


def rule(*targets: Any, moves: bool = False) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        if moves:
            MOVES.update(targets)
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
