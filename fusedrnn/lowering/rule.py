"""What a rule has to work with. In: a node to be lowered; out: its operands, sizes and place in the C++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch.fx import Node
from torch.utils._sympy.printers import CppPrinter

from ..capture.sizes import expression
from ..optimise.graph import aten, operator_name, value
from ..optimise.locality import Rows, shape
from .block import Block
from .pointwise import cast, computed_in, literal
from .values import Index, Value


class _Printer(CppPrinter):
    """As torch's, without the libraries that it calls."""

    def doprint(self, expr: Any) -> str:
        return str(super().doprint(expr)).replace("std::", "__builtin_")

    def _ours(self, name: str, expr: sympy.Expr) -> str:
        kind, first, *others = "int64_t" if expr.is_integer else "double", *map(self.doprint, expr.args)
        for other in others:
            first = f"frnn::{name}(({kind})({first}), ({kind})({other}))"
        return first

    def _print_FloorDiv(self, expr: sympy.Expr) -> str:  # noqa: N802
        return self._ours("floor_divide", expr)

    def _print_PythonMod(self, expr: sympy.Expr) -> str:  # noqa: N802
        return self._ours("remainder", expr)

    def _print_Min(self, expr: sympy.Expr) -> str:  # noqa: N802
        return self._ours("minimum", expr)

    def _print_OpaqueUnaryFn_log(self, expr: sympy.Expr) -> str:  # noqa: N802
        return f"__builtin_log({self.doprint(expr.args[0])})"

    def _print_Max(self, expr: sympy.Expr) -> str:  # noqa: N802
        return self._ours("maximum", expr)


_printer = _Printer()


def size_text(size: Any) -> str:
    """A size, or a number made of sizes, as a C expression."""
    expr = sympy.sympify(size if isinstance(size, sympy.Expr) else expression(size))
    return str(int(expr)) if expr.is_Integer else f"({_printer.doprint(expr)})"


class Lowering:
    """One node being lowered.

    Attributes:
        node: the node.
        block: where statements go: within a row's loop, or before it for what belongs to no row.
        operand: gives the `Value` of an operand.
        rows: the `Rows` of a node, None for one of no row.
        row: the C name of the row's number in the batch.
    """

    def __init__(self, node: Node, block: Block, operand: Callable[[Node], Value], rows: Callable[[Any], Rows | None], row: str) -> None:
        self.node: Any = node  # fx types arguments as a union that no rule can use
        self.block, self.operand, self.rows, self.row = block, operand, rows, row

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        args = self.node.args
        return args[place] if len(args) > place else self.node.kwargs.get(name, default)

    def dims_of(self, node: Any) -> tuple[str, ...]:
        """The sizes of one row of what a node makes."""
        return tuple(map(size_text, row_shape(node, self.rows(node))))

    @property
    def dims(self) -> tuple[str, ...]:
        return self.dims_of(self.node)

    @property
    def dtype(self) -> torch.dtype:
        return value(self.node).dtype  # type: ignore[no-any-return]

    def place(self, dim: int, node: Any = None) -> int:
        """A dimension of torch's tensor as a dimension of one row of it."""
        node = self.node if node is None else node
        rank = len(shape(node))
        dim = dim % rank if rank else 0
        rows = self.rows(node)
        return dim - (rows is not None and rows.inner == 1 and dim > rows.dim)

    def kept(self, node: Any) -> Value:
        return self.block.keep(self.operand(node))

    def scalar(self, argument: Any, dtype: torch.dtype) -> str:
        """A Python number, a size or a 0-d tensor as an expression."""
        if isinstance(argument, Node):
            made = value(argument)
            if isinstance(made, torch.Tensor):
                return cast(self.operand(argument).load(()), made.dtype, dtype)
            return f"({computed_in(dtype)})({size_text(made)})"
        if isinstance(argument, torch.SymInt):
            return f"({computed_in(dtype)})({size_text(argument)})"
        return literal(argument, dtype)

    def aligned(self, node: Node, index: Index) -> list[str]:
        """The index of a broadcast operand for an index of the result."""
        dims = self.dims_of(node)
        mine, theirs = self.rows(self.node), self.rows(node)
        index = list(index)
        if mine is not None and mine.inner == 1 and theirs is None:
            # The result's row has no batch dimension; the operand may have one of size 1 in its place.
            full = [*index[: mine.dim], "0", *index[mine.dim :]]
            index = full[len(full) - len(dims) :] if dims else []
        else:
            index = index[len(index) - len(dims) :] if dims else []
        return ["0" if size == "1" else position for position, size in zip(index, dims, strict=True)]

    def read(self, argument: Any, index: Index, dtype: torch.dtype) -> str:
        """An element of a broadcast operand, or a number, as another dtype."""
        if isinstance(argument, Node) and isinstance(value(argument), torch.Tensor):
            return cast(self.operand(argument).load(self.aligned(argument, index)), value(argument).dtype, dtype)
        return self.scalar(argument, dtype)


def row_shape(node: Any, rows: Rows | None) -> list[Any]:
    """The sizes of one row: the batch dimension goes, or leaves what was flattened into it."""
    sizes: list[Any] = list(shape(node))
    if rows is None:
        return sizes
    if rows.inner == 1:
        return sizes[: rows.dim] + sizes[rows.dim + 1 :]
    return sizes[: rows.dim] + [rows.inner] + sizes[rows.dim + 1 :]


# Readers that ask for each element of their operands once, though their result has another size.
ONE_PASS = {
    aten.sum.default, aten.sum.dim_IntList, aten.prod.default, aten.prod.dim_int, aten.mean.default, aten.mean.dim,
    aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims, aten.cumsum.default, aten.cat.default,
    aten.slice.Tensor, aten.select.int,
}  # fmt: skip
Rule = Callable[[Lowering], Value]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return register


class Pair(tuple[Value, ...]):
    """The values of an operator with several results."""


class Unlowered(Exception):
    """There is no rule for a node.

    Attributes:
        reason: which operator.
        location: ``file:line`` of the user's code.
    """

    def __init__(self, node: Node, what: str = "") -> None:
        super().__init__(f"the native executor has no {operator_name(node)}{' for ' + what if what else ''}")
        self.reason = str(self)
        self.location = node.meta.get("stack_trace")
