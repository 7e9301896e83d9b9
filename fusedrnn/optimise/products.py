"""What products are made of. In: a graph or an operand of a product; out: what depends on what, and the matrix that an operand repeats."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch.fx import Graph, Node

from .graph import aten, value
from .shapes import VIEWS, flattened, same, shape, static, transposed

HALVES = (torch.float16, torch.bfloat16)
_SAME_ELEMENTS = (aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default)


def depends_on(graph: Graph, roots: Iterable[Node]) -> set[Node]:
    """The roots and every node that is made of the elements of one, not only of a size."""
    found = set(roots)
    for node in graph.nodes:
        if node.target is not aten.sym_size.int and found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def is_half(node: Node) -> bool:
    """Whether a sum rounds to half precision, so that a sum in two parts rounds twice."""
    return value(node).dtype in HALVES


def repeated_matrix(x: Node, like: Node) -> Node | None:
    """The matrix ``[R, C]`` that ``x: [..., R, C]`` holds at every place of its leading dimensions, None if there may be several."""
    dims = shape(x)
    if len(dims) == 2:
        return x
    if len(dims) > 2 and math.prod(static(size) or 0 for size in dims[:-2]) == 1:
        return flattened(x.graph, x, like)
    if x.op != "call_function":
        return None
    source: Node = x.args[0]  # type: ignore[assignment]
    if x.target in _SAME_ELEMENTS:
        return repeated_matrix(source, like)
    inner = shape(source) if isinstance(source, Node) else ()
    if len(inner) >= 2 and x.target in (*VIEWS, aten.expand.default, aten.unsqueeze.default) and same(inner[-2:], dims[-2:]):
        return repeated_matrix(source, like)
    order = _swap(x)
    if order is None:
        return None
    matrix = repeated_matrix(source, like)
    return matrix if matrix is None or not order else transposed(x.graph, matrix, like)


def _swap(x: Node) -> bool | None:
    """Whether a permutation swaps the last two dimensions; None if it is none, or brings others there."""
    rank, arguments = len(shape(x)), cast(tuple[Any, ...], x.args)
    if x.target is aten.transpose.int:
        moved = {dim % rank for dim in arguments[1:3]}
        return True if moved == {rank - 2, rank - 1} else False if max(moved) < rank - 2 else None
    if x.target is not aten.permute.default:
        return None
    last = [dim % rank for dim in arguments[1]][-2:]
    return {(rank - 2, rank - 1): False, (rank - 1, rank - 2): True}.get((last[0], last[1]))
