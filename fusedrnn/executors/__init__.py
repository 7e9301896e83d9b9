"""The executors. In: the name of a backend and a `Call`; out: its `Result`, from the executor that the backend stands for."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .. import branches, contract, frames
from ..capture import cache
from ..capture.refusal import NotCapturable
from ..contract import Call
from ..errors import PlanError
from ..result import Result
from . import native, reference, stepwise

BACKENDS = ("auto", "persistent", "stepwise", "native", "reference")

_BUILT = ("reference", "stepwise", "native")
_NOT_BUILT = "this version has no {} executor; use backend='reference' or 'auto'"


def unavailable(backend: str) -> str | None:
    """Why this executor cannot run on this machine, in one line; None where it can."""
    return None if backend in _BUILT else _NOT_BUILT.format(backend)


def checked_backend(backend: str) -> str:
    """The backend to use: the argument, or for "auto" what the environment variable FUSEDRNN_BACKEND says.

    Raises:
        ValueError: the name is not one of BACKENDS.
    """
    source = "backend"
    if backend == "auto":
        backend, source = os.environ.get("FUSEDRNN_BACKEND") or "auto", "FUSEDRNN_BACKEND"
    if backend not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    return backend


def choose(backend: str) -> str:
    """The name of the executor that a backend stands for.

    Raises:
        ValueError: no such backend.
        PlanError: it was named and cannot run.
    """
    backend = checked_backend(backend)
    if backend == "auto":
        return "reference"
    reason = unavailable(backend)
    if reason is not None:
        raise PlanError(reason)
    return backend


def execute(backend: str, call: Call) -> Result:
    """Run a call on the executor that the backend stands for; raises as `choose`, and PlanError where that cannot run this loop."""
    backend = choose(backend)
    cache.refuse_nested()
    with frames.running() as frame, branches.taken(), _swapped(call):
        begun = contract.start(call, frame)
        if backend == "reference" or call.max_steps == 0 or bool(begun.finished.all()):
            return reference.run(call, frame, begun)
        try:
            program, tensors = cache.captured(call, frame, begun)
        except NotCapturable as refused:
            raise PlanError(refused.reason, refused.location) from refused
        except Exception as error:
            frame.past_end.clear()
            reference.run(Call(call.cell, call.loop_fn, max_steps=1), frame, begun)  # raises what is wrong with the program itself
            raise PlanError(f"the step cannot be traced: {type(error).__name__}: {error}") from error
        try:
            return (native if backend == "native" else stepwise).run(call, frame, begun, program, tensors)
        except NotCapturable as refused:
            raise PlanError(refused.reason, refused.location) from refused


def _swapped(call: Call) -> AbstractContextManager[Any]:
    """With swap_memory, what autograd keeps for the backward goes to (pinned) host memory."""
    if not call.swap_memory:
        return nullcontext()
    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())
