"""The stepwise executor: the captured step, called once for each iteration. In: a call and its program; out: a `Result`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .. import contract
from ..capture import ops
from ..capture.program import Program
from ..contract import Call, Start
from ..fallback import log
from ..frames import Frame
from ..optimise.graph import copied
from ..result import Result
from . import graphed, reference
from .outcome import outcome


def run(call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> Result:
    """Run the captured step until all rows are finished. On the CPU the finished flags are looked at after every step; on a GPU the step is
    a CUDA graph where that is possible, and the log says at level DEBUG where it is not."""
    device = graphed.device_for(begun.device)
    if device is not None:
        try:
            ended = graphed.run(device, call, frame, begun, program, tensors)
        except graphed.Ungraphed as unfit:
            log.debug("a loop runs without a CUDA graph: %s", unfit)
        else:
            if ended is None:
                return reference.explain_fault(call, frame, begun, "stepwise")
            return _of_graph(call, begun, program, ended)
    taken = steps(call, frame, begun, program, tensors)
    if taken is None:
        return reference.explain_fault(call, frame, begun, "stepwise")

    @cache
    def lengths() -> torch.Tensor:
        return torch.stack(taken.history).logical_not().sum(0, dtype=torch.int32)

    emit = [place for place, target in enumerate(program.targets) if target.kind == "emit"]
    emits = [[outputs[place] for place in emit] for outputs in taken.outputs]
    return outcome(
        call, begun, program.emits(begun.batch), emits, lengths if emits else None, taken.trees["finished"][0], taken.trees["state"],
        None if begun.loop_state is None else taken.trees["loop_state"], "stepwise",
    )  # fmt: skip


def _of_graph(call: Call, begun: Start, program: Program, ended: graphed.End) -> Result:
    @cache
    def lengths() -> torch.Tensor:
        return ended.history.logical_not().sum(0, dtype=torch.int32)

    return outcome(
        call, begun, program.emits(begun.batch), ended.emits.__getitem__, lengths, ended.finished, ended.state,
        None if begun.loop_state is None else ended.loop_state, "stepwise",
    )  # fmt: skip


@dataclass
class Steps:
    """What the steps of a loop made.

    Attributes:
        outputs: of each step, in the order of the program's targets.
        history: the finished flags before each step.
        trees: the leaves at the end, by the kind of their source.
    """

    outputs: list[Sequence[torch.Tensor]]
    history: list[torch.Tensor]
    trees: dict[str, list[Any]]


def steps(call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> Steps | None:
    """All steps of a loop; None where a row looked where there is nothing."""
    step = _step(program)
    trees: dict[str, list[Any]] = {
        "time": [None],
        "finished": [begun.finished],
        "inputs": [_contiguous(leaf) for leaf in begun.inputs],
        "state": [_contiguous(leaf) for leaf in begun.state],
        "loop_state": [_contiguous(leaf) for leaf in begun.loop_state or []],
        "seed": [torch.as_tensor(frame.seed, dtype=torch.int64) if program.draws else None],
        "tensor": [tensor.contiguous() for tensor in tensors],
    }
    places = [(trees[source.kind.removesuffix(" array")], source.place, source.kind.endswith(" array")) for source in program.sources]
    carried = [(trees[target.kind], target.place) if target.kind in _CARRIED else None for target in program.targets]
    past = next((place for place, target in enumerate(program.targets) if target.kind == "past"), None)
    written = [place for place, target in enumerate(program.targets) if target.kind == "index"]
    taken = Steps([], [], trees)
    while len(taken.outputs) != call.max_steps and not bool(trees["finished"][0].all()):
        trees["time"][0] = contract.clock(len(taken.outputs) + 1)
        taken.history.append(trees["finished"][0])
        try:
            outputs = step(*[values[place].stack() if stacked else values[place] for values, place, stacked in places])
        except IndexError:
            return None
        if past is not None and bool(outputs[past].any()):
            return None
        for value, slot in zip(outputs, carried, strict=True):
            if slot is not None:
                slot[0][slot[1]] = value.contiguous()  # as it was traced
        for write, place in zip(program.writes, written, strict=True):
            values = trees[write.kind]
            values[write.place] = values[write.place].write(int(outputs[place]), outputs[place + 1])
        taken.outputs.append(outputs)
    return taken


def _contiguous(leaf: Any) -> Any:
    return leaf.contiguous() if isinstance(leaf, torch.Tensor) else leaf


_CARRIED = ("finished", "inputs", "state", "loop_state")


def _step(program: Program) -> Callable[..., Sequence[torch.Tensor]]:
    """The graph as a Python function, our operators as differentiable functions."""
    if "stepwise" not in program.plans:
        program.plans["stepwise"] = torch.fx.GraphModule(program.module, copied(program.module.graph, ops.PYTHON))
    step: Callable[..., Sequence[torch.Tensor]] = program.plans["stepwise"]
    return step
