"""The reference executor: the Python loop that defines what every other executor must compute. In: a `Call`; out: a `Result`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch

from .. import contract, fallback, rows, trees
from ..contract import Call, Start
from ..draws import Draws
from ..frames import Frame
from ..result import Result
from .outcome import outcome


def run(call: Call, frame: Frame, begun: Start) -> Result:
    """Run the loop step by step from what time 0 settled. The finished flags come to the host once a step."""
    finished, inputs, state, loop_state = begun.finished, begun.inputs, begun.state, begun.loop_state
    emits: list[list[torch.Tensor]] = []
    history: list[torch.Tensor] = []  # the finished flags before each step
    while (done := int(finished.count_nonzero())) < begun.batch and len(emits) != call.max_steps:
        time = len(emits) + 1
        frame.begin_step(time)
        seen = state
        if done:
            inputs, seen = [rows.quieted(leaf, finished) for leaf in inputs], _seen_by_cell(state, finished)
        versions = _versions(state)
        with Draws(frame):
            result = call.cell(begun.inputs_port.tree(inputs), begun.state_port.tree(seen))
        output, cell_state = contract.cell_results(result, time)
        if done and torch.is_grad_enabled():
            guard = partial(rows.guarded, finished=finished)
            output, cell_state = trees.map_leaves(guard, output), trees.map_leaves(guard, cell_state)
        carried = None if begun.loop_state_port is None else begun.loop_state_port.tree(loop_state or [])
        step = contract.step(call, begun, frame, time, finished, output, cell_state, carried)
        if done and versions != _versions(state):
            raise RuntimeError(
                f"the cell or loop_fn changed the state in place in the step to time {time}; finished rows need the old one: copy it first"
            )
        history.append(finished)
        if done:
            emits.append([rows.zeroed(value, finished) for value in step.emit])
            state = [rows.frozen(old, new, finished) for old, new in zip(state, step.state, strict=True)]
        else:
            emits.append(step.emit)
            state = step.state
        finished, inputs = step.finished, step.inputs
        loop_state = loop_state if step.loop_state is None else step.loop_state

    @cache
    def lengths() -> torch.Tensor:
        return torch.stack(history).logical_not().sum(0, dtype=torch.int32)

    return outcome(call, begun, begun.emit_port, emits, lengths if emits else None, finished, state, loop_state, "reference")


def explain_fault(call: Call, frame: Frame, begun: Start, executor: str) -> Result:
    """The loop once more, after another executor met a look-up that fails: it raises the error that says who looked where.

    If it does not, the two executors disagree: the result is this one's, and the disagreement is counted and logged.
    """
    result = run(call, frame, begun)
    fallback.note(f"a look-up failed on {executor!r} that does not fail on 'reference'; this is a bug of fusedrnn", None, "reference")
    return result


def _seen_by_cell(state: list[Any], finished: torch.Tensor) -> list[Any]:
    """The state leaves that the cell gets once rows are finished."""
    # Inference tensors have no version that would tell of a change in place: the cell gets its own.
    own = [leaf.clone() if isinstance(leaf, torch.Tensor) and leaf.is_inference() else leaf for leaf in state]
    return [rows.quieted(leaf, finished) for leaf in own]


def _versions(state: list[Any]) -> list[int]:
    """How often each tensor that freezes was changed in place."""
    return [leaf._version for leaf in state if isinstance(leaf, torch.Tensor) and leaf.ndim and not leaf.is_inference()]


def swapped(call: Call) -> AbstractContextManager[Any]:
    """With swap_memory, what autograd keeps for the backward goes to (pinned) host memory."""
    if not call.swap_memory:
        return nullcontext()
    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())
