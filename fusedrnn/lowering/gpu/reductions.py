"""Reductions over the columns of a row. In: a node; out: what is reduced, and how the parts of several programs are put together.

What reduces all of a row to a number is reduced by each program over its own columns, and the parts meet behind a barrier
(`schedule`). What leaves columns is a loop in every program over what it reduces.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ...optimise.graph import aten, call, value
from ..pipeline import Optimised
from . import types
from .columns import taken_apart
from .rule import Lowering, Unlowered, rule

_KINDS = {
    "sum": (aten.sum.default, aten.sum.dim_IntList), "mean": (aten.mean.default, aten.mean.dim),
    "max": (aten.amax.default, aten.max.default), "min": (aten.amin.default, aten.min.default),
    "any": (aten.any.default, aten.any.dim, aten.any.dims), "all": (aten.all.default, aten.all.dim, aten.all.dims),
    "argmax": (aten.argmax.default,), "argmin": (aten.argmin.default,),
}  # fmt: skip
_KIND = {op: kind for kind, ops in _KINDS.items() for op in ops}
REDUCTIONS = frozenset(_KIND)
_PAIRS = {aten.max.dim: ("max", "argmax"), aten.min.dim: ("min", "argmin")}


@dataclass(frozen=True)
class Reduction:
    """What a node reduces.

    Attributes:
        kind: "sum", "mean", "max", "min", "any", "all", "argmax" or "argmin".
        source: what is reduced.
        dims: the dimensions of torch's tensor.
    """

    kind: str
    source: Node
    dims: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return value(self.source).dtype  # type: ignore[no-any-return]

    @property
    def adds(self) -> bool:
        return self.kind in ("sum", "mean")

    @property
    def key(self) -> str:
        """The Triton type that the parts are compared or added in."""
        floating = self.dtype.is_floating_point
        if self.adds:
            return "tl.float32" if floating else "tl.int64"
        if self.kind in ("any", "all"):
            return "tl.int32"
        return "tl.int32" if floating and self.kind in ("max", "min") else "tl.int64"

    @property
    def identity(self) -> str:
        if self.adds or self.kind in ("any", "all"):
            return "0.0" if self.key == "tl.float32" else "0"
        return "LOWEST32" if self.key == "tl.int32" else "LOWEST"

    def encoded(self, x: str, index: str) -> str:
        """An element as what is added, or of which the greatest is taken."""
        floating = self.dtype.is_floating_point
        if self.adds:
            return x if floating else types.cast(x, self.dtype, torch.int64)
        if self.kind in ("any", "all"):
            return f"({types.cast(x, self.dtype, torch.bool)}{' == 0' if self.kind == 'all' else ''}).to(tl.int32)"
        if self.kind in ("argmax", "argmin"):
            return f"order_key({'-' if self.kind == 'argmin' else ''}{x}, {index})"
        if floating:
            return f"order({'-' if self.kind == 'min' else ''}{x})"
        wide = types.cast(x, self.dtype, torch.int64)
        return f"(~{wide})" if self.kind == "min" else wide

    def joined(self, one: str, other: str) -> str:
        return f"{one} + {other}" if self.adds else f"tl.maximum({one}, {other})"

    def over(self, tile: str) -> str:
        """The parts of a tile's first dimension together."""
        return f"tl.{'sum' if self.adds else 'max'}({tile}, 0)"

    def decoded(self, key: str, size: int, dtype: torch.dtype) -> str:
        """The result, for so many elements."""
        floating = self.dtype.is_floating_point
        if self.kind == "mean":
            return f"({key} / {size})"
        if self.kind == "sum":
            return types.cast(key, torch.float32 if floating else torch.int64, dtype)
        if self.kind in ("any", "all"):
            return types.cast(f"({key} {'!=' if self.kind == 'any' else '=='} 0)", torch.bool, dtype)
        if self.kind in ("argmax", "argmin"):
            return f"key_index({key}, {size}).to(tl.int64)"
        if floating:
            return f"({'-' if self.kind == 'min' else ''}unordered({key}))"
        return types.cast(f"(~{key})" if self.kind == "min" else key, torch.int64, dtype)


def reduction_of(node: Node) -> Reduction | None:
    """What a node reduces; None for one that does not."""
    place = None
    if node.target is operator.getitem and isinstance(node.args[0], Node) and node.args[0].target in _PAIRS:
        node, place = node.args[0], node.args[1]
    kind = _PAIRS[node.target][place] if place is not None else _KIND.get(node.target)  # type: ignore[index, call-overload]
    if kind is None:
        return None
    source: Any = node.args[0]
    rank = value(source).ndim
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [given] if isinstance(given, int) else list(given or range(rank))
    return Reduction(kind, source, tuple(sorted(dim % rank for dim in dims if rank)))


def take_conversions_apart(made: Optimised) -> None:
    """Let what ``sum`` and ``mean`` add be of the dtype of their result, as torch converts it before it adds."""
    graph = made.module.graph
    for node in list(graph.nodes):
        if _KIND.get(node.target) not in ("sum", "mean") or "dtype" not in node.kwargs:
            continue
        source: Any = node.args[0]
        if value(source).dtype != value(node).dtype:
            with graph.inserting_before(node):
                converted = call(graph, aten._to_copy.default, source, dtype=value(node).dtype, like=node)
            if made.locality is not None:
                made.locality.rows[converted] = made.locality.of(source)
            node.replace_input_with(source, converted)


@rule(*_KIND, operator.getitem)
def _reduced(self: Lowering) -> str:
    """A loop over what is reduced."""
    reduction = reduction_of(self.node)
    if reduction is None:
        raise Unlowered(self.node, "the persistent kernel has no rule for it")
    source, writer = reduction.source, self.writer
    sizes, rows = writer.dims(source), writer.rows(source)
    gone = [writer.place(source, dim) for dim in reduction.dims if not (rows is not None and rows.inner == 1 and dim == rows.dim)]
    kept = [place for place in range(len(sizes)) if place not in gone]
    mine = self.index
    if len(mine) == len(sizes):  # dimensions that stay, of size 1
        mine = [mine[place] for place in kept]
    over = [sizes[place] for place in gone]
    total = math.prod(over)

    def update(count: Any, so_far: str) -> str:
        index = dict(zip(kept + gone, mine + taken_apart(count, over, self.tile), strict=True))
        x = self.at(source, [index[place] for place in range(len(sizes))])
        return reduction.joined(so_far, reduction.encoded(x, f"(tl.zeros((1, 1), tl.int32) + {count})"))

    key = writer.accumulate(total, reduction.key, reduction.identity, self.columns, update)
    return reduction.decoded(key, total, self.dtype)


@rule(aten.cumsum.default, aten.cumprod.default)
def _running(self: Lowering) -> str:
    """Of what stands before an element and itself: all are looked at."""
    source, dim = self.node.args[:2]
    place, mine, dtype = self.writer.place(source, dim), self.index, self.dtype
    sign, neutral = ("+", 0) if self.node.target is aten.cumsum.default else ("*", 1)

    def update(count: Any, so_far: str) -> str:
        element = types.cast(self.at(source, [*mine[:place], count, *mine[place + 1 :]]), value(source).dtype, dtype)
        return f"tl.where({count} <= {self.text(mine[place])}, {so_far} {sign} {element}, {so_far})"

    return self.writer.accumulate(self.dims[place], types.carried_in(dtype), types.literal(neutral, dtype), self.columns, update)


@rule(aten.prod.dim_int)
def _multiplied(self: Lowering) -> str:
    source, dim = self.node.args[:2]
    place, mine, dtype = self.writer.place(source, dim), self.index, self.dtype
    keeps = len(mine) == len(self.writer.dims(source))

    def update(count: Any, so_far: str) -> str:
        index = [*mine[:place], count, *mine[place + keeps :]]
        return f"{so_far} * {types.cast(self.at(source, index), value(source).dtype, dtype)}"

    size = self.writer.dims(source)[place]
    return self.writer.accumulate(size, types.carried_in(dtype), types.literal(1, dtype), self.columns, update)
