"""Views, and what puts tensors together, in C++: the same elements under other indices. One rule an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..optimise.graph import aten
from ..optimise.locality import shape
from .pointwise import cast
from .rule import Lowering, Unlowered, rule
from .values import Value, linear, stored, write


def _reindexed(self: Lowering, operand: Value, index_of: Callable[[list[str]], list[str]]) -> Value:
    return Value(self.dims, self.dtype, lambda index: operand.load(index_of(list(index))), cheap=operand.cheap)


@rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim,
      aten.squeeze.dims)  # fmt: skip
def _view(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    operand = self.operand(source)
    before = [place for place, size in enumerate(operand.dims) if size != "1"]
    after = [place for place, size in enumerate(self.dims) if size != "1"]
    if operand.pointer is None and [operand.dims[place] for place in before] == [self.dims[place] for place in after]:

        def index_of(index: list[str]) -> list[str]:
            found = ["0"] * len(operand.dims)
            for old, new in zip(before, after, strict=True):
                found[old] = index[new]
            return found

        return _reindexed(self, operand, index_of)
    kept = self.block.keep(operand)
    assert kept.pointer is not None
    return stored(kept.pointer, self.dims, self.dtype)


@rule(aten.permute.default, aten.t.default, aten.transpose.int, aten.numpy_T.default)
def _permute(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    rank = len(shape(source))
    if self.node.target in (aten.t.default, aten.numpy_T.default):
        order = list(reversed(range(rank)))
    elif self.node.target == aten.transpose.int:
        order = list(range(rank))
        a, b = (dim % rank for dim in self.node.args[1:3])
        order[a], order[b] = order[b], order[a]
    else:
        order = [dim % rank for dim in self.node.args[1]]
    rows = self.rows(source)
    if rows is not None and rows.inner == 1:
        order = [dim - (dim > rows.dim) for dim in order if dim != rows.dim]
    operand = self.operand(source)
    if order == list(range(len(order))):
        return operand

    def index_of(index: list[str]) -> list[str]:
        found = [""] * len(order)
        for new, old in enumerate(order):
            found[old] = index[new]
        return found

    return _reindexed(self, operand, index_of)


@rule(aten.expand.default)
def _expand(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    operand = self.operand(source)
    return Value(self.dims, self.dtype, lambda index: operand.load(self.aligned(source, index)), cheap=operand.cheap)


@rule(aten.select.int)
def _select(self: Lowering) -> Value:
    source, dim, at = self.node.args
    operand, place = self.operand(source), self.place(dim, source)
    position = self.scalar(at, torch.int64)
    if not isinstance(at, int) or at < 0:
        position = f"frnn::wrapped({position}, {operand.dims[place]})"
    return _reindexed(self, operand, lambda index: [*index[:place], position, *index[place:]])


@rule(aten.slice.Tensor)
def _slice(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    dim, start, step = self.argument(1, "dim", 0), self.argument(2, "start"), self.argument(4, "step", 1)
    rows = self.rows(source)
    operand = self.operand(source)
    if rows is not None and dim % len(shape(source)) == rows.dim:
        return operand  # all of the batch
    place = self.place(dim, source)
    begin = "0" if start is None else self.scalar(start, torch.int64)
    if not (start is None or (isinstance(start, int) and start >= 0)):
        begin = f"frnn::bounded({begin}, {operand.dims[place]})"

    def index_of(index: list[str]) -> list[str]:
        at = index[place] if step == 1 else f"{index[place]} * {step}"
        return [*index[:place], at if begin in ("0", "(int64_t)0LL") else f"{begin} + {at}", *index[place + 1 :]]

    return _reindexed(self, operand, index_of)


@rule(aten.flip.default)
def _flip(self: Lowering) -> Value:
    source, dims = self.node.args
    operand = self.operand(source)
    places = {self.place(dim, source) for dim in dims}
    return _reindexed(self, operand, lambda index: [f"{operand.dims[p]} - 1 - {i}" if p in places else i for p, i in enumerate(index)])


@rule(aten.cat.default)
def _cat(self: Lowering) -> Value:
    parts: Any = self.node.args[0]
    parts = [part for part in parts if len(shape(part)) == len(shape(self.node))]  # torch lets an empty vector join anything
    place = self.place(self.argument(1, "dim", 0))
    pointer = self.block.space(self.dims, self.dtype)
    offset = "0"
    for part in parts:
        operand = self.operand(part)
        with self.block.loop(operand.dims, hint="#pragma GCC ivdep") as index:
            into = [f"{offset} + {i}" if p == place else i for p, i in enumerate(index)]
            element = cast(operand.load(index), operand.dtype, self.dtype)
            self.block.line(f"{pointer}[{linear(into, self.dims)}] = {write(element, self.dtype)};")
        offset = f"{offset} + {operand.dims[place]}"
    return stored(pointer, self.dims, self.dtype)


@rule(aten.slice_scatter.default, aten.select_scatter.default)
def _window(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    what: Any = self.node.args[1]
    operand, new = self.operand(source), self.operand(what)
    pointer = self.block.space(self.dims, self.dtype)
    self.block.fill(pointer, self.dims, self.dtype, operand.load)
    dim = self.argument(2, "dim", 0)
    rows = self.rows(self.node)
    place = self.place(dim, source)
    whole = rows is not None and dim % len(shape(source)) == rows.dim
    if self.node.target == aten.select_scatter.default:
        at_: Any = self.node.args[3]
        position = f"frnn::wrapped({self.scalar(at_, torch.int64)}, {self.dims[place]})"
        with self.block.loop(new.dims) as at:
            into = [*at[:place], position, *at[place:]]
            self.block.line(f"{pointer}[{linear(into, self.dims)}] = {write(cast(new.load(at), new.dtype, self.dtype), self.dtype)};")
    else:
        start, step = self.argument(3, "start"), self.argument(5, "step", 1)
        begin = "0" if start is None or whole else f"frnn::bounded({self.scalar(start, torch.int64)}, {self.dims[place]})"
        with self.block.loop(new.dims) as at:
            into = [i if whole or p != place else f"{begin} + {i} * {step}" for p, i in enumerate(at)]
            self.block.line(f"{pointer}[{linear(into, self.dims)}] = {write(cast(new.load(at), new.dtype, self.dtype), self.dtype)};")
    return stored(pointer, self.dims, self.dtype)


@rule(aten.constant_pad_nd.default)
def _pad(self: Lowering) -> Value:
    source, pads = self.node.args[:2]
    fill = self.argument(2, "value", 0)
    operand = self.operand(source)
    pointer = self.block.space(self.dims, self.dtype)
    self.block.fill(pointer, self.dims, self.dtype, lambda _: self.scalar(fill, self.dtype))
    rank = len(shape(source))
    before = {self.place(rank - 1 - k, source): pads[2 * k] for k in range(len(pads) // 2)}
    if any(isinstance(pad, int) and pad < 0 for pad in pads):
        raise Unlowered(self.node, "a negative padding")
    with self.block.loop(operand.dims) as at:
        into = [f"{before.get(p, 0)} + {i}" for p, i in enumerate(at)]
        self.block.line(f"{pointer}[{linear(into, self.dims)}] = {write(operand.load(at), self.dtype)};")
    return stored(pointer, self.dims, self.dtype)
