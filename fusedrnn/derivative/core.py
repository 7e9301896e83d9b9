"""The part of a step that has to be differentiated in a loop. In: a program; out: a step that takes what is known before the loop, what is
carried and the time, and a function that makes what is known.

What a step makes of the closed-over tensors alone is made once before the loop: torch differentiates that as it does anything. The
derivative of the loop ends at those values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..capture import ops
from ..capture.program import INVARIANT, Program, Source, Target
from ..capture.refusal import NotCapturable
from ..capture.sizes import function_of
from ..lowering.operators import Unlowered
from ..lowering.pipeline import drop_masks, looked_up, optimised
from ..optimise.graph import copied, location, made_of, outputs, placeholders, value
from ..optimise.hoist import Moved
from ..optimise.simplify import simplify

Known = Callable[..., Sequence[torch.Tensor]]

_TORCHS = {ops.table: lambda table, first: torch.cat([table, first])}  # as a function that has a derivative


@dataclass(frozen=True)
class Core:
    """A step whose inputs are settled.

    Attributes:
        hoisted: the program, its inputs looked up (`fusedrnn.optimise.hoist`) and, if its rows leave when they finish, without masks.
        moved: what that did.
        retires: rows leave when they finish: nothing can be seen of what they would do later.
        step: the graph. It takes ``sources`` and then the values of ``known``.
        sources: time, finished flags and what is carried.
        known: the values that are known before the loop, as nodes of ``hoisted``.
        made: makes them of the sources ``needs``.
    """

    hoisted: Program
    moved: Moved
    retires: bool
    step: Graph
    sources: tuple[Source, ...]
    known: tuple[Node, ...]
    made: Known
    needs: tuple[Source, ...]

    def table_size(self, place: int, tensors: Sequence[torch.Tensor]) -> int:
        """How many words the table has that an input's tokens are looked up in, for the closed-over tensors."""
        size, names = function_of(self.moved.tables[place])
        found = {name: self.hoisted.symbols[name] for name in names}
        return size({name: tensors[at].shape[dim] for name, (at, dim) in found.items()})

    @property
    def targets(self) -> tuple[Target, ...]:
        """Of the step."""
        return self.hoisted.targets


def core(program: Program) -> Core:
    """Split a step at what is known before the loop.

    Raises:
        NotCapturable: it has an operator that no compiled loop knows.
    """
    try:
        retires = optimised(program, program.batch).retires
    except Unlowered as unlowered:
        raise NotCapturable(unlowered.reason, unlowered.location) from unlowered
    for node in program.module.graph.nodes:
        if node.target is torch.ops.aten.embedding.default and len(node.args) > 3 and node.args[3]:
            raise NotCapturable("an embedding's gradient depends on how often a step looks a row up (scale_grad_by_freq)", location(node))
    found, moved = looked_up(program, differentiable=True)
    graph = copied(found.module.graph)
    hoisted = dataclasses.replace(found, module=GraphModule(found.module, graph), plans={})
    graph = hoisted.module.graph
    simplify(graph, differentiable=True)
    if retires:
        drop_masks(hoisted, graph, differentiable=True)
    source_of = dict(zip(placeholders(graph), hoisted.sources, strict=True))
    invariant = made_of(graph, hoisted.sources, INVARIANT)
    known, inner = _boundary(graph, invariant)
    step = Graph()
    copies: dict[Node, Node] = {}
    sources: list[Source] = []
    for node, source in source_of.items():
        if source.kind not in INVARIANT:
            copies[node] = _placeholder(step, node)
            sources.append(source)
    for node in known:
        copies[node] = _placeholder(step, node)
    for node in graph.nodes:
        if node.op != "output" and node not in copies and (node not in invariant or node in inner):
            copies[node] = step.node_copy(node, copies.__getitem__)
    step.output([copies[node] for node in outputs(graph)])
    made, needs = _function(hoisted.module, known, source_of)
    return Core(hoisted, moved, retires, step, tuple(sources), tuple(known), made, needs)


def _placeholder(graph: Graph, like: Node) -> Node:
    node = graph.placeholder(like.name)
    node.meta = dict(like.meta)
    return node


def _boundary(graph: Graph, invariant: set[Node]) -> tuple[list[Node], set[Node]]:
    """The known tensors that the rest reads, in order, and what is made of them without being a tensor, such as a size."""
    wanted = [operand for node in graph.nodes if node not in invariant for operand in node.all_input_nodes if operand in invariant]
    known: set[Node] = set()
    inner: set[Node] = set()
    while wanted:
        node = wanted.pop()
        if node in known or node in inner:
            continue
        if isinstance(value(node), torch.Tensor):
            known.add(node)
        else:
            inner.add(node)
            wanted += node.all_input_nodes
    return [node for node in graph.nodes if node in known], inner


def _function(module: GraphModule, wanted: Sequence[Node], source_of: Mapping[Node, Source]) -> tuple[Known, tuple[Source, ...]]:
    """What makes some values of the sources that are the same at every step, with those sources."""
    needed, waiting = set[Node](), list(wanted)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    graph, copies, sources = Graph(), dict[Node, Node](), list[Source]()
    for node in module.graph.nodes:
        if node in needed and node.op == "placeholder":
            copies[node] = graph.placeholder(node.name)
            sources.append(source_of[node])
    for node in module.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in wanted))
    made: Any = GraphModule(module, copied(graph, {**ops.PYTHON, **_TORCHS}))
    return made, tuple(sources)
