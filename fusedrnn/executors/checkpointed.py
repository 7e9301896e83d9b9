"""A compiled loop that keeps its state every few steps. In: a call; out: what it leaves, whose backward runs those steps again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..capture.program import Program, Source, Target
from ..contract import Start
from ..derivative.segments import Segment, segment
from .differentiated import STACKED, Derived, DerivedRun, Gradients, Run, derived, of_known, parted, trees
from .native_call import End

_RETURNED = ("state", "loop_state")


@dataclass(frozen=True)
class _Place:
    """Where a segment stands among what is kept.

    Attributes:
        before: steps before it.
        left: its steps and flags.
        kept: places of the leaves of its state and loop_state that are tensors, and of its finished flags.
        leaves: of both trees; None for those tensors.
    """

    before: int
    left: End
    kept: range
    leaves: dict[str, list[Any] | None]


def segments(program: Program, tensors: int) -> Segment:
    """Of a program, made when first asked for."""
    if "segment" not in program.plans:
        program.plans["segment"] = segment(program, tensors)
    found: Segment = program.plans["segment"]
    return found


def derived_segment(program: Program, tensors: int, needed: frozenset[Source]) -> Derived:
    """The derivative of a few steps.

    Raises:
        NotCapturable: there is none as a loop.
    """
    found = segments(program, tensors)
    own = len(program.state_port.leaves)
    carried = {Source("state", own + place) for place, source in enumerate(found.moved) if source in needed}
    return derived(found.program, needed | carried)


class CheckpointedRun(DerivedRun):
    """One call.

    Args:
        made: the derivative of a few steps.
        run: the call.
        every: that many.
    """

    def __init__(self, made: Derived, run: Run, every: int, part: Segment) -> None:
        super().__init__(made, run)
        self._every, self._part = every, part
        self._places: list[_Place] = []

    def forward(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        begun, closed_over = self.started(tensors)
        now = replace(begun, state=[*begun.state, *self._first(begun, closed_over)])
        limit, before = self.call.max_steps, 0
        kept: list[torch.Tensor] = []
        ends: list[End] = []
        while True:
            steps = self._every if limit is None else min(self._every, limit - before)
            found = self.run(self._part.program, now, self._with(closed_over, before), replace(self.call, max_steps=steps))
            if found is None:
                return []
            kept += self._keep(before, found, now, len(kept))
            ends.append(found)
            before += found.steps
            now = replace(
                now, finished=found.finished, state=found.leaves["state"], loop_state=now.loop_state and found.leaves["loop_state"]
            )
            if before == limit or bool(found.finished.all()):
                break
        self.ended = _joined(ends, len(begun.state), self.program)
        return kept

    def _first(self, begun: Start, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the state holds at time 0 behind the program's own leaves."""
        return [
            begun.inputs[source.place] if source.kind == "inputs" else self.first_tokens(source.place, begun, tensors)
            for source in self._part.moved
        ]

    def _with(self, tensors: Sequence[torch.Tensor], before: int) -> list[torch.Tensor]:
        """The closed-over tensors of steps that come behind so many."""
        return [*tensors, torch.tensor(before, dtype=torch.int32)]

    def _keep(self, before: int, found: End, now: Start, place: int) -> list[torch.Tensor]:
        """What the steps that ``now`` is the begin of need to be run again."""
        kept: list[torch.Tensor] = []
        leaves: dict[str, list[Any] | None] = {}
        for kind in _RETURNED:
            tree = trees(now)[kind]
            kept += [leaf for leaf in tree or [] if isinstance(leaf, torch.Tensor)]
            leaves[kind] = None if tree is None else [None if isinstance(leaf, torch.Tensor) else leaf for leaf in tree]
        kept.append(now.finished)
        bare = End(found.steps, {}, {}, (), found.flags)
        self._places.append(_Place(before, bare, range(place, place + len(kept)), leaves))
        return kept

    def backward(self, tensors: Sequence[torch.Tensor], kept: Sequence[torch.Tensor], incoming: Mapping[Target, torch.Tensor]) -> Gradients:
        begun, closed_over = self.started([tensor.detach() for tensor in tensors])
        carried = {Source(*target): grad for target, grad in incoming.items() if target.kind in _RETURNED}
        stacked = {target: grad for target, grad in incoming.items() if target.kind in STACKED}
        totals: dict[int, torch.Tensor] = {}
        ahead = self.made.forward
        for at in reversed(self._places):
            now, read = self._begun_at(at, kept, begun), self._with(closed_over, at.before)
            found = self.run(ahead.program, now, read, replace(self.call, max_steps=at.left.steps))
            assert found is not None, "the forward found it"
            _, values = parted(ahead, found, self.program)
            known, leaves = self.known(now, read)
            part = {target: grad[at.before : at.before + at.left.steps] for target, grad in stacked.items()}
            carried = self.segment(now, known, values, part, carried, at.left, totals)
        sums = of_known(known, leaves, totals)
        own = len(begun.state)
        final: Gradients = {}
        for source, grad in carried.items():
            plain = self._part.moved[source.place - own] if source.kind == "state" and source.place >= own else source
            if source in self.made.needed:
                final[plain] = grad
        for source, grad in sums.items():
            final[source] = final[source] + grad if source in final else grad
        return final

    def _begun_at(self, at: _Place, kept: Sequence[torch.Tensor], begun: Start) -> Start:
        """What the steps of a segment begin with."""
        values = iter(kept[place].detach() for place in at.kept)
        found = {
            kind: None if tree is None else [next(values) if leaf is None else leaf for leaf in tree] for kind, tree in at.leaves.items()
        }
        return replace(begun, finished=next(values), **found)  # type: ignore[arg-type]


def _joined(ends: Sequence[End], own: int, program: Program) -> End:
    """What a loop leaves, of what its segments left."""
    last = ends[-1]
    made = {target: torch.cat([end.made[target] for end in ends]) for target in last.made}
    lengths = torch.stack([end.lengths for end in ends]).sum(0, dtype=torch.int32)
    leaves = {"state": last.leaves["state"][:own], "loop_state": last.leaves["loop_state"]}
    return End(sum(end.steps for end in ends), made, leaves, program.writes, (last.finished, lengths))
