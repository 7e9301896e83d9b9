"""Views, and what puts tensors together: the same elements at other columns. One rule an operator."""

from __future__ import annotations

from typing import Any

import sympy

from ...optimise.graph import aten, value
from ...optimise.shapes import argument, static
from . import types
from .columns import divided, is_within
from .rule import Lowering, rule

# Of the same elements under other indices, at no cost where they are known before the loop.
REINDEXED = {
    aten.expand.default, aten.permute.default, aten.t.default, aten.numpy_T.default, aten.transpose.int, aten.slice.Tensor, aten.select.int,
    aten.flip.default,
}  # fmt: skip
AT_PLACES = {
    aten.slice.Tensor, aten.select.int, aten.slice_scatter.default, aten.select_scatter.default, aten.constant_pad_nd.default,
}  # fmt: skip


def is_at_a_size(node: Any) -> bool:
    """Whether a view begins where a size says that may differ from call to call, or counts from the end of a dimension of such a size."""
    if node.target not in (aten.select.int, aten.slice.Tensor):
        return False
    at = value(argument(node, 2, "start"))
    if at is None:
        return False
    start = static(at)
    return start is None or (start < 0 and static(value(node.args[0]).shape[argument(node, 1, "dim", 0)]) is None)


@rule(aten.expand.default)
def _expand(self: Lowering) -> str:
    return self.operand(self.node.args[0])


def order_of(node: Any, rows: Any) -> list[int]:
    """Which dimension of a row of its operand each dimension of a row of a permutation is."""
    source = node.args[0]
    rank = value(source).ndim
    order = list(reversed(range(rank)))
    if node.target is aten.transpose.int:
        order = list(range(rank))
        a, b = (dim % rank for dim in node.args[1:3])
        order[a], order[b] = order[b], order[a]
    elif node.target is aten.permute.default:
        order = [dim % rank for dim in node.args[1]]
    if rows is not None and rows.inner == 1:
        order = [dim - (dim > rows.dim) for dim in order if dim != rows.dim]
    return order


@rule(aten.permute.default, aten.t.default, aten.numpy_T.default, aten.transpose.int)
def _permute(self: Lowering) -> str:
    source = self.node.args[0]
    order = order_of(self.node, self.writer.rows(source))
    return self.at(source, [place for _, place in sorted(zip(order, self.index, strict=True), key=lambda pair: pair[0])])


@rule(aten.slice.Tensor)
def _slice(self: Lowering) -> str:
    source = self.node.args[0]
    dim, step = self.argument(1, "dim", 0), self.argument(4, "step", 1)
    if self.writer.is_rows(source, dim):
        return self.writer.demand(source, self.columns)  # all of the batch
    start, size = self.number(2, "start") or 0, static(value(source).shape[dim])
    index, place = self.index, self.writer.place(source, dim)
    if start < 0:
        if size is None:
            size = self.writer.dims(source)[place]
        start = max(start + size, 0)
    index[place] = index[place] * step + (start if size is None else min(start, size))
    return self.at(source, index)


@rule(aten.select.int)
def _select(self: Lowering) -> str:
    source, dim = self.node.args[:2]
    at, place, index = self.number(2, "index"), self.writer.place(source, dim), self.index
    assert at is not None
    if at < 0:
        at += self.writer.extent(source, dim)
    return self.at(source, [*index[:place], sympy.Integer(at), *index[place:]])


@rule(aten.flip.default)
def _flip(self: Lowering) -> str:
    source, dims = self.node.args
    index = self.index
    for place in {self.writer.place(source, dim) for dim in dims}:
        index[place] = self.dims[place] - 1 - index[place]
    return self.at(source, index)


@rule(aten.cat.default)
def _cat(self: Lowering) -> str:
    parts = [part for part in self.node.args[0] if value(part).ndim == value(self.node).ndim]  # torch lets an empty vector join anything
    place = self.writer.place(self.node, self.argument(1, "dim", 0))
    index, text, end = self.index, "", self.dims[place]
    for part in reversed(parts):
        begin = end - self.writer.dims(part)[place]
        inside = [*index[:place], index[place] - begin, *index[place + 1 :]]
        made = types.cast(self.at(part, inside), value(part).dtype, self.dtype)
        text = made if not text else f"tl.where({self.text(index[place])} < {end}, {made}, {text})"
        end = begin
    return text


@rule(aten.constant_pad_nd.default)
def _pad(self: Lowering) -> str:
    source, pads = self.node.args[:2]
    index, rank, inside = self.index, value(source).ndim, []
    for k in range(len(pads) // 2):
        place = self.writer.place(source, rank - 1 - k)
        index[place] = index[place] - pads[2 * k]
        if not is_within(index[place], self.writer.dims(source)[place], self.tile):
            inside.append(f"({self.text(index[place])} >= 0) & ({self.text(index[place])} < {self.writer.dims(source)[place]})")
    made = self.at(source, index)
    return f"tl.where({' & '.join(inside)}, {made}, {types.literal(self.argument(2, 'value', 0), self.dtype)})" if inside else made


@rule(aten.slice_scatter.default, aten.select_scatter.default)
def _window(self: Lowering) -> str:
    source, new = self.node.args[:2]
    dim = self.argument(2, "dim", 0)
    if self.writer.is_rows(source, dim):
        return self.operand(new)
    index, place = self.index, self.writer.place(source, dim)
    size = self.dims[place]
    there = self.text(index[place])
    if self.node.target is aten.select_scatter.default:
        at = self.number(3, "index")
        assert at is not None
        made = self.at(new, [*index[:place], *index[place + 1 :]])
        return f"tl.where({there} == {at % size}, {made}, {self.operand(source)})"
    start, end, step = self.number(3, "start") or 0, self.number(4, "end"), self.argument(5, "step", 1)
    start, end = (max(min(bound + size if bound < 0 else bound, size), 0) for bound in (start, size if end is None else end))
    made = self.at(new, [*index[:place], divided(index[place] - start, step, self.tile)[0], *index[place + 1 :]])
    inside = f"({there} >= {start}) & ({there} < {end})" + (f" & (({there} - {start}) % {step} == 0)" if step != 1 else "")
    return f"tl.where({inside}, {made}, {self.operand(source)})"
