"""Values that are made of all rows. In: a step that reduces over the batch; out: the same with a reduction of each row and one over rows.

The rows of a group stand side by side in a program's tiles. A program that has a column has it of all rows of its group, so that nothing
waits; but all rows have to be in one group (`schedule.needs_one_group`).
"""

from __future__ import annotations

from typing import Any

import torch

from ...optimise.graph import aten, call, replace, value
from ..pipeline import Optimised
from . import types
from .reductions import reduction_of
from .rule import Lowering, Unlowered, rule


def fold(x: torch.Tensor, dim: int, kind: str) -> torch.Tensor:
    """All rows of x, which stand along ``dim``, as one: "sum", "mean", "max", "min", "any" or "all"."""
    reduce: Any = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin, "any": torch.any, "all": torch.all}[kind]
    made: torch.Tensor = reduce(x, dim, keepdim=True)
    return made


def take_folds_apart(made: Optimised) -> None:
    """Let `fold` be all that reduces over the batch."""
    locality, graph = made.locality, made.module.graph
    for node in list(graph.nodes) if locality is not None else ():
        assert locality is not None
        if node not in locality.over_rows:
            continue
        source: Any = node.args[0]
        reduction, rows = reduction_of(node), locality.of(source)
        assert reduction is not None
        assert rows is not None
        others = [dim for dim in reduction.dims if dim != rows.dim]
        with graph.inserting_before(node):
            of_rows = source
            if reduction.adds and value(source).dtype != value(node).dtype:  # torch converts what it adds
                of_rows = call(graph, aten._to_copy.default, source, dtype=value(node).dtype, like=node)
                locality.rows[of_rows] = rows
            if others:
                of_rows = call(graph, _ROW_BY_ROW[reduction.kind], of_rows, others, True, like=node)
                locality.rows[of_rows] = rows
            if value(of_rows).dtype != value(node).dtype:  # any and all of numbers
                of_rows = call(graph, aten._to_copy.default, of_rows, dtype=value(node).dtype, like=node)
                locality.rows[of_rows] = rows
            new = call(graph, fold, of_rows, rows.dim, reduction.kind, like=node)
            locality.rows[new] = None
            if value(new).ndim != value(node).ndim:
                new = call(graph, aten.squeeze.dims, new, list(reduction.dims), like=node)
                locality.rows[new] = None
        replace(node, new)


_ROW_BY_ROW = {
    "sum": aten.sum.dim_IntList, "mean": aten.mean.dim, "max": aten.amax.default, "min": aten.amin.default, "any": aten.any.dims,
    "all": aten.all.dims,
}  # fmt: skip


@rule(fold)
def _fold(self: Lowering) -> str:
    source, dim, kind = self.node.args
    index, dtype = self.index, value(source).dtype
    x = self.at(source, [*index[:dim], *index[dim + 1 :]])
    if kind in ("sum", "mean"):
        made = _over(self, "sum", x, types.literal(0, dtype))
        made = f"({made} / B)" if kind == "mean" else made
    elif kind in ("any", "all"):
        sign = "!=" if kind == "any" else "=="
        made = _over(self, "max", f"({types.cast(x, dtype, torch.bool)} {sign} 0).to(tl.int32)", "0")
        made = f"({made} {sign} 0)"
    elif dtype.is_floating_point:
        sign = "-" if kind == "min" else ""
        made = f"({sign}unordered({_over(self, 'max', f'order({sign}{x})', 'LOWEST32')}))"
    elif dtype == torch.bool:
        raise Unlowered(self.node, "the greatest of bools over the batch")
    else:
        wide = types.cast(x, dtype, torch.int64)
        made = _over(self, "max", f"(~{wide})" if kind == "min" else wide, "LOWEST")
        made = types.cast(f"(~{made})" if kind == "min" else made, torch.int64, dtype)
    return made if self.columns is None else f"tl.where(live, {made}, {made})"  # the same for every row


def _over(self: Lowering, how: str, x: str, neutral: str) -> str:
    """A tile's rows together: a column, of a number the number."""
    made = f"tl.{how}(tl.where(live, {x}, {neutral}), 1)"
    return f"tl.{how}({made}, 0)" if self.columns is None else f"{made}[:, None]"
