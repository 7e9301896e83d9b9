"""The place of the greatest of integers. In: a step with ``argmax``, ``argmin``, ``max`` and ``min`` of integers; out: the same with two
reductions: the greatest, and the first place where it stands.

Of float32 numbers one reduction finds both (`fusedrnn.kernels.gpu.argmax`): the number and its place are one key. An int64 leaves no room.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from ...optimise.graph import aten, call, replace, value
from ...optimise.shapes import argument
from ..pipeline import Optimised
from .rule import Lowering, rule

_LARGEST = {aten.argmax.default: aten.amax.default, aten.argmin.default: aten.amin.default}
_BEHIND_ALL = (1 << 31) - 1  # no place is so far back
_PAIRS = {aten.max.dim: aten.amax.default, aten.min.dim: aten.amin.default}


def place_along(x: torch.Tensor, dim: int) -> torch.Tensor:
    """int64 of x's shape: the place of each element along ``dim``."""
    places = torch.arange(x.shape[dim], device=x.device)
    return places.reshape(-1, *[1] * (x.ndim - 1 - dim)).expand(x.shape)


@rule(place_along)
def _place_along(self: Lowering) -> str:
    x, dim = self.node.args
    return f"({self.text(self.index[self.writer.place(x, dim)])} + tl.zeros((1, 1), tl.int64))"


def take_arguments_apart(made: Optimised) -> None:
    """Replace them."""
    for node in list(made.module.graph.nodes):
        source: Any = node.args[0] if node.args else None
        if node.target not in (*_LARGEST, *_PAIRS) or value(source).dtype.is_floating_point:
            continue
        dim: Any = argument(node, 1, "dim")
        keeps = argument(node, 2, "keepdim", False)
        if dim is None:
            if value(source).ndim != 1:
                with made.module.graph.inserting_before(node):
                    source = _new(made, call(made.module.graph, aten.view.default, source, [-1], like=node), source)
            dim = 0
        dim %= max(value(source).ndim, 1)
        if node.target in _PAIRS:
            for user in list(node.users):
                if user.target is operator.getitem:
                    find = _greatest if user.args[1] == 0 else _place
                    replace(user, find(made, user, _PAIRS[node.target], source, dim, bool(keeps)))
            if not node.users:
                made.module.graph.erase_node(node)
        else:
            replace(node, _place(made, node, _LARGEST[node.target], source, dim, bool(keeps)))


def _greatest(made: Optimised, node: Node, reduce: Any, source: Node, dim: int, keeps: bool) -> Node:
    with made.module.graph.inserting_before(node):
        return _new(made, call(made.module.graph, reduce, source, [dim], keeps, like=node), node)


def _place(made: Optimised, node: Node, reduce: Any, source: Node, dim: int, keeps: bool) -> Node:
    graph: Graph = made.module.graph
    with graph.inserting_before(node):
        best = _new(made, call(graph, reduce, source, [dim], True, like=node), source)
        stands = _new(made, call(graph, aten.eq.Tensor, source, best, like=node), source)
        place = _new(made, call(graph, place_along, source, dim, like=node), source)
        first = _new(made, call(graph, aten.where.ScalarOther, stands, place, _BEHIND_ALL, like=node), source)
        return _new(made, call(graph, aten.amin.default, first, [dim], keeps, like=node), node)


def _new(made: Optimised, new: Node, rows_of: Node) -> Node:
    if made.locality is not None:
        made.locality.rows[new] = made.locality.of(rows_of)
    return new
