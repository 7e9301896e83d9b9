"""The passes over a step, in their order. In: a program; out: the program as a lowering wants it, and what the passes found and did."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from ..capture.program import INVARIANT, Program
from ..optimise.canonicalise import canonicalise
from ..optimise.graph import copied, outputs, placeholders
from ..optimise.hoist import Moved, hoist
from ..optimise.locality import Locality, Mixes, shape
from ..optimise.simplify import assume_none_finished, simplify
from ..optimise.sink import Sunk, sink
from .decompose import decomposed


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
    """

    program: Program
    module: torch.fx.GraphModule
    locality: Locality | None
    mixes: Mixes | None
    retires: bool
    moved: Moved
    sunk: Sunk


def optimised(program: Program, batch: Any, *, split: bool = False, wide: bool = False) -> Optimised:
    """Run the passes; ``batch`` is the expression of the batch size.

    Args:
        split, wide: as `canonicalise` has them.

    Raises:
        Unlowered: an operator has no rule, and torch cannot take it apart.
    """
    program, moved = hoist(program)
    graph = copied(program.module.graph)
    simplify(graph)
    if wide:  # before torch takes sums of half precision apart with a rounding
        canonicalise(graph, _invariant(program, graph), wide=True)
    module = decomposed(graph, program.module, program.sources)
    canonicalise(module.graph, _invariant(program, module.graph), split, wide=wide)
    locality, mixes = located(program, module.graph, batch)
    retires = locality is not None and may_retire(program, module.graph, locality)
    if retires:
        drop_masks(program, module.graph)
        locality, mixes = located(program, module.graph, batch)
    sunk = Sunk()
    if retires and locality is not None:
        targets, sunk = sink(program, module, locality)
        program = replace(program, targets=tuple(targets))
        locality, mixes = located(program, module.graph, batch)
    if batch == 1:  # the loop ends with its only row: no step sees it finished
        drop_masks(program, module.graph)
    assert locality is not None or not retires
    return Optimised(program, module, locality, mixes, retires, moved, sunk)


def _invariant(program: Program, graph: Graph) -> set[Node]:
    """The placeholders that are the same at every step."""
    return {node for node, source in zip(placeholders(graph), program.sources, strict=True) if source.kind in INVARIANT}


def located(program: Program, graph: Graph, batch: Any) -> tuple[Locality | None, Mixes | None]:
    """Where the rows are, or what mixes them; neither for a batch of fixed size, which is taken as one row."""
    if batch.is_Integer:
        return None, None
    try:
        found = Locality(program, graph, batch)
        for target, node in zip(program.targets, outputs(graph), strict=True):
            rows = found.of(node)
            by_rows = target.kind in ("finished", "inputs", "state", "emit", "stored", "past") and bool(shape(node))
            if (by_rows and rows is None) or (rows is not None and (rows.dim != 0 or rows.inner != 1)):
                raise Mixes(node, f"makes a {target.kind} whose first dimension is not the batch")
    except Mixes as mixes:
        return None, mixes
    return found, None


def may_retire(program: Program, graph: Graph, locality: Locality) -> bool:
    """Whether nothing can be seen of what a finished row would do: no array is written, and loop_state holds nothing of rows."""
    pairs = zip(program.targets, outputs(graph), strict=True)
    return not program.writes and all(target.kind != "loop_state" or locality.of(node) is None for target, node in pairs)


def drop_masks(program: Program, graph: Graph) -> None:
    """A row that is finished is not run: what protects it from the step goes."""
    for node, source in zip(placeholders(graph), program.sources, strict=True):
        if source.kind == "finished":
            assume_none_finished(graph, node)
    simplify(graph)
