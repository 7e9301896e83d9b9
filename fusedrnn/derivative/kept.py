"""What a step keeps for its derivative. In: a `Joint`; out: the values to store at every step, from which the rest is made again.

A minimum cut between what is carried and what the derivative reads, by bytes, as in He and Yu, "Transcending Runtime-Memory Tradeoffs in
Checkpointing by being Fusion Aware", MLSys 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ..capture import ops
from ..capture.sizes import expression
from ..optimise.graph import TRANSPARENT, aten, value
from .joint import Joint

_CHEAP = {
    *TRANSPARENT, ops.read, ops.draw, aten.slice.Tensor, aten.select.int, aten.cat.default, aten.expand.default, aten.permute.default,
    aten.t.default, aten.transpose.int, aten._to_copy.default, aten.full.default, aten.zeros_like.default, aten.ones_like.default,
    aten.scalar_tensor.default, aten.embedding.default, aten.arange.default, aten.arange.start_step, aten.full_like.default,
    aten.new_zeros.default, aten.zeros.default, aten.stack.default, aten.split.Tensor, aten.unbind.int, aten.sym_size.int,
}  # fmt: skip
# What these make is kept as what they are made of.
_VIEWS = {*TRANSPARENT, aten.t.default, aten.transpose.int, aten.permute.default, aten.expand.default}
_COMPARISONS = {
    overload for name in ("eq", "ne", "lt", "le", "gt", "ge") for overload in (getattr(aten, name).Tensor, getattr(aten, name).Scalar)
}
_FURTHER = 1.1  # times the bytes for each node that would have to be made again: of equals, the last made is kept


@dataclass(frozen=True)
class Kept:
    """A choice of what to keep.

    Attributes:
        nodes: of the joint graph.
        again: everything may be made again, products too: the state alone is kept.
        bytes_per_row: of a step.
    """

    nodes: tuple[Node, ...]
    again: bool
    bytes_per_row: int


def kept(joint: Joint, needed: Iterable[Node], batch: Any, *, again: bool = False) -> Kept | None:
    """The values that have to be stored so that the nodes ``needed`` can be made in the backward; None where there is no choice.

    Args:
        needed: nodes of the forward.
        batch: the batch size as an expression.
        again: let products and reductions be made again too.
    """
    import networkx  # torch needs it too

    free = _free(joint)
    flow = networkx.DiGraph()
    flow.add_nodes_from(("carried", "backward"))
    waiting, seen = [(node, 0) for node in needed if node not in free], set[Node]()
    for node, _ in waiting:
        flow.add_edge((node, 1), "backward")
    far: dict[Node, int] = {}
    while waiting:
        node, distance = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        far[node] = distance
        may_be_kept = isinstance(value(node), torch.Tensor) and node.target not in _VIEWS
        _edge(flow, (node, 0), (node, 1), _bytes(value(node), batch) * _FURTHER ** min(distance, 40) if may_be_kept else math.inf)
        if node.op == "placeholder" or _compares(node) or not (again or _is_cheap(node)):
            _edge(flow, "carried", (node, 0), math.inf)
            continue
        for operand in node.all_input_nodes:
            if operand not in free:
                _edge(flow, (operand, 1), (node, 0), math.inf)
                waiting.append((operand, distance + 1))
    try:
        _, (reached, _) = networkx.minimum_cut(flow, "carried", "backward")
    except networkx.NetworkXUnbounded:
        return None
    found = tuple(node for node in joint.graph.nodes if node in seen and (node, 0) in reached and (node, 1) not in reached)
    return Kept(found, again, sum(round(_bytes(value(node), batch)) for node in found))


def _edge(flow: Any, begin: Any, end: Any, capacity: float) -> None:
    if math.isinf(capacity):
        flow.add_edge(begin, end)  # networkx takes an edge without a capacity as one without a bound
    else:
        flow.add_edge(begin, end, capacity=capacity)


def _free(joint: Joint) -> set[Node]:
    """What depends on the time, the finished flags and on what is known alone, and is cheap: the backward makes it again."""
    found = {node for node, source in joint.sources.items() if source.kind in ("time", "finished", "seed")} | set(joint.known)
    for node in joint.graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function"
            and (_is_cheap(node) or not isinstance(value(node), torch.Tensor))
            and all(operand in found for operand in node.all_input_nodes)
        ):
            found.add(node)
    return found


def _is_cheap(node: Node) -> bool:
    if node.op != "call_function":
        return True
    tags = getattr(node.target, "tags", ())
    return node.target in _CHEAP or torch.Tag.pointwise in tags or not isinstance(node.target, torch._ops.OpOverload)


def _compares(node: Node) -> bool:
    """Whether it tells real numbers apart. Made again by other kernels, which round otherwise, two that are equal would differ."""
    operands = [value(operand) for operand in node.all_input_nodes] if node.target in _COMPARISONS else []
    return any(isinstance(operand, torch.Tensor) and operand.is_floating_point() for operand in operands)


def hint(size: Any) -> int:
    """A size as it was where the step was captured."""
    return size if isinstance(size, int) else int(size.node.hint or 1)


def _bytes(made: torch.Tensor, batch: Any) -> float:
    """Of one row; of what is no row's a little more than it is, so that rows are preferred."""
    by_rows = bool(made.ndim) and expression(made.shape[0]) == batch
    numbers = math.prod(hint(size) for size in (made.shape[1:] if by_rows else made.shape)) * made.element_size()
    return float(numbers) if by_rows else numbers + 1.0


def forward_operands(joint: Joint, gradients: Iterable[Node]) -> set[Node]:
    """The nodes of the forward that the backward of some gradients reads."""
    found, seen, waiting = set[Node](), set[Node](), list(gradients)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in joint.backward:
            waiting += node.all_input_nodes
        else:
            found.add(node)
    return found
