"""When each part of a step is computed. In: a step graph; out: what is known before the loop, and the phases of a step between products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import Graph, Node

from ..capture import ops
from ..capture.program import INVARIANT, Program
from ..optimise.graph import aten, value

_INLINE = {
    aten.permute.default, aten.t.default, aten.transpose.int, aten.unsqueeze.default, aten.expand.default, aten.select.int,
    aten.slice.Tensor, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default,
}  # fmt: skip
_MADE = {
    aten.full.default, aten.zeros.default, aten.ones.default, aten.arange.default, aten.arange.start, aten.arange.start_step,
    aten.scalar_tensor.default, aten.empty.memory_format,
}  # fmt: skip
_IN_ORDER = {
    aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.alias.default, aten.detach.default, aten.clone.default,
}  # fmt: skip
_REAL = (torch.float32, torch.float64)


@dataclass
class Product:
    """A product with a weight, ``[rows, m, K] @ [K, N]``.

    Attributes:
        node: of the graph.
        left: what is multiplied.
        weight: the node of the weight, known before the loop.
        carried: the carried leaf that ``left`` is, element for element; None where a phase computes it.
        after: the phase that computes ``left``; -1 before the first.
        ahead: ``left`` depends on nothing but the time: the product is made for several steps at once.
    """

    node: Node
    left: Node
    weight: Node
    carried: Node | None
    after: int
    ahead: bool = False


@dataclass
class Stages:
    """The stages of a step.

    Attributes:
        invariant: the nodes that are the same at every step.
        before: those of them that are computed before the loop and read in it, in order.
        weights: those that are weights of products.
        products: in order.
        phase_of: of each node that is computed in a step, the earliest phase that can do it.
        phases: how many there are.
        outputs: the node of each output, in the order of the program's targets.
        carried: the placeholders that a step changes.
    """

    invariant: set[Node] = field(default_factory=set)
    before: list[Node] = field(default_factory=list)
    weights: list[Node] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    phase_of: dict[Node, int] = field(default_factory=dict)
    phases: int = 1
    outputs: list[Any] = field(default_factory=list)
    carried: list[Node] = field(default_factory=list)


def stages(program: Program, graph: Graph, of_rows: Callable[[Node], bool]) -> Stages:
    """The stages of a graph; ``of_rows`` says whether a node's result belongs to rows."""
    found = Stages()
    timed: set[Node] = set()
    sources = iter(program.sources)
    for node in graph.nodes:
        if node.op == "placeholder":
            kind = next(sources).kind
            if kind in INVARIANT:
                found.invariant.add(node)
            elif kind == "slot":
                found.phase_of[node] = 0
            else:
                if kind == "time":
                    timed.add(node)
                found.carried.append(node)
                found.phase_of[node] = 0
        elif node.op == "get_attr":
            found.invariant.add(node)
        elif node.op == "output":
            found.outputs = pytree.tree_leaves(node.args[0])
        elif all(operand in found.invariant for operand in node.all_input_nodes):
            found.invariant.add(node)
        elif _is_product(node, found, of_rows):
            left, weight = node.args[0], narrow(node.args[1])
            carried = _carried(left, found)
            if left in timed:
                found.products.append(Product(node, left, weight, None, -1, ahead=True))
                found.phase_of[node] = 0
                continue
            after = -1 if carried is not None else found.phase_of[left]
            found.products.append(Product(node, left, weight, carried, after))
            found.phase_of[node] = after + 1
            found.phases = max(found.phases, after + 2)
        else:
            if _depends_on_time(node, timed, found.invariant):
                timed.add(node)
            found.phase_of[node] = max(found.phase_of[operand] for operand in node.all_input_nodes if operand in found.phase_of)
    found.weights = list(dict.fromkeys(product.weight for product in found.products))
    found.before = _before(graph, found)
    return found


def _depends_on_time(node: Node, timed: set[Node], invariant: set[Node]) -> bool:
    known = all(operand in timed or operand in invariant for operand in node.all_input_nodes)
    return known and node.target not in ops.MAY_FAIL  # for a step that may never be, no look-up is made


def _is_product(node: Node, found: Stages, of_rows: Callable[[Node], bool]) -> bool:
    if node.target != aten.mm.default or not all(isinstance(operand, Node) for operand in node.args):
        return False
    left, weight = node.args
    floating = value(node).dtype.is_floating_point
    return floating and weight in found.invariant and left not in found.invariant and of_rows(left)  # type: ignore[arg-type]


def narrow(weight: Node) -> Node:
    """The bfloat16 that a weight was widened from, as products widen it themselves."""
    if weight.target != aten._to_copy.default or value(weight).dtype != torch.float32:
        return weight
    source = weight.args[0]
    return source if isinstance(source, Node) and value(source).dtype == torch.bfloat16 else weight


def _carried(node: Node, found: Stages) -> Node | None:
    """The carried leaf that holds the elements of a node in their order."""
    node = in_order(node)
    return node if node in found.carried and value(node).dtype in _REAL else None


def in_order(node: Node) -> Node:
    """The node that holds the elements of a node in their order: what it is a view of."""
    while node.op == "call_function" and node.target in _IN_ORDER:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _before(graph: Graph, found: Stages) -> list[Node]:
    """The invariant nodes that the loop reads, cheap views of others aside: those are read through."""
    needed: dict[Node, None] = {}

    def need(wanted: Node) -> None:
        waiting = [wanted]
        while waiting:
            node = waiting.pop()
            operands = [operand for operand in reversed(node.all_input_nodes) if isinstance(value(operand), torch.Tensor)]
            if node.op in ("placeholder", "get_attr"):
                needed[node] = None
            elif node.target in _MADE or (node.target in _INLINE and len(operands) == len(node.all_input_nodes)):
                waiting += operands
            elif isinstance(value(node), torch.Tensor):
                needed[node] = None

    only_weights = {product.node: product.node.args[1] for product in found.products}
    for node in graph.nodes:
        if node in found.invariant:
            continue
        if node.op == "placeholder" and node not in found.carried:
            needed[node] = None
        for operand in pytree.tree_leaves(node.args[0]) if node.op == "output" else node.all_input_nodes:
            if isinstance(operand, Node) and operand in found.invariant and only_weights.get(node) is not operand:
                need(operand)
    return list(needed)
