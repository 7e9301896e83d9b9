"""The executors. In: the name of a backend; out: the function that runs a `Call`, or the reason why it cannot."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..contract import Call
from ..errors import PlanError
from ..result import Result
from . import reference

BACKENDS = ("auto", "persistent", "stepwise", "native", "reference")

_RUN: dict[str, Callable[[Call], Result]] = {"reference": reference.run}
_NOT_BUILT = "this version has no {} executor; use backend='reference' or 'auto'"


def unavailable(backend: str) -> str | None:
    """Why this executor cannot run on this machine, in one line; None where it can."""
    return None if backend in _RUN else _NOT_BUILT.format(backend)


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
    """Run a call on the executor that the backend stands for; raises as `choose`."""
    return _RUN[choose(backend)](call)
