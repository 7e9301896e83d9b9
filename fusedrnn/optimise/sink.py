"""Work that only an emit needs, moved behind the loop. In: a step without masks; out: what the loop stores instead, and what makes the
emits of it, for all steps at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Graph, GraphModule, Node

from ..capture.program import INVARIANT, Program, Source, Target
from .graph import aten, made_of, output, outputs, placeholders, value
from .locality import Locality, shape

_PRODUCTS = (aten.mm.default, aten.addmm.default)


@dataclass
class Sunk:
    """What was moved.

    Attributes:
        modules: by the place of an emit: a function of what was stored (``[rows, ...]``) and of the closed-over tensors that it reads.
        sources: by the place of an emit: those tensors.
        lines: for `explain`.
    """

    modules: dict[int, GraphModule] = field(default_factory=dict)
    sources: dict[int, list[Source]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def sink(program: Program, module: GraphModule, locality: Locality) -> tuple[list[Target], Sunk]:
    """Change the graph's outputs: where an emit ends in a product that nothing else needs, the product's left side is emitted in its place.

    Returns:
        The targets of the changed graph ("stored" for such an emit), and what is left to do after the loop.
    """
    graph = module.graph
    made: list[Node] = outputs(graph)
    source_of = dict(zip(placeholders(graph), program.sources, strict=True))
    invariant = made_of(graph, program.sources, INVARIANT)
    targets, sunk = list(program.targets), Sunk()
    for place, (target, node) in enumerate(zip(program.targets, made, strict=True)):
        if target.kind != "emit" or made.count(node) > 1:
            continue
        tail = _tail(node, invariant, locality)
        if tail is None:
            continue
        left, nodes = tail
        part, reads = _part(graph, left, node, nodes, invariant, source_of)
        if reads is None:
            continue
        sunk.modules[target.place], sunk.sources[target.place] = GraphModule(module, part), reads
        weights = [operand for inner in nodes if inner.target in _PRODUCTS for operand in inner.args[-1:]]
        sunk.lines += [f"a product {[int(size) for size in shape(weight) if size.is_Integer]} of an emit" for weight in weights]
        made[place] = left
        targets[place] = Target("stored", target.place)
    output(graph).args = (made,)
    graph.eliminate_dead_code()
    return targets, sunk


def _tail(node: Node, invariant: set[Node], locality: Locality) -> tuple[Node, list[Node]] | None:
    """From a product on, a chain of operators that keep rows apart whatever their number, each needed by the next only."""
    nodes: list[Node] = []
    found: Node | None = None
    seen = node
    while seen.op == "call_function":
        rows = locality.of(seen)
        if rows is None or rows.dim != 0 or rows.inner != 1 or value(seen).ndim != 2 or len(seen.users) != 1:
            break
        moving = [operand for operand in seen.all_input_nodes if operand not in invariant]
        if len(moving) != 1 or any(locality.of(operand) is not None for operand in seen.all_input_nodes if operand in invariant):
            break
        if seen.target in _PRODUCTS:
            if seen.args[-2] is not moving[0]:
                break
            found = moving[0]
        elif torch.Tag.pointwise not in getattr(seen.target, "tags", ()):
            break
        nodes.append(seen)
        seen = moving[0]
        if found is seen:
            return found, nodes
    return None


def _part(
    graph: Graph, left: Node, last: Node, nodes: Sequence[Node], invariant: set[Node], source_of: dict[Node, Source]
) -> tuple[Graph, list[Source] | None]:
    """A graph of what follows ``left``; None for its sources where it reads more than closed-over tensors."""
    needed = set(nodes)
    waiting = [operand for node in nodes for operand in node.all_input_nodes if operand in invariant]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    part = Graph()
    copies: dict[Node, Node] = {left: part.placeholder("stored")}
    copies[left].meta = dict(left.meta)
    reads: list[Source] = []
    for node in graph.nodes:
        if node in needed:
            if node.op == "placeholder":
                if source_of[node].kind != "tensor":
                    return part, None
                reads.append(source_of[node])
                copies[node] = part.placeholder(node.name)
                copies[node].meta = dict(node.meta)
            else:
                copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[last])
    return part, reads
