"""A loop that can be begun at any step. In: a program; out: one that carries all it needs in its state and adds an offset to the time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from ..capture.program import Program, Source, Target
from ..lowering.pipeline import looked_up
from ..optimise.graph import aten, call, copied, fake_mode, placeholders
from ..optimise.simplify import simplify


@dataclass(frozen=True)
class Segment:
    """A program whose steps may be run a few at a time.

    Attributes:
        program: its last closed-over tensor is the number of steps before, 0-d int32.
        offset: the place of that.
        moved: what the leaves of the state behind the program's own are: inputs, and tokens that stand for inputs.
    """

    program: Program
    offset: int
    moved: tuple[Source, ...]


def segment(program: Program, tensors: int) -> Segment:
    """Of a program that closes over so many tensors."""
    made, found = looked_up(program, differentiable=True)
    graph = copied(made.module.graph)
    own = len(made.state_port.leaves)
    sources, targets, moved = list(made.sources), list(made.targets), list[Source]()
    for place, source in enumerate(sources):
        if source.kind in ("inputs", "token"):
            sources[place] = Source("state", own + len(moved))
            targets = [Target(*sources[place]) if target == Target(*source) else target for target in targets]
            moved.append(source)
    before = placeholders(graph)
    clock = next((node for node, source in zip(before, sources, strict=True) if source.kind == "time"), None)
    if clock is not None:
        with graph.inserting_after(before[-1]):
            offset = graph.placeholder("offset")
        with fake_mode(graph):
            offset.meta["val"] = torch.empty((), dtype=torch.int32)
        sources.append(Source("tensor", tensors))
        with graph.inserting_after(offset):
            now = call(graph, aten.add.Tensor, clock, offset)
        clock.replace_all_uses_with(now, delete_user_cb=lambda user: user is not now)
    simplify(graph, differentiable=True)
    graph.lint()
    changed = dataclasses.replace(
        made, module=GraphModule(made.module, graph), sources=tuple(sources), targets=tuple(targets), before=(program, found), plans={}
    )  # fmt: skip
    return Segment(changed, tensors, tuple(moved))
