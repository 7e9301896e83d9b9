"""Look-ups in C++: an index outside of its tensor stops the loop, which then says who looked where. One rule an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from ..capture import ops
from ..optimise.graph import aten, value
from ..optimise.locality import shape
from .pointwise import cast, computed_in
from .rule import Lowering, Unlowered, rule, size_text
from .values import Index, Value, linear, read, stored, write


def checked(self: Lowering, index: Node, size: str, *, wraps: bool = True) -> Value:
    """The values of an index tensor within 0 and size, kept; a fault is noted where one was not."""
    operand = self.operand(index)
    pointer = self.block.space(operand.dims, torch.int64)
    wrap = f"frnn::wrapped(at_, {size})" if wraps else "at_"
    with self.block.loop(operand.dims) as at:
        self.block.line(
            f"{{ int64_t at_ = {operand.load(at)}; at_ = {wrap}; if (at_ < 0 || at_ >= {size}) {{ *fault = 1; at_ = 0; }} "
            f"{pointer}[{linear(at, operand.dims)}] = at_; }}"
        )
    return stored(pointer, operand.dims, torch.int64)


@rule(ops.read)
def _read(self: Lowering) -> Value:
    source, index, dim = self.node.args
    operand, place = self.operand(source), self.place(dim, source)
    size = operand.dims[place]
    name = self.block.names("q")
    self.block.line(f"const int64_t {name} = frnn::read_at({self.scalar(index, torch.int64)}, {size}, fault);")

    def load(at: Index) -> str:
        element = operand.load([*at[:place], name, *at[place:]])
        return element if size.isdigit() and size != "0" else f"({size} ? {element} : ({computed_in(self.dtype)})0)"

    return Value(self.dims, self.dtype, load)


@rule(aten.embedding.default)
def _embedding(self: Lowering) -> Value:
    table: Any = self.node.args[0]
    index: Any = self.node.args[1]
    operand = self.operand(table)
    rows = checked(self, index, operand.dims[0], wraps=False)
    return Value(self.dims, self.dtype, lambda at: operand.load([rows.load(at[:-1]), at[-1]]))


@rule(ops.within)
def _within(self: Lowering) -> Value:
    index, table = self.node.args
    return checked(self, index, size_text(shape(table)[0]), wraps=False)


@rule(aten.index_select.default)
def _index_select(self: Lowering) -> Value:
    source, dim, index = self.node.args
    operand, place = self.operand(source), self.place(dim, source)
    rows = checked(self, index, operand.dims[place], wraps=False)
    if self.rows(index) is not None:
        return Value(self.dims, self.dtype, lambda at: operand.load([*at[:place], rows.load(()), *at[place:]]))
    return Value(self.dims, self.dtype, lambda at: operand.load([*at[:place], rows.load([at[place]]), *at[place + 1 :]]))


@rule(aten.gather.default)
def _gather(self: Lowering) -> Value:
    source, dim, index = self.node.args
    operand, place = self.operand(source), self.place(dim, source)
    if not operand.dims:
        return operand
    picked = checked(self, index, operand.dims[place], wraps=False)
    return Value(self.dims, self.dtype, lambda at: operand.load([picked.load(at) if p == place else i for p, i in enumerate(at)]))


@rule(aten.index.Tensor)
def _index(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    indices: Any = self.node.args[1]
    operand, rows = self.operand(source), self.rows(source)
    given = [(place, index) for place, index in enumerate(indices) if index is not None]
    rank = max(len(shape(index)) for _, index in given)
    adjacent = [place for place, _ in given] == list(range(given[0][0], given[0][0] + len(given)))
    start = given[0][0] if adjacent else 0
    full_rank = len(shape(self.node))
    mine = self.rows(self.node)
    sizes = [size_text(size) for size in shape(source)]
    picked = {place: (index, checked(self, index, sizes[place])) for place, index in given if rows is None or place != rows.dim}

    def load(at: Index) -> str:
        # The index as torch sees it, with a stand-in where the batch is.
        full = list(at)
        if mine is not None and mine.inner == 1:
            full.insert(mine.dim, "")
        assert len(full) == full_rank
        broadcast, rest = full[start : start + rank], full[:start] + full[start + rank :]
        found: list[str] = []
        taken = 0
        for place in range(len(sizes)):
            if any(place == p for p, _ in given):
                if rows is not None and place == rows.dim:
                    continue
                index, positions = picked[place]
                dims = shape(index)
                mine_of_index = broadcast[rank - len(dims) :]
                of_rows = self.rows(index)
                inside = [i for p, i in enumerate(mine_of_index) if not (of_rows is not None and of_rows.inner == 1 and p == of_rows.dim)]
                inside = ["0" if size == "1" else i for i, size in zip(inside, positions.dims, strict=True)]
                found.append(positions.load(inside))
            else:
                if not (rows is not None and place == rows.dim):
                    found.append(rest[taken])
                taken += 1
        return operand.load(found)

    return Value(self.dims, self.dtype, load)


@rule(aten.index_put.default)
def _index_put(self: Lowering) -> Value:
    source, indices, values = self.node.args[:3]
    accumulate = bool(self.argument(3, "accumulate", False))
    operand, rows = self.operand(source), self.rows(source)
    sizes = [size_text(size) for size in shape(source)]
    pointer = self.block.space(self.dims, self.dtype)
    self.block.fill(pointer, self.dims, self.dtype, operand.load)
    given = {place: index for place, index in enumerate(indices) if index is not None}
    if any(value(index).dtype in (torch.bool, torch.uint8) for index in given.values()):
        raise Unlowered(self.node, "a mask with a value for each place in it")
    picked = {place: checked(self, index, sizes[place]) for place, index in given.items() if rows is None or place != rows.dim}
    broadcast = _broadcast([index.dims for index in picked.values()])
    first, rank = min(given), max(len(shape(index)) for index in given.values())
    start = first if max(given) - first + 1 == len(given) else 0  # where the indices' dimensions go
    free = [place for place in range(len(sizes)) if place not in given]
    batch = None if rows is None else [*free[:start], *given, *free[start:]].index(rows.dim) + (rows.dim > start) * (rank - len(given))
    free = [place for place in free if rows is None or place != rows.dim]
    before = sum(1 for place in free if place < start)
    with self.block.loop([*map(sizes.__getitem__, free[:before]), *broadcast, *map(sizes.__getitem__, free[before:])]) as at:
        position = dict(zip(free, [*at[:before], *at[before + len(broadcast) :]], strict=True))
        chosen = at[before : before + len(broadcast)]
        for place, index in picked.items():
            mine = chosen[len(chosen) - len(index.dims) :]
            position[place] = index.load(["0" if size == "1" else i for i, size in zip(mine, index.dims, strict=True)])
        full, dims = list(at), self.dims_of(values)
        if batch is not None and self.rows(values) is None:
            full.insert(batch, "0")
        own = ["0" if size == "1" else i for i, size in zip(full[len(full) - len(dims) :], dims, strict=True)] if dims else []
        element = cast(self.operand(values).load(own), value(values).dtype, self.dtype)
        where = f"{pointer}[{linear([position[place] for place in sorted(position)], self.dims)}]"
        element = f"{read(where, self.dtype)} + {element}" if accumulate else element
        self.block.line(f"{where} = {write(element, self.dtype)};")
    return stored(pointer, self.dims, self.dtype)


def _broadcast(shapes: Sequence[Sequence[str]]) -> list[str]:
    """The sizes to which these broadcast."""
    found = ["1"] * max(map(len, shapes), default=0)
    for dims in shapes:
        for back in range(1, len(dims) + 1):
            if dims[-back] != "1":
                found[-back] = dims[-back]
    return found


@rule(aten.scatter.src, aten.scatter.value, aten.scatter_add.default)
def _scatter(self: Lowering) -> Value:
    source, dim, index, what = self.node.args
    operand, place = self.operand(source), self.place(dim, source)
    pointer = self.block.space(self.dims, self.dtype)
    self.block.fill(pointer, self.dims, self.dtype, operand.load)
    picked = checked(self, index, operand.dims[place], wraps=False)
    with self.block.loop(picked.dims) as at:
        into = [picked.load(at) if p == place else i for p, i in enumerate(at)]
        tensor = isinstance(what, Node) and isinstance(value(what), torch.Tensor) and self.node.target != aten.scatter.value
        element = cast(self.operand(what).load(at), value(what).dtype, self.dtype) if tensor else self.scalar(what, self.dtype)
        where = f"{pointer}[{linear(into, self.dims)}]"
        element = f"{read(where, self.dtype)} + {element}" if self.node.target == aten.scatter_add.default else element
        self.block.line(f"{where} = {write(element, self.dtype)};")
    return stored(pointer, self.dims, self.dtype)
