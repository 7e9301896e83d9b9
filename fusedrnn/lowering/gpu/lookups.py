"""Look-ups: elements at indices that a step computes. One rule an operator."""

from __future__ import annotations

import math
from typing import Any

import sympy
import torch
from torch.fx import Node

from ...capture import ops
from ...optimise.graph import aten, value
from . import types
from .columns import taken_apart
from .rule import Lowering, Unlowered, of_torch, rule


def _wrapped(at: str, size: str) -> str:
    return f"tl.where({at} < 0, {at} + {size}, {at})"


def _bounded(at: str, size: str) -> str:
    return f"tl.minimum(tl.maximum({at}, 0), {size} - 1)"


@rule(ops.read)
def _read(self: Lowering) -> str:
    x, index, dim = self.node.args
    if self.writer.width(index) is not None or value(index).ndim:
        raise Unlowered(self.node, "a read at an index of every row")
    size, at = self.writer.size(x, dim), self.writer.demand(index, None)
    place, mine = self.writer.place(x, dim), self.index  # that it is out of range the graph says itself
    return _element(self, x, [*mine[:place], _bounded(_wrapped(at, size), size), *mine[place:]], by_row=False)


@rule(aten.embedding.default)
def _embedding(self: Lowering) -> str:
    table, index = self.node.args[:2]
    mine, of_index = self.index, len(self.writer.dims(index))
    at, size = self.at(index, mine[:of_index]), self.writer.size(table, 0)
    self.writer.fault(f"({at} < 0) | ({at} >= {size})", self.columns if of_index else None)
    return _element(self, table, [_bounded(at, size), *mine[of_index:]])


@rule(ops.within)
def _within(self: Lowering) -> str:
    index, table = self.node.args
    at = types.cast(self.operand(index), value(index).dtype, torch.int64)
    self.writer.fault(f"({at} < 0) | ({at} >= {self.writer.size(table, 0)})", self.columns)
    return at


@rule(aten.gather.default)
def _gather(self: Lowering) -> str:
    x, dim, index = self.node.args
    place, mine = self.writer.place(x, dim), self.index
    at, size = self.operand(index), self.writer.size(x, dim)
    self.writer.fault(f"({at} < 0) | ({at} >= {size})", self.columns)
    return _element(self, x, [*mine[:place], _bounded(at, size), *mine[place + 1 :]])


@rule(aten.index_select.default)
def _index_select(self: Lowering) -> str:
    x, dim, index = self.node.args
    return _indexed(self, x, [*[None] * (dim % value(x).ndim), index])


@rule(aten.index.Tensor)
def _index(self: Lowering) -> str:
    x, indices = self.node.args
    return _indexed(self, x, list(indices))


def _indexed(self: Lowering, x: Any, given: list[Any]) -> str:
    """``x[given]``: an index, or None for all, of each of torch's dimensions; those that are missing are whole."""
    writer, rows = self.writer, self.writer.rows(x)
    given = given + [None] * (value(x).ndim - len(given))
    if any(index is not None and value(index).dtype in (torch.bool, torch.uint8) for index in given):
        raise Unlowered(self.node, "a mask as an index")
    if rows is not None and (rows.inner != 1 or not (given[rows.dim] is None or writer.is_row_ids(given[rows.dim]))):
        raise Unlowered(self.node, "a row that looks into another")
    places = [dim for dim, index in enumerate(given) if index is not None]
    begin = places[0] if places == list(range(places[0], places[-1] + 1)) else 0  # numpy's rule: apart, they come first
    rank = max(value(given[dim]).ndim for dim in places)
    mine = of_torch(self)
    over = mine[begin : begin + rank]  # what the indices are of
    whole = iter(mine[:begin] + mine[begin + rank :])
    found: list[Any] = []
    for dim, index in enumerate(given):
        is_rows = rows is not None and dim == rows.dim
        if index is None:
            place = next(whole)
            if is_rows != (place is None):
                raise Unlowered(self.node, "a row that looks into another")
            found += [] if is_rows else [place]
        elif not is_rows:
            at, size = self.at(index, _aligned(self, index, over)), writer.size(x, dim)
            writer.fault(f"({at} < -{size}) | ({at} >= {size})", self.columns if writer.width(index) is not None else None)
            found.append(_bounded(_wrapped(at, size), size))
    return _element(self, x, found)


def _aligned(self: Lowering, index: Any, over: list[Any]) -> list[Any]:
    """The place in a row of an index, broadcast to what all indices are of."""
    made, rows = value(index), self.writer.rows(index)
    found = []
    for dim, place in enumerate(over[len(over) - made.ndim :]):
        if rows is not None and dim == rows.dim:
            if rows.inner != 1 or place is not None:
                raise Unlowered(self.node, "the batch is flattened into another dimension")
            continue
        found.append(sympy.Integer(0) if self.writer.extent(index, dim) == 1 else place)
    if None in found:
        raise Unlowered(self.node, "a row that looks into another")
    return found


def _element(self: Lowering, x: Any, index: list[Any], by_row: bool = True) -> str:
    """An element, some of whose indices are values: of a tensor that is known it is loaded, else all that it may be are looked at."""
    if self.writer.is_known(x):
        return self.writer.load(x, index, self.tile, by_row)
    dtype, sizes = value(x).dtype, self.writer.dims(x)
    places = [place for place, at in enumerate(index) if isinstance(at, str)]
    over = [sizes[place] for place in places]

    def update(count: Any, so_far: str) -> str:
        at, conditions = list(index), []
        for place, here in zip(places, taken_apart(count, over, self.tile), strict=True):
            conditions.append(f"({index[place]} == {self.text(here)})")
            at[place] = here
        element = self.at(x, at)
        if dtype == torch.bool:
            element = f"({element}).to(tl.int32)"
        return f"tl.where({' & '.join(conditions)}, {element}, {so_far})"

    zero = "0.0" if dtype.is_floating_point else "0"
    made = self.writer.accumulate(math.prod(over), types.carried_in(dtype), zero, self.columns, update)
    return f"({made} != 0)" if dtype == torch.bool else made


@rule(aten.scatter.src, aten.scatter.value, aten.scatter_add.default)
def _scatter(self: Lowering) -> str:
    """What is there already, and all that may be written over it: of several the last, as a loop would."""
    x, dim, places, new = self.node.args
    place, index, dtype = self.writer.place(x, dim), self.index, self.dtype
    sizes = self.writer.dims(places)
    inside = [
        f"({self.text(at)} < {size})"
        for here, (at, size, whole) in enumerate(zip(index, sizes, self.dims, strict=True))
        if here != place and size < whole
    ]

    def update(count: Any, so_far: str) -> str:
        there = [*index[:place], count, *index[place + 1 :]]
        at = self.at(places, there)
        element = self.at(new, there) if isinstance(new, Node) else types.literal(new, dtype)
        element = f"({element}).to({types.carried_in(dtype)})" if isinstance(new, Node) else element
        if self.node.target is aten.scatter_add.default:
            element = f"({so_far} + {element})"
        elif dtype == torch.bool and not isinstance(new, Node):
            element = str(int(bool(new)))
        return f"tl.where({' & '.join([f'({at} == {self.text(index[place])})', *inside])}, {element}, {so_far})"

    before = self.operand(x)
    made = self.writer.accumulate(sizes[place], types.carried_in(dtype), before, self.columns, update)
    return f"({made} != 0)" if dtype == torch.bool else made


@rule(aten.index_put.default)
def _index_put(self: Lowering) -> str:
    """What is there already, and all that may be written over it, in the order of the indices: of several the last."""
    x, indices, new = self.node.args[:3]
    writer, rows, dtype = self.writer, self.writer.rows(x), self.dtype
    given = {dim: index for dim, index in enumerate(indices) if index is not None}
    if any(value(index).dtype in (torch.bool, torch.uint8) for index in given.values()):
        raise Unlowered(self.node, "a mask with a value for each place in it")
    if rows is not None and (rows.inner != 1 or (rows.dim in given and not writer.is_row_ids(given[rows.dim]))):
        raise Unlowered(self.node, "a row that writes into another")
    adds, before, mine = bool(self.argument(3, "accumulate", False)), self.operand(x), of_torch(self)
    over = _broadcast(self, list(given.values()))
    begin = min(given) if max(given) - min(given) + 1 == len(given) else 0
    whole = [mine[dim] for dim in range(len(mine)) if dim not in given]
    sizes = [size for size in over if size is not None]

    def update(count: Any, so_far: str) -> str:
        places = iter(taken_apart(count, sizes, self.tile))
        chosen = [None if size is None else next(places) for size in over]
        conditions = []
        for dim, index in given.items():
            if rows is None or dim != rows.dim:
                at, size = self.at(index, _aligned(self, index, chosen)), writer.size(x, dim)
                writer.fault(f"({at} < -{size}) | ({at} >= {size})", None)
                conditions.append(f"({_wrapped(at, size)} == {self.text(mine[dim])})")
        element = types.cast(self.at(new, _aligned(self, new, [*whole[:begin], *chosen, *whole[begin:]])), value(new).dtype, dtype)
        element = f"({element}).to({types.carried_in(dtype)})"
        element = f"({so_far} + {element})" if adds else element
        return f"tl.where({' & '.join(conditions)}, {element}, {so_far})" if conditions else element

    made = writer.accumulate(math.prod(sizes), types.carried_in(dtype), before, self.columns, update)
    return f"({made} != 0)" if dtype == torch.bool else made


def _broadcast(self: Lowering, indices: list[Any]) -> list[int | None]:
    """The sizes to which indices broadcast; None for the batch."""
    found: list[int | None] = [1] * max(value(index).ndim for index in indices)
    for index in indices:
        rank, rows = value(index).ndim, self.writer.rows(index)
        for dim in range(rank):
            if rows is not None and dim == rows.dim:
                found[dim - rank] = None
            elif found[dim - rank] is not None and self.writer.extent(index, dim) != 1:
                found[dim - rank] = self.writer.extent(index, dim)
    return found
