"""Sums along a dimension so far, sorting and extremes with their places in C++: one rule an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..optimise.graph import aten
from .pointwise import cast, computed_in, wide
from .reductions import best
from .rule import Lowering, Pair, rule
from .values import Value, linear, stored, write


@rule(aten.cumsum.default, aten.cumprod.default)
def _cumulated(self: Lowering) -> Value:
    source, dim = self.node.args[:2]
    operand, place = self.operand(source), self.place(dim, source)
    if not operand.dims:
        return operand
    start, step = ("0", "+") if self.node.target == aten.cumsum.default else ("1", "*")
    pointer = self.block.space(self.dims, self.dtype)
    kind = computed_in(wide(self.dtype))
    others = [size if p != place else "1" for p, size in enumerate(self.dims)]
    with self.block.loop(others) as at:
        name, along = self.block.names("a"), self.block.names("k")
        self.block.line(f"{kind} {name} = {start};")
        into = [along if p == place else i for p, i in enumerate(at)]
        element = cast(operand.load(into), operand.dtype, wide(self.dtype))
        self.block.line(
            f"for (int64_t {along} = 0; {along} < {self.dims[place]}; ++{along}) {{ {name} = {name} {step} {element}; "
            f"{pointer}[{linear(into, self.dims)}] = {write(name, self.dtype)}; }}"
        )
    return stored(pointer, self.dims, self.dtype)


def _ordered(self: Lowering, place: int, source: Any, descending: bool, most: str) -> Any:
    """Values and indices along a dimension, in order; the first ``most`` of them. Equal ones keep their order, NaN is the largest."""
    operand = self.kept(source)
    if not operand.dims:
        zero = Value((), torch.int64, lambda _: "(int64_t)0")
        return Pair((operand, zero))
    dims = [most if p == place else size for p, size in enumerate(operand.dims)]
    values, indices = self.block.space(dims, operand.dtype), self.block.space(dims, torch.int64)
    order = self.block.space([operand.dims[place]], torch.int64)
    others = [size if p != place else "1" for p, size in enumerate(operand.dims)]
    with self.block.loop(others) as at:

        def key(name: str, at: list[str] = at) -> str:
            return operand.load([name if p == place else i for p, i in enumerate(at)])

        self.block.line(
            f"frnn::sort({order}, (int64_t)({operand.dims[place]}), "
            f"[&](int64_t a_, int64_t b_) {{ return frnn::{'after' if descending else 'before'}({key('a_')}, {key('b_')}); }});"
        )
        along = self.block.names("k")
        into = linear([along if p == place else i for p, i in enumerate(at)], dims)
        self.block.line(
            f"for (int64_t {along} = 0; {along} < {most}; ++{along}) {{ {indices}[{into}] = {order}[{along}]; "
            f"{values}[{into}] = {write(key(f'{order}[{along}]'), operand.dtype)}; }}"
        )
    return Pair((stored(values, dims, operand.dtype), stored(indices, dims, torch.int64)))


@rule(aten.sort.default, aten.sort.stable)
def _sort(self: Lowering) -> Any:
    source: Any = self.node.args[0]
    stable = self.node.target == aten.sort.stable
    dim = self.node.kwargs.get("dim", -1) if stable else self.argument(1, "dim", -1)
    descending = self.node.kwargs.get("descending", False) if stable else self.argument(2, "descending", False)
    place = self.place(dim, source)
    dims = self.dims_of(source)
    return _ordered(self, place, source, bool(descending), dims[place] if dims else "1")


@rule(aten.topk.default)
def _topk(self: Lowering) -> Any:
    source, k = self.node.args[:2]
    place = self.place(self.argument(2, "dim", -1), source)
    return _ordered(
        self, place, source, bool(self.argument(3, "largest", True)), self.scalar(k, torch.int64) if not isinstance(k, int) else str(k)
    )


@rule(aten.max.dim, aten.min.dim)
def _max_dim(self: Lowering) -> Any:
    source: Any = self.node.args[0]
    operand, place = self.kept(source), self.place(self.argument(1, "dim"), source)
    if not operand.dims:
        return Pair((operand, Value((), torch.int64, lambda _: "(int64_t)0")))
    behind = place + bool(self.argument(2, "keepdim", False))  # of the result's index what follows the dimension
    dims = [*operand.dims[:place], *["1"] * (behind - place), *operand.dims[place + 1 :]]

    def index(kept: Sequence[str], inner: Sequence[str]) -> list[str]:
        return [*kept[:place], inner[0], *kept[behind:]]

    at = best(self, operand, dims, [operand.dims[place]], index, self.node.target == aten.max.dim)
    return Pair((Value(tuple(dims), operand.dtype, lambda kept: operand.load(index(kept, [at.load(kept)]))), at))
