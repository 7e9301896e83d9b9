"""Weights of one byte. In: a step whose products have weights ``q.to(dtype) * scale``; out: products with the bytes, and the scales behind.

``x @ (q * s)`` is ``(x @ q) * s`` where s has one number for each column of the product: a kernel then holds the bytes only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from ...capture.program import INVARIANT
from ...optimise.graph import aten, call, made_of, replace, value
from ..pipeline import Optimised

BYTES = (torch.int8, torch.float8_e4m3fn)
_CONVERSIONS = (aten._to_copy.default, torch.ops.prims.convert_element_type.default)
_SAME = (aten.clone.default, aten.detach.default, aten.alias.default, aten.contiguous.default)
_TURNS = (aten.t.default, aten.numpy_T.default, aten.transpose.int, aten.permute.default)


def bytes_of(weight: Any) -> Node | None:
    """The bytes that a weight is a conversion of; None of any other."""
    if isinstance(weight, Node) and weight.target in _CONVERSIONS and value(weight).dtype.is_floating_point:
        source = weight.args[0]
        if isinstance(source, Node) and value(source).dtype in BYTES:
            return source
    return None


def take_scales_apart(made: Optimised) -> None:
    """Multiply with the scales behind the products that a kernel makes: it sums in float32, in which codes times a half precision fit."""
    graph = made.module.graph
    before = made_of(graph, made.program.sources, {*INVARIANT, "time"})
    for node in list(graph.nodes):
        if node.target is not aten.mm.default or node.args[0] in before:
            continue
        left, weight = node.args
        with graph.inserting_before(node):
            found = _apart(graph, weight)
            if found is None or value(found[1]).shape[0] != 1:
                continue
            codes, scale = found
            converted = call(graph, aten._to_copy.default, codes, dtype=value(weight).dtype, like=node)
            product = call(graph, aten.mm.default, left, converted, like=node)
            scaled = call(graph, aten.mul.Tensor, product, scale, like=node)
        if made.locality is not None:
            made.locality.rows[product] = made.locality.rows[scaled] = made.locality.of(node)
        replace(node, scaled)
    graph.eliminate_dead_code()


def _apart(graph: Graph, node: Any) -> tuple[Node, Node] | None:
    """Bytes ``[K, N]`` and scales that broadcast to them, whose product a node is."""
    if not isinstance(node, Node) or node.op != "call_function" or value(node).ndim != 2:
        return None
    if node.target is aten.mul.Tensor:
        for codes, scale in (node.args, reversed(node.args)):
            source = bytes_of(codes)
            whole = source is not None and value(source).shape == value(node).shape
            if source is not None and whole and isinstance(scale, Node) and value(scale).ndim == 2:
                return source, scale
        return None
    if node.target in _SAME:
        return _apart(graph, node.args[0])
    if node.target in _TURNS or node.target is aten.slice.Tensor:
        found = _apart(graph, node.args[0])
        if found is None:
            return None
        codes, scale = found
        rest = node.args[1:]
        whole = node.target is aten.slice.Tensor and value(scale).shape[rest[0] if rest else 0] == 1
        return call(graph, node.target, codes, *rest, like=node), scale if whole else call(graph, node.target, scale, *rest, like=node)
    if node.target is aten.cat.default:
        parts: Any = [_apart(graph, part) for part in node.args[0]]  # type: ignore[union-attr]
        dim = node.args[1] if len(node.args) > 1 else 0
        if None in parts or len({value(codes).dtype for codes, _ in parts}) > 1 or any(value(scale).shape[dim] == 1 for _, scale in parts):
            return None
        return tuple(call(graph, aten.cat.default, [part[at] for part in parts], dim, like=node) for at in (0, 1))  # type: ignore[return-value]
    return None
