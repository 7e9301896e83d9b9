"""Layouts of persistent kernels that a test chooses. In: programs, rows a group and so on; out: a planner that plans just that."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusedrnn import TensorArray, trees
from fusedrnn.capture import cache
from fusedrnn.kernels.gpu.launch import Options
from fusedrnn.lowering.gpu.schedule import schedule
from fusedrnn.lowering.gpu.tiles import Sharing
from fusedrnn.plan import planner
from fusedrnn.plan.cost import step_cost, stream
from fusedrnn.plan.plan import Plan


def planning(
    monkeypatch: pytest.MonkeyPatch, *, programs: int = 2, tile: int = 16, groups: int = 64, replicated: tuple[int, ...] = (),
    streamed: bool = False, chunk: int = 128, window: int | None = None, least_rows: int = 16, stack: int = 1,
    ahead: bool = True,
) -> None:  # fmt: skip
    """Kernels that are made from now on have this layout.

    Args:
        programs: of a group.
        tile: the rows of a group.
        groups: of a launch, at most: more rows go into further launches.
        replicated, least_rows: as `Sharing` has them.
        streamed: no exchanged product's weight stays on-chip.
        chunk, window: columns of a weight that are read at a time; how many chunks of a vector at once.
        stack: how many vectors are stacked in one product, at most.
        ahead: what the first phase reads is asked for a step earlier.
    """

    def plans(step: Any, batch: int, limits: Any, precision: str) -> list[Plan]:
        found = schedule(step, Sharing(programs, frozenset(replicated), least_rows), chunk, stack)
        if streamed:
            stream(found, tile, precision == "hilo", limits)
        for one in found.tiles:
            one.window = min(one.window, window or one.window)
        cost = step_cost(found, tile, groups, precision == "hilo", ahead=ahead)
        return [Plan(found, tile, groups, precision, Options(), cost, "a test", ahead)]

    cache.clear()
    monkeypatch.setattr(planner, "plans", plans)


def outcome(result: Any) -> list[torch.Tensor]:
    """All that a loop leaves: emits, states, loop_state, lengths and which rows were cut off."""
    emits, state, carried = result
    leaves = [emit.stack() for emit in trees.leaves(emits)] + trees.leaves(state) + (trees.leaves(carried) if carried is not None else [])
    leaves = [leaf.stack() if isinstance(leaf, TensorArray) else leaf for leaf in leaves]
    return [leaf.detach() for leaf in leaves] + [result.lengths, result.truncated]


def assert_same(got: Any, want: Any, *, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    for mine, theirs in zip(outcome(got), outcome(want), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol, equal_nan=True)


def assert_same_bits(got: Any, want: Any) -> None:
    for mine, theirs in zip(outcome(got), outcome(want), strict=True):
        assert torch.equal(mine.nan_to_num(7.0), theirs.nan_to_num(7.0))
