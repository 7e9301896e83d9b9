"""Vectors in parts. In: a step graph; out: the same, with what is put together of parts, or reduced in parts, computed part by part.

The programs of a kernel share out the columns of a vector. Four gates side by side, ``[B, 4H]``, are shared out in another way than the H
columns of the state: what is made of both passes a barrier. In parts of H columns it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch.fx import Graph, Node

from ..capture import ops
from .graph import aten, call, value
from .locality import POINTWISE
from .shapes import VIEWS, argument, shape, sizes, static, viewed

MOST = 16  # parts of a vector: each is computed in lines of its own

Bounds = tuple[int, ...]  # of the parts along dimension 1, the first 0, the last the size

_RESHAPES = {
    *VIEWS, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.contiguous.default,
}  # fmt: skip
_LIKE_FIRST = {ops.guard, ops.quiet}  # element by element of the first operand, whatever the flags of the rows
_REDUCTIONS = {
    aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.any.dim, aten.any.dims, aten.all.dim, aten.all.dims,
    aten.argmax.default, aten.argmin.default, aten.prod.dim_int,
}  # fmt: skip


def in_parts(graph: Graph, by_rows: Callable[[Node], bool], carried: set[Node]) -> int:
    """Compute vectors in parts where one of them is put together, or where each part is reduced to a number; how many nodes were rewritten.

    What is made of such a vector element by element follows, and what it is made of. Where a carried leaf is among those all stays as it
    is: it would be taken apart and put together in every step.

    Args:
        by_rows: whether the first dimension of what a node makes is the batch.
        carried: the placeholders of carried leaves and the nodes of their next values.
    """
    return _Apart(graph, by_rows, carried).rewritten()


class _Apart:
    def __init__(self, graph: Graph, by_rows: Callable[[Node], bool], carried: set[Node]) -> None:
        self.graph, self.by_rows, self.carried = graph, by_rows, carried
        self.bounds: dict[Node, Bounds] = {}
        self.parts: dict[Node, list[Node]] = {}

    def rewritten(self) -> int:
        for node in list(self.graph.nodes):
            anchor = self._anchor(node)
            if anchor is not None and anchor[0] not in self.bounds:
                self._spread(*anchor)
        made = [node for node in self.graph.nodes if node in self.bounds and node.op == "call_function"]
        changes = 0
        for node in made:
            with self.graph.inserting_before(node.next):
                computed = self._made(node)
                if computed is None:
                    continue
                whole = call(self.graph, aten.cat.default, computed, 1, like=node)
            node.replace_all_uses_with(whole)
            self.parts[whole], self.bounds[whole] = computed, self.bounds[node]
            changes += 1
        self.graph.eliminate_dead_code()
        return changes

    # Which.

    def _anchor(self, node: Node) -> tuple[Node, Bounds] | None:
        """A vector that is put together of parts, or reduced in parts."""
        if node.op != "call_function":
            return None
        if node.target is aten.cat.default:
            bounds = self._bounds_of_cat(node)
            return None if bounds is None else (node, bounds)
        source: Any = node.args[0] if node.args else None
        if node.target not in _REDUCTIONS or not isinstance(source, Node) or not self.by_rows(source):
            return None
        rank, count = len(shape(source)), static(shape(source)[1]) if len(shape(source)) > 2 else None
        if count is None or not 2 <= count <= MOST or _reduced(node) != set(range(2, rank)):
            return None
        return source, tuple(range(count + 1))

    def _bounds_of_cat(self, node: Node) -> Bounds | None:
        parts: Any = node.args[0]
        rank = len(shape(node))
        if rank < 2 or argument(node, 1, "dim", 0) % rank != 1 or not self.by_rows(node) or not 2 <= len(parts) <= MOST:
            return None
        if any(len(shape(part)) != rank or value(part).dtype != value(node).dtype for part in parts):
            return None
        lengths = [static(shape(part)[1]) for part in parts]
        return None if None in lengths or 0 in lengths else tuple(sum(lengths[:place]) for place in range(len(lengths) + 1))  # type: ignore[arg-type]

    def _spread(self, anchor: Node, bounds: Bounds) -> None:
        """From one vector to all that are made of it, or it of them, part by part."""
        found: dict[Node, Bounds] = {anchor: bounds}
        waiting = [anchor]
        while waiting:
            node = waiting.pop()
            for other, its in self._related(node, found[node]):
                if other not in found and other not in self.bounds and self.by_rows(other) and static(shape(other)[1]) == its[-1]:
                    found[other] = its
                    waiting.append(other)
        if not self.carried.intersection(found):
            self.bounds |= found

    def _related(self, node: Node, bounds: Bounds) -> Iterator[tuple[Node, Bounds]]:
        for operand in node.all_input_nodes if node.op == "call_function" else ():
            if (its := _bounds_of_operand(node, operand, bounds)) is not None:
                yield operand, its
        for user in node.users:
            if user.op == "call_function" and (its := _bounds_of_user(node, user, bounds)) is not None:
                yield user, its

    # How.

    def _made(self, node: Node) -> list[Node] | None:
        """The parts of a node, computed; None where they are cut out of it, or were put together."""
        graph, bounds, target = self.graph, self.bounds[node], node.target
        ranges = list(pairwise(bounds))
        if target is aten.cat.default and self._bounds_of_cat(node) == bounds:
            self.parts[node] = list(node.args[0])  # type: ignore[arg-type]
            return None
        if target is aten.mm.default:
            left, weight = node.args
            return [call(graph, target, left, self._cut(weight, 1, *its), like=node) for its in ranges]
        source: Any = node.args[0] if node.args else None
        if target in _RESHAPES or target is aten.expand.default or target in _REDUCTIONS:
            inner = _bounds_of_operand(node, source, bounds)
            of_rows = source in self.parts or self.by_rows(source)  # what was put together of parts here is nobody's node yet
            if inner is not None and not (of_rows and static(shape(source)[1]) == inner[-1]):
                inner = None  # its elements are in other places
            if inner is None and target is not aten.expand.default:
                return None
            made = []
            for place, (begin, end) in enumerate(ranges):
                part = self._operand(node, source, place, begin, end) if inner is None else self._part(source, inner, place)
                if target in _REDUCTIONS:
                    made.append(call(graph, target, part, *node.args[1:], like=node, **node.kwargs))
                    continue
                lengths = sizes(graph, [shape(node)[0], end - begin, *shape(node)[2:]], [part, *node.all_input_nodes])
                view = viewed(graph, part, lengths, node) if target in _RESHAPES else call(graph, target, part, lengths, like=node)
                made.append(view)
            return made
        if target in _LIKE_FIRST:
            return [call(graph, target, self._part(source, bounds, place), *node.args[1:], like=node) for place in range(len(ranges))]
        if not _is_pointwise(node):
            return None

        made = []
        for place, its in enumerate(ranges):
            args = [self._operand(node, operand, place, *its) for operand in node.args]
            kwargs = {name: self._operand(node, operand, place, *its) for name, operand in node.kwargs.items()}
            made.append(call(graph, target, *args, like=node, **kwargs))
        return made

    def _operand(self, node: Node, operand: Any, place: int, begin: int, end: int) -> Any:
        """The part of a broadcast operand that goes with a part of the result; what is no tensor is as it is."""
        if not isinstance(operand, Node) or not isinstance(value(operand), torch.Tensor):
            return operand
        dim = 1 - (len(shape(node)) - len(shape(operand)))
        if dim < 0 or static(shape(operand)[dim]) == 1:
            return operand
        if dim == 1 and operand in self.bounds:
            return self._part(operand, self.bounds[node], place)
        return self._cut(operand, dim, begin, end)

    def _part(self, node: Node, bounds: Bounds, place: int) -> Node:
        if self.bounds.get(node) == bounds and node in self.parts:
            return self.parts[node][place]
        return self._cut(node, 1, bounds[place], bounds[place + 1])

    def _cut(self, node: Any, dim: int, begin: int, end: int) -> Node:
        return call(self.graph, aten.slice.Tensor, node, dim, begin, end, like=node)


def _is_pointwise(node: Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or node.target in POINTWISE


def _reduced(node: Node) -> set[int]:
    """The dimensions that a reduction goes over."""
    rank, dims = len(shape(node.args[0])), argument(node, 1, "dim")  # type: ignore[arg-type]
    return {dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))}


def _bounds_of_operand(node: Node, operand: Node, bounds: Bounds) -> Bounds | None:
    """Of what a node reads part by part; None of other operands."""
    return _across(node, operand, node, operand, bounds)


def _bounds_of_user(node: Node, user: Node, bounds: Bounds) -> Bounds | None:
    """Of what is made of a node part by part; None of other users."""
    return _across(node, user, user, node, bounds)


def _across(known: Node, other: Node, reader: Node, source: Node, bounds: Bounds) -> Bounds | None:
    """The bounds of one side of an operand's use, of those of the other side; None where parts do not go with parts."""
    if not isinstance(other.meta.get("val"), torch.Tensor) or len(shape(other)) < 2:
        return None
    if reader.target in _RESHAPES:
        return _scaled(bounds, _inner(known), _inner(other))
    if reader.target in _REDUCTIONS:
        return None if _reduced(reader) & {0, 1} else bounds
    if reader.target in _LIKE_FIRST:
        return bounds if source is reader.args[0] else None
    if _is_pointwise(reader) or reader.target is aten.expand.default:
        same = len(shape(known)) == len(shape(other)) and static(shape(other)[1]) == bounds[-1]
        return bounds if same else None
    return None


def _inner(node: Node) -> int | None:
    """How many elements an index of dimension 1 stands for."""
    inner = [static(size) for size in shape(node)[2:]]
    return None if None in inner else math.prod(inner)  # type: ignore[arg-type]


def _scaled(bounds: Bounds, inner: int | None, other: int | None) -> Bounds | None:
    """The bounds in other units."""
    if not inner or not other or any(bound * inner % other for bound in bounds):
        return None
    return tuple(bound * inner // other for bound in bounds)
