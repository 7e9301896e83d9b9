"""What is done with a loop that may be captured. In: the backend and a `Call`; out: its `Result`, from the executor that suits it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .. import branches, checkpoints, contract, fallback, frames
from ..capture import cache
from ..capture.program import Program
from ..capture.refusal import NotCapturable, place
from ..contract import Call, Start
from ..errors import PlanError
from ..frames import Frame
from ..kernels import device
from ..result import Result
from . import differentiated, native, persistent, reference, stepwise, warm
from .backends import refuse_unavailable, unavailable
from .warm import Compiled

_COMPILING = 2.0  # seconds that compiling a loop takes, about: a program that has cost so much step by step is compiled


def execute(backend: str, call: Call, *, compile_now: bool) -> Result:
    """As `fusedrnn.executors.execute`, for a backend that is not `reference` and a loop that may take a step."""
    if backend != "stepwise":
        known = warm.run(call, backend)
        if known is not None:
            return known
    refuse_unavailable(backend)
    with frames.running() as frame, branches.taken(), reference.swapped(call):
        begun = contract.start(call, frame)
        if device.is_recording(begun.device):
            raise PlanError("a CUDA graph is being captured: prepare the loop before, with fusedrnn.compile(...).warmup() and one call")
        if _looks_at_flags(backend, begun) and bool(begun.finished.all()):
            return reference.run(call, frame, begun)
        try:
            refuse_surroundings(begun)
            program, tensors = cache.captured(call, frame, begun)
        except NotCapturable as refused:
            if backend != "auto":
                raise PlanError(refused.reason, refused.location) from refused
            fallback.note(refused.reason, refused.location, "reference")
            return reference.run(call, frame, begun)
        except Exception as error:
            return _untraceable(backend, call, frame, begun, error)
        if backend == "auto":
            return _weighed(call, frame, begun, program, tensors, compile_now)
        try:
            if backend == "native":
                return _native(call, frame, begun, program, tensors)
            if backend == "persistent":
                return _persistent(call, frame, begun, program, tensors)
            checkpoints.unheeded(backend)
            return stepwise.run(call, frame, begun, program, tensors)
        except NotCapturable as refused:
            raise PlanError(refused.reason, refused.location) from refused


def _looks_at_flags(backend: str, begun: Start) -> bool:
    """Whether the host waits to learn if there is a step to run: a persistent kernel finds out for itself, gradients aside."""
    return begun.device.type != "cuda" or backend not in ("auto", "persistent") or torch.is_grad_enabled()


@dataclass(frozen=True)
class Prepared:
    """A loop at time 0, captured and where possible compiled.

    Attributes:
        begun: what time 0 settled.
        program, tensors: as `fusedrnn.capture.cache.captured` gives them.
        loop: compiled; None where ``refused`` says why there is none.
    """

    begun: Start
    program: Program
    tensors: list[torch.Tensor]
    loop: Compiled | None
    refused: NotCapturable | None


def prepare(backend: str, call: Call) -> Prepared | NotCapturable:
    """Capture and compile a loop without running it; what the loop itself does wrong shows when it runs."""
    with frames.running() as frame, branches.taken():
        begun = contract.start(call, frame)
        try:
            refuse_surroundings(begun)
            program, tensors = cache.captured(call, frame, begun)
        except NotCapturable as refused:
            return refused
        except Exception as error:
            return NotCapturable(f"the step cannot be traced: {type(error).__name__}: {error}", place(error))
        reason: NotCapturable | None = None
        if backend == "persistent" or (backend == "auto" and begun.device.type == "cuda"):
            made = persistent.prepared(begun, program, tensors, call)
            if not isinstance(made, NotCapturable):
                return Prepared(begun, program, tensors, made, None)
            reason = made
        elif backend in ("auto", "native"):
            with torch.no_grad():
                reason = native_refusal(call, begun, program, tensors)
            try:
                if reason is None:
                    return Prepared(begun, program, tensors, native.compiled(program), None)
            except NotCapturable as unlowered:
                reason = unlowered
        return Prepared(begun, program, tensors, None, reason)


def _untraceable(backend: str, call: Call, frame: Frame, begun: Start, error: Exception) -> Result:
    """Where tracing raised: the program's own error, if it has one, is raised by running it."""
    frame.past_end.clear()
    reason = f"the step cannot be traced: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if backend == "auto":
        result = reference.run(call, frame, begun)
        fallback.note(reason, place(error), "reference")
        return result
    reference.run(Call(call.cell, call.loop_fn, max_steps=1), frame, begun)
    raise PlanError(reason, place(error)) from error


def refuse_surroundings(begun: Start) -> None:
    """Raise NotCapturable where the loop runs inside something that wants to see every operator."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotCapturable("the loop runs inside a torch.func transform, which only 'reference' takes part in")
    if get_proxy_mode() is not None or isinstance(begun.finished, torch._subclasses.FakeTensor):
        raise NotCapturable("the loop runs while torch traces it, which only 'reference' takes part in")


def _weighed(call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor], now: bool) -> Result:
    """On a GPU as a persistent kernel where that is possible, on a CPU natively where that is worth compiling, else step by step."""
    if begun.device.type == "cuda" and unavailable("persistent") is None:
        try:
            return _persistent(call, frame, begun, program, tensors)
        except NotCapturable as error:
            fallback.note(error.reason, error.location, "stepwise", level=logging.INFO)
            if bool(begun.finished.all()):
                return reference.run(call, frame, begun)
            return stepwise.run(call, frame, begun, program, tensors)
    refused = native_refusal(call, begun, program, tensors)
    now = now or (checkpoints.every() is not None and torch.is_grad_enabled())
    if refused is None and (now or worth_compiling(begun, program, tensors)):
        try:
            if differentiated.needs_gradients(begun, program, tensors) and checkpoints.every() is None:
                differentiated.derived(program, differentiated.needed(begun, program, tensors))
            return _native(call, frame, begun, program, tensors)
        except NotCapturable as error:
            refused = error
    if refused is not None:
        fallback.note(refused.reason, refused.location, "stepwise", level=logging.INFO)
    checkpoints.unheeded("stepwise")
    began = time.perf_counter()
    result = stepwise.run(call, frame, begun, program, tensors)
    program.plans["seconds step by step"] = program.plans.get("seconds step by step", 0.0) + time.perf_counter() - began
    return result


def _native(call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> Result:
    result = native.run(call, frame, begun, program, tensors)
    if not differentiated.needs_gradients(begun, program, tensors):
        warm.note(call, frame, begun, program, tensors, native.compiled(program))
    return result


def _persistent(call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> Result:
    result = persistent.run(call, frame, begun, program, tensors)
    if not differentiated.needs_gradients(begun, program, tensors):
        warm.note(call, frame, begun, program, tensors, persistent.kernel(program, begun.batch, begun.device, tensors))
    return result


def native_refusal(call: Call, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> NotCapturable | None:
    """Why `auto` does not run a loop natively; None where it may."""
    if begun.device.type != "cpu":
        return NotCapturable(f"the native executor runs on a CPU, this loop is on {begun.device}")
    if differentiated.needs_gradients(begun, program, tensors):
        known = differentiated.known(begun, program, tensors)
        if isinstance(known, NotCapturable):
            return NotCapturable(f"gradients are needed: {known.reason}", known.location)
    known = program.plans.get("native")
    if isinstance(known, NotCapturable):
        return known
    reason = unavailable("native")
    return None if reason is None else NotCapturable(reason)


def worth_compiling(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a program is compiled already, its derivative too where that is needed, or has cost about what compiling it costs."""
    with_gradients = differentiated.needs_gradients(begun, program, tensors)
    compiled = differentiated.known(begun, program, tensors) is not None if with_gradients else "native" in program.plans
    return compiled or program.plans.get("seconds step by step", 0.0) > _COMPILING
