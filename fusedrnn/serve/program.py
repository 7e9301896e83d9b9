"""A loop whose rows come and go. In: a loop over slots; out: a program that can be begun with every row at a step of its own.

What a step hands to the next one is all state here: the inputs, or the tokens that stand for them, loop_state, and the time. It is each
row's own, and frozen where the row has finished. A sibling of `fusedrnn.derivative.segments`, which begins all rows at one step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..capture import ops
from ..capture.program import Program, Source, Target
from ..capture.refusal import NotCapturable
from ..contract import Leaf, Port, Start
from ..lowering.decompose import decomposed
from ..optimise.canonicalise import canonicalise
from ..optimise.going_on import going_on
from ..optimise.graph import aten, call, copied, location, made_of, output, outputs, placeholders, value
from ..optimise.hoist import tokens
from ..optimise.locality import Locality, Mixes
from ..optimise.per_row import batch_of, depends_on_place, per_row
from ..optimise.simplify import simplify
from ..trees import flatten


@dataclass(frozen=True)
class Staggered:
    """A program whose rows may be at different steps.

    Attributes:
        program: its sources are "finished", "state", "tensor" and "slot".
        leaves: what each leaf of its state is: "inputs", "token", "state" or "loop_state" with its place, or "time".
    """

    program: Program
    leaves: tuple[Source, ...]


def staggered(program: Program, begun: Start, token_inputs: frozenset[int]) -> Staggered:
    """Of a captured program.

    Args:
        begun: what time 0 settled.
        token_inputs: the inputs whose first tokens are known; the others are carried as they are.

    Raises:
        NotCapturable: rows depend on one another, on their place in the batch or on a seed of the loop, or the step does what has no
            value for each row.
    """
    _refuse(program)
    key = f"staggered {sorted(token_inputs)}"
    try:
        if key not in program.plans:
            program.plans[key] = _staggered(program, begun, token_inputs)
        made: Staggered = program.plans[key]
    except Mixes as mixes:
        raise NotCapturable(
            f"rows of this loop depend on one another or on one step for all: {mixes.reason}; serving needs rows that stand alone",
            mixes.location,
        ) from mixes
    return made


def for_kernel(program: Program) -> Program:
    """A staggered program for a kernel, which takes what is known before the loop from torch, that of slots too.

    Raises:
        NotCapturable: that holds a product, whose bits torch makes depend on the row's place.
    """
    key = "staggered for a kernel"
    if key not in program.plans:
        graph = program.module.graph
        of_slots = made_of(graph, program.sources, ("tensor", "slot")) - made_of(graph, program.sources, ("tensor",))
        for node in graph.nodes:
            if node in of_slots and node.target in PRODUCTS:
                raise NotCapturable(
                    "a product of what is the same at every step of a row: let `admit` multiply, and close over the result", location(node)
                )
        sources = tuple(Source("tensor", source.place) if source.kind == "slot" else source for source in program.sources)
        program.plans[key] = dataclasses.replace(program, sources=sources, plans={})
    made: Program = program.plans[key]
    return made


def _refuse(program: Program) -> None:
    if program.batch.is_number:
        raise NotCapturable(f"the step holds for {program.batch} rows only, so its rows cannot be told apart", program.fixed_at)
    if program.writes or any(source.kind.endswith(" array") for source in program.sources):
        raise NotCapturable("the loop carries a TensorArray, which belongs to no row: carry a tensor [B, ...] and write with torch.where")


def _staggered(program: Program, begun: Start, token_inputs: frozenset[int]) -> Staggered:
    program = going_on(program)
    looked_up, moved = tokens(program)
    if frozenset(moved.tables) <= token_inputs:
        program = looked_up
    graph = copied(program.module.graph)
    for node in list(graph.nodes):
        if node.target is ops.table:  # the first tokens are rows of the table
            node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code()
    sources = _without_initial(program, graph)
    program = dataclasses.replace(program, sources=sources)
    simplify(graph)
    module = decomposed(graph, program.module, sources)
    graph = module.graph
    invariant = {node for node, source in zip(placeholders(graph), sources, strict=True) if source.kind == "tensor"}
    canonicalise(graph, invariant)
    locality = Locality(program, graph, program.batch)
    sources = tuple(
        Source("slot", source.place) if source.kind == "tensor" and locality.of(node) is not None else source
        for node, source in zip(placeholders(graph), sources, strict=True)
    )
    if any(source.kind == "seed" for source in sources):
        raise NotCapturable("the loop draws from a seed of its own, which rows would share: give each row its seed, an int64 tensor [B]")
    placed = depends_on_place(graph, locality)
    if placed is not None:
        raise NotCapturable(
            "the step makes something of a row's place in the batch, and a request may be in any: give rows what they need in a tensor [B]",
            location(placed),
        )
    return _carried(program, begun, module, sources, locality)


def _without_initial(program: Program, graph: Graph) -> tuple[Source, ...]:
    """The sources, without the first inputs."""
    kept = []
    for node, source in zip(placeholders(graph), program.sources, strict=True):
        if source.kind.startswith("initial"):
            for user in node.users:
                raise Mixes(user, "needs the first inputs")
            graph.erase_node(node)
        else:
            kept.append(source)
    return tuple(kept)


def _carried(program: Program, begun: Start, module: GraphModule, sources: tuple[Source, ...], locality: Locality) -> Staggered:
    """With all that is carried in the state."""
    graph = module.graph
    batch = batch_of(graph, program.batch)
    by_source = dict(zip(sources, placeholders(graph), strict=True))
    given = [node for source, node in by_source.items() if source.kind in _CARRIED and locality.of(node) is None]
    by_rows = {source: locality.of(node) for source, node in by_source.items() if source.kind in _CARRIED and locality.of(node) is not None}
    for source, where in by_rows.items():
        if where is not None and where.dim:
            raise Mixes(by_source[source], "has its batch elsewhere than first")
    lifted = per_row(graph, given, batch, locality)
    made = dict(zip(program.targets, outputs(graph), strict=True))
    finished = by_source.get(Source("finished"))
    leaves = [source for source in by_source if source.kind in _CARRIED]
    if finished is None:
        finished = _flags(graph, batch)
        by_source = {Source("finished"): finished, **by_source}

    def of_rows(node: Node) -> Node:
        """An output with the batch first: what is the same for all rows is repeated."""
        if node in lifted or locality.of(node) is not None:
            return lifted.get(node, node)
        with graph.inserting_before(output(graph)):
            return call(graph, aten.expand.default, node, [_size(graph, finished), *value(node).shape], like=node)

    results = [of_rows(made[Target("finished")])]
    targets = [Target("finished")]
    with graph.inserting_before(output(graph)):
        for place, source in enumerate(leaves):
            before = by_source[source]
            after = call(graph, aten.add.Tensor, before, 1) if source.kind == "time" else of_rows(made.get(Target(*source), before))
            if source.kind != "state" or source not in by_rows:  # a leaf of the state that has rows is frozen already
                after = call(graph, aten.where.self, _shaped(graph, finished, after), before, after)
            results.append(after)
            targets.append(Target("state", place))
        for target, node in made.items():
            if target.kind in ("emit", "past"):
                results.append(of_rows(node))
                targets.append(target)
    output(graph).args = (results,)
    graph.eliminate_dead_code()
    simplify(graph)
    order = {node: source for source, node in by_source.items()}
    kept = tuple(
        Source("state", leaves.index(order[node])) if order[node] in leaves else order[node] for node in placeholders(graph)
    )  # fmt: skip
    graph.lint()
    port = Port("state", flatten(tuple(range(len(leaves))))[1], [_leaf(source, begun) for source in leaves])
    changed = dataclasses.replace(
        program, module=GraphModule(module, graph), sources=kept, targets=tuple(targets), state_port=port, loop_state_port=None,
        inputs_port=Port("next_input", flatten(())[1], []), keeps_loop_state=False, apart=True, before=None, plans={},
    )  # fmt: skip
    return Staggered(changed, tuple(leaves))


PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
_CARRIED = ("inputs", "token", "state", "loop_state", "time")


def _flags(graph: Graph, batch: Any) -> Node:
    """Which rows have finished, as an input that the step did not need."""
    first = placeholders(graph)[0]
    with graph.inserting_before(first):
        node = graph.placeholder("finished")
    made = value(first)
    with made.fake_mode:
        node.meta["val"] = torch.empty((batch,), dtype=torch.bool, device=made.device)
    return node


def _size(graph: Graph, rows: Node) -> Node:
    return call(graph, aten.sym_size.int, rows, 0)


def _shaped(graph: Graph, finished: Node, leaf: Node) -> Node:
    for _ in range(value(leaf).ndim - 1):
        finished = call(graph, aten.unsqueeze.default, finished, -1)
    return finished


def _leaf(source: Source, begun: Start) -> Leaf:
    if source.kind in ("time", "token"):
        return Leaf((begun.batch,), torch.int32 if source.kind == "time" else torch.int64)
    leaf = {"inputs": begun.inputs, "state": begun.state, "loop_state": begun.loop_state or []}[source.kind][source.place]
    by_row = leaf.ndim and leaf.shape[0] == begun.batch
    return Leaf(tuple(leaf.shape) if by_row else (begun.batch, *leaf.shape), leaf.dtype)
