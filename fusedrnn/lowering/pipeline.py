"""The passes over a step, in their order. In: a program; out: the program as a lowering wants it, and what the passes found and did."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

import torch
from torch.fx import Graph, Node

from ..capture.program import INVARIANT, Program
from ..capture.turn import one_at_a_time
from ..optimise.canonicalise import canonicalise
from ..optimise.going_on import going_on
from ..optimise.graph import copied, made_of, outputs, placeholders
from ..optimise.hoist import Moved, hoist
from ..optimise.locality import Locality, Mixes, Rows, shape
from ..optimise.parts import in_parts
from ..optimise.simplify import assume_none_finished, simplify
from ..optimise.sink import Sunk, sink
from ..optimise.wavefront import Wavefront, wavefront
from .decompose import decomposed

_MOST_TRIALS = 64


@dataclass
class Optimised:
    """A program after the passes.

    Attributes:
        program: with its inputs looked up (`hoist`) and its emits cut off where the rest is made after the loop (`sink`).
        module: the graph; its attributes are constants.
        locality: where the rows are; None where they mix, or where the batch size is fixed.
        mixes: what mixes them.
        retires: nothing can be seen of what a finished row would do: the masks are gone from the graph.
        moved, sunk: what `hoist` and `sink` did.
        wavefront: how far the layers of the step are spread over steps; None where they are at one.
    """

    program: Program
    module: torch.fx.GraphModule
    locality: Locality | None
    mixes: Mixes | None
    retires: bool
    moved: Moved
    sunk: Sunk
    wavefront: Wavefront | None = None


@one_at_a_time
def optimised(
    program: Program, batch: Any, *, split: bool = False, wide: bool = False, fixed: bool = False, together: bool = False
) -> Optimised:
    """Run the passes; ``batch`` is the expression of the batch size.

    Args:
        split, wide: as `canonicalise` has them.
        fixed: rows are told apart where the batch size is a number too.
        together: rows are told apart where some values are made of all of them too.

    Raises:
        Unlowered: an operator has no rule, and torch cannot take it apart.
    """
    program, moved = looked_up(program)
    graph = copied(program.module.graph)
    simplify(graph)
    if wide:  # before torch takes sums of half precision apart with a rounding
        canonicalise(graph, _invariant(program, graph), wide=True)
    module = decomposed(graph, program.module, program.sources)
    canonicalise(module.graph, _invariant(program, module.graph), split, wide=wide)
    locality, mixes = located(program, module.graph, batch, fixed, together)
    if split and _in_parts(program, module.graph, batch, locality):
        canonicalise(module.graph, _invariant(program, module.graph), split, wide=wide)
        locality, mixes = located(program, module.graph, batch, fixed, together)
    retires = locality is not None and may_retire(program, module.graph, locality)
    if retires:
        drop_masks(program, module.graph)
        locality, mixes = located(program, module.graph, batch, fixed, together)
    sunk = Sunk()
    if retires and locality is not None and not program.apart:
        targets, sunk = sink(program, module, locality)
        program = replace(program, targets=tuple(targets))
        locality, mixes = located(program, module.graph, batch, fixed, together)
    if batch == 1:  # the loop ends with its only row: no step sees it finished
        drop_masks(program, module.graph)
    assert locality is not None or not retires
    return Optimised(program, module, locality, mixes, retires, moved, sunk)


def looked_up(program: Program, *, differentiable: bool = False) -> tuple[Program, Moved]:
    """The program with its inputs looked up where that frees work from the loop, and what that moved; ``differentiable`` as `hoist` has
    it."""
    if program.before is None:
        return hoist(going_on(program), differentiable=differentiable)
    moved: Moved = program.before[1]
    return program, replace(moved, hoisted=[*moved.hoisted])


def _in_parts(program: Program, graph: Graph, batch: Any, locality: Locality | None) -> int:
    """`in_parts`, for whoever shares out columns."""
    sources, ends = zip(placeholders(graph), program.sources, strict=True), zip(program.targets, outputs(graph), strict=True)
    carried = {node for node, source in sources if source.kind not in (*INVARIANT, "time", "finished")}
    carried |= {node for target, node in ends if isinstance(node, Node) and target.kind not in ("finished", "past", "emit")}
    one_row = set(graph.nodes) - made_of(graph, program.sources, INVARIANT) if locality is None and batch == 1 else set()

    def by_rows(node: Node) -> bool:
        if not isinstance(node.meta.get("val"), torch.Tensor) or len(shape(node)) < 2:
            return False
        return locality.of(node) == Rows(0) if locality is not None else node in one_row and shape(node)[0] == 1

    return in_parts(graph, by_rows, carried)


def spread(made: Optimised, batch: Any) -> Optimised | None:
    """The step with its layers along the diagonal (`wavefront`), its rows told apart as in the step that it is made of; None where it has
    to stay together."""
    found = wavefront(made.program, made.module) if made.retires or batch == 1 else None
    if found is None:
        return None
    program, module, front = found
    locality, mixes = located(program, module.graph, batch, fixed=True)
    if _in_parts(program, module.graph, batch, locality):  # what is stored has got a mask
        simplify(module.graph)
        locality, mixes = located(program, module.graph, batch, fixed=True)
    if (locality is None) != (made.locality is None):
        return None
    return replace(made, program=program, module=module, locality=locality, mixes=mixes, wavefront=front)


def _invariant(program: Program, graph: Graph) -> set[Node]:
    """The placeholders that are the same at every step."""
    return {node for node, source in zip(placeholders(graph), program.sources, strict=True) if source.kind in INVARIANT}


def located(
    program: Program, graph: Graph, batch: Any, fixed: bool = False, together: bool = False
) -> tuple[Locality | None, Mixes | None]:
    """Where the rows are, or what mixes them; neither for a batch of fixed size that is taken as one row."""
    if batch.is_Integer:
        found = _located_by_trial(program, graph, batch, False) if fixed and batch != 1 else None
        if found is None and fixed and together and batch != 1:
            found = _located_by_trial(program, graph, batch, True)
        return found, None
    try:
        return _checked(program, graph, Locality(program, graph, batch)), None
    except Mixes as mixes:
        if together:
            with suppress(Mixes):
                return _checked(program, graph, Locality(program, graph, batch, together=True)), None
        return None, mixes


def _checked(program: Program, graph: Graph, found: Locality) -> Locality:
    """Raises `Mixes` where an output does not have the batch first."""
    for target, node in zip(program.targets, outputs(graph), strict=True):
        rows = found.of(node)
        by_rows = target.kind in ("finished", "inputs", "state", "emit", "stored", "past") and bool(shape(node))
        if (by_rows and rows is None) or (rows is not None and (rows.dim != 0 or rows.inner != 1)):
            raise Mixes(node, f"makes a {target.kind} whose first dimension is not the batch")
    return found


def _located_by_trial(program: Program, graph: Graph, batch: Any, together: bool) -> Locality | None:
    """Where the rows are if the batch size is a number: a dimension of a closed-over tensor that has this size may be the batch or not.
    Whatever choice tells the rows apart is right: it says which elements a row is made of."""
    options: dict[Node, list[int | None]] = {}
    sources = zip(placeholders(graph), program.sources, strict=True)
    either = [node for node, source in sources if source.kind in ("tensor", "loop_state")]
    for node in [*either, *graph.find_nodes(op="get_attr")]:
        places: list[int | None] = [dim for dim, size in enumerate(shape(node)) if size == batch]
        if places:
            options[node] = [*places, None] if len(places) == 1 else [None, *places]
    for choice in islice(product(*options.values()), _MOST_TRIALS):
        with suppress(Mixes):
            found = _checked(program, graph, Locality(program, graph, batch, dict(zip(options, choice, strict=True)), together))
            if _carries(program, graph, found):
                return found
    return None


def _carries(program: Program, graph: Graph, found: Locality) -> bool:
    """Whether no leaf of loop_state that is taken to be of no row becomes one of rows."""
    after = {target.place: node for target, node in zip(program.targets, outputs(graph), strict=True) if target.kind == "loop_state"}
    before = {source.place: node for node, source in zip(placeholders(graph), program.sources, strict=True) if source.kind == "loop_state"}
    return all(found.of(node) is None or found.of(before.get(place)) is not None for place, node in after.items())


def may_retire(program: Program, graph: Graph, locality: Locality) -> bool:
    """Whether nothing can be seen of what a finished row would do: no array is written, no value is made of all rows, and loop_state
    holds nothing of rows."""
    pairs = zip(program.targets, outputs(graph), strict=True)
    return (
        not program.writes
        and not locality.over_rows
        and all(target.kind != "loop_state" or locality.of(node) is None for target, node in pairs)
    )


def drop_masks(program: Program, graph: Graph, *, differentiable: bool = False) -> None:
    """A row that is finished is not run: what protects it from the step goes. ``differentiable`` as `simplify` has it."""
    for node, source in zip(placeholders(graph), program.sources, strict=True):
        if source.kind == "finished":
            assume_none_finished(graph, node)
    simplify(graph, differentiable=differentiable)
