"""Reductions along dimensions of one row in C++: one rule an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..optimise.graph import aten
from ..optimise.locality import shape
from .pointwise import cast, computed_in, rounded, wide
from .rule import Lowering, rule
from .values import Value, linear, stored, write


def reduced(self: Lowering, dims: Any, keepdim: bool) -> tuple[set[int], Callable[[Sequence[str], Sequence[str]], list[str]]]:
    """Which dimensions of a row go, and the operand's index from that of the result and of what goes."""
    source: Any = self.node.args[0]
    rank = len(shape(source))
    rows = self.rows(source)
    named = range(rank) if dims is None or (isinstance(dims, (list, tuple)) and not dims) else [dims] if isinstance(dims, int) else dims
    gone = {self.place(dim, source) for dim in named if rank and not (rows is not None and rows.inner == 1 and dim % rank == rows.dim)}
    total = len(self.dims_of(source))

    def index(kept: Sequence[str], inner: Sequence[str]) -> list[str]:
        kept_left, inner_left = list(kept), list(inner)
        found = []
        for place in range(total):
            if place in gone:
                found.append(inner_left.pop(0))
                if keepdim:
                    kept_left.pop(0)
            else:
                found.append(kept_left.pop(0))
        return found

    return gone, index


_SUMS = {"sum": ("0", "{a} + {x}", "+"), "prod": ("1", "{a} * {x}", "*")}


def _accumulated(self: Lowering, dims: Any, keepdim: bool, start: str, step: str, simd: str, finish: str, dtype: torch.dtype) -> Value:
    """Reduce by repeating ``step`` on an accumulator ``{a}`` and an element ``{x}``."""
    source: Any = self.node.args[0]
    operand = self.operand(source)
    gone, index = reduced(self, dims, keepdim)
    pointer = self.block.space(self.dims, self.dtype)
    inner_dims = [size for place, size in enumerate(operand.dims) if place in gone]
    kind = computed_in(dtype)
    with self.block.loop(self.dims) as kept:
        name = self.block.names("a")
        self.block.line(f"{kind} {name} = {start};")
        hint = f"#pragma omp simd reduction({simd}:{name})" if simd and kind in ("float", "double") else ""
        with self.block.loop(inner_dims, hint=hint) as inner:
            element = cast(operand.load(index(kept, inner)), operand.dtype, dtype)
            self.block.line(f"{name} = {step.format(a=name, x=element)};")
        size = " * ".join(inner_dims) or "1"
        result = (
            cast(finish.format(a=name, n=f"(int64_t)({size})"), dtype, self.dtype) if finish != "{a}" else cast(name, dtype, self.dtype)
        )
        self.block.line(f"{pointer}[{linear(kept, self.dims)}] = {write(rounded(result, self.dtype), self.dtype)};")
    return stored(pointer, self.dims, self.dtype)


@rule(aten.sum.default, aten.sum.dim_IntList, aten.prod.default, aten.prod.dim_int)
def _sum(self: Lowering) -> Value:
    start, step, simd = _SUMS["sum" if "sum" in str(self.node.target) else "prod"]
    whole = self.node.target in (aten.sum.default, aten.prod.default)
    dims, keepdim = (None, False) if whole else (self.argument(1, "dim"), self.argument(2, "keepdim", False))
    return _accumulated(self, dims, keepdim, start, step, simd, "{a}", wide(self.dtype))


@rule(aten.mean.default, aten.mean.dim)
def _mean(self: Lowering) -> Value:
    whole = self.node.target == aten.mean.default
    dims, keepdim = (None, False) if whole else (self.argument(1, "dim"), self.argument(2, "keepdim", False))
    return _accumulated(self, dims, keepdim, "0", "{a} + {x}", "+", "{a} / {n}", wide(self.dtype))


@rule(aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims)
def _any(self: Lowering) -> Value:
    any_ = "any" in str(self.node.target)
    whole = self.node.target in (aten.any.default, aten.all.default)
    dims, keepdim = (None, False) if whole else (self.argument(1, "dim"), self.argument(2, "keepdim", False))
    start, step = ("false", "{a} || {x}") if any_ else ("true", "{a} && {x}")
    return _accumulated(self, dims, keepdim, start, step, "", "{a}", torch.bool)


@rule(aten.amax.default, aten.amin.default, aten.max.default, aten.min.default)
def _extreme(self: Lowering) -> Value:
    most = "max" in str(self.node.target)
    whole = self.node.target in (aten.max.default, aten.min.default)
    dims, keepdim = (None, False) if whole else (self.argument(1, "dim"), self.argument(2, "keepdim", False))
    start = f"frnn::lowest<{computed_in(self.dtype)}>()" if most else f"frnn::highest<{computed_in(self.dtype)}>()"
    step = "frnn::maximum({x}, {a})" if most else "frnn::minimum({x}, {a})"
    return _accumulated(self, dims, keepdim, start, step, "", "{a}", self.dtype)


@rule(aten.argmax.default, aten.argmin.default)
def _argmax(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    dims, keepdim = self.argument(1, "dim"), self.argument(2, "keepdim", False)
    operand = self.kept(source)
    if dims is None and len(operand.dims) > 1:
        assert operand.pointer is not None
        operand = stored(operand.pointer, (" * ".join(operand.dims),), operand.dtype)
    if dims is None:
        gone, index = {0}, (lambda kept, inner: list(inner))
    else:
        gone, index = reduced(self, dims, keepdim)
    inner_dims = [size for place, size in enumerate(operand.dims) if place in gone] or ["1"]
    return best(self, operand, self.dims, inner_dims, index, self.node.target == aten.argmax.default)


def best(
    self: Lowering,
    operand: Value,
    dims: Sequence[str],
    inner_dims: Sequence[str],
    index: Callable[[Sequence[str], Sequence[str]], list[str]],
    most: bool,
) -> Value:
    """The places of the first extreme, or the first NaN, along ``inner_dims``."""
    pointer = self.block.space(dims, torch.int64)
    kind = computed_in(operand.dtype)
    with self.block.loop(dims) as kept:
        best = self.block.names("m")
        extreme = "maximum" if most else "minimum"
        start = f"frnn::{'lowest' if most else 'highest'}<{kind}>()"
        self.block.line(f"{kind} {best} = {start};")
        hint = f"#pragma omp simd reduction({'max' if most else 'min'}:{best})" if kind in ("float", "double") else ""
        odd = self.block.names("n")
        if kind in ("float", "double"):
            self.block.line(f"int {odd} = 0;")
            hint += f" reduction(|:{odd})"
        with self.block.loop(inner_dims, hint=hint) as inner:
            element = operand.load(index(kept, inner) if operand.dims else ())
            if kind in ("float", "double"):
                self.block.line(f"{best} = {element} {'>' if most else '<'} {best} ? {element} : {best}; {odd} |= {element} != {element};")
            else:
                self.block.line(f"{best} = frnn::{extreme}({element}, {best});")
        where = f"{pointer}[{linear(kept, dims)}]"
        self.block.line(f"{where} = 0;")
        found = self.block.names("k")
        element = operand.load(index(kept, [found]) if operand.dims else ())
        test = f"{odd} ? {element} != {element} : {element} == {best}" if kind in ("float", "double") else f"{element} == {best}"
        self.block.line(f"for (int64_t {found} = 0; {found} < {inner_dims[0]}; ++{found}) if ({test}) {{ {where} = {found}; break; }}")
    return stored(pointer, dims, torch.int64)
