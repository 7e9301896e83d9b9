"""Sorts. In: a step with ``sort`` and ``topk``; out: the same with the rank of every element, and what stands at each rank.

Every program compares its elements with all others of the row, which is O(N) a column and needs no exchange but that of the vector: a
rank is how many elements stand before, so that equal ones keep their order. The ranks are exchanged like any vector.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from ...optimise.graph import aten, replace, value
from ..pipeline import Optimised
from . import types
from .rule import Lowering, rule


def rank(x: torch.Tensor, dim: int, descending: bool) -> torch.Tensor:
    """int32 of x's shape: the place of each element along ``dim`` when it is sorted, NaN above all; equal ones keep their order."""
    return x.argsort(dim=dim, descending=descending, stable=True).argsort(dim).to(torch.int32)


def ranked(x: torch.Tensor, ranks: torch.Tensor, dim: int, size: int | None) -> torch.Tensor:
    """The elements of the ranks 0 to ``size - 1``, or of all."""
    return x.gather(dim, ranked_place(ranks, dim, size))


def ranked_place(ranks: torch.Tensor, dim: int, size: int | None) -> torch.Tensor:
    """int64: where they stand."""
    places = ranks.argsort(dim)
    return places if size is None else places.narrow(dim, 0, size)


def take_sorts_apart(made: Optimised) -> None:
    """Replace sorts and the largest elements by ranks."""
    graph = made.module.graph
    for node in list(graph.nodes):
        if node.target not in (aten.sort.default, aten.sort.stable, aten.topk.default):
            continue
        source, dim, descending, size = _arguments(node)
        if not all(user.target is operator.getitem for user in node.users):
            continue
        with graph.inserting_before(node):
            ranks = _made(made, node, rank, (source, dim, descending), value(source).to(torch.int32))
            for user in list(node.users):
                result = value(node)[user.args[1]]
                first, arguments = (ranked, (source, ranks, dim, size)) if user.args[1] == 0 else (ranked_place, (ranks, dim, size))
                replace(user, _made(made, node, first, arguments, result))
        graph.erase_node(node)


def _arguments(node: Node) -> tuple[Any, int, bool, int | None]:
    """What is sorted, the dimension, whether the greatest come first, and how many are asked for: None for all."""
    target: Any = node.target
    names = [argument.name for argument in target._schema.arguments]
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    source = given["self"]
    dim = int(given.get("dim", -1)) % max(value(source).ndim, 1)
    return source, dim, bool(given.get("descending", given.get("largest", node.target is aten.topk.default))), given.get("k")


def _made(made: Optimised, node: Node, target: Any, arguments: tuple[Any, ...], result: Any) -> Node:
    new = made.module.graph.call_function(target, arguments)
    new.meta["val"], new.meta["stack_trace"] = result, node.meta.get("stack_trace")
    if made.locality is not None:
        made.locality.rows[new] = made.locality.of(arguments[0])
    return new


def _key(x: str, dtype: torch.dtype, descending: bool) -> str:
    """An integer that is the greater, the earlier an element stands."""
    key = f"order(tl.where({x} == 0, 0.0, {x}))" if dtype.is_floating_point else types.cast(x, dtype, torch.int64)
    return key if descending else f"(~{key})"


@rule(rank)
def _rank(self: Lowering) -> str:
    source, dim, descending = self.node.args
    place, index, dtype = self.writer.place(source, dim), self.index, value(source).dtype
    mine = _key(self.at(source, index), dtype, descending)

    def update(count: Any, so_far: str) -> str:
        other = _key(self.at(source, [*index[:place], count, *index[place + 1 :]]), dtype, descending)
        return f"{so_far} + (({other} > {mine}) | (({other} == {mine}) & ({count} < {self.text(index[place])}))).to(tl.int32)"

    return self.writer.accumulate(self.dims[place], "tl.int32", "0", self.columns, update)


@rule(ranked, ranked_place)
def _ranked(self: Lowering) -> str:
    *source, ranks, dim, _ = self.node.args
    place, index, dtype = self.writer.place(ranks, dim), self.index, self.dtype

    def update(count: Any, so_far: str) -> str:
        there = [*index[:place], count, *index[place + 1 :]]
        element = f"{count}"
        if source:
            element = self.at(source[0], there)
            element = f"({element}).to(tl.int32)" if dtype == torch.bool else element
        return f"tl.where({self.at(ranks, there)} == {self.text(index[place])}, {element}, {so_far})"

    zero = "0.0" if dtype.is_floating_point else "0"
    made = self.writer.accumulate(self.writer.dims(ranks)[place], types.carried_in(dtype), zero, self.columns, update)
    return f"({made} != 0)" if dtype == torch.bool else made
