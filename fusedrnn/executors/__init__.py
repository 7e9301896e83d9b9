"""The executors. In: the name of a backend and a `Call`; out: its `Result`, from the executor that the backend stands for.

What captures and compiles is imported when a loop first needs it: torch's tracing alone takes a second.
"""

from __future__ import annotations

from .. import branches, checkpoints, contract, frames
from ..capture.refusal import refuse_nested
from ..contract import Call
from ..result import Result
from . import reference
from .backends import BACKENDS, checked_backend, choose, unavailable

__all__ = ["BACKENDS", "checked_backend", "choose", "execute", "unavailable"]


def execute(backend: str, call: Call, *, compile_now: bool = False) -> Result:
    """Run a call on the executor that the backend stands for; ``compile_now``: without waiting until compiling it is worth its time.

    Raises:
        ValueError, PlanError: as `choose`; PlanError too where a named executor cannot run this loop.
    """
    backend = checked_backend(backend)
    refuse_nested()
    if backend != "reference" and call.max_steps != 0:
        from . import captured

        return captured.execute(backend, call, compile_now=compile_now)
    choose(backend)
    checkpoints.unheeded("reference")
    with frames.running() as frame, branches.taken(), reference.swapped(call):
        return reference.run(call, frame, contract.start(call, frame))
