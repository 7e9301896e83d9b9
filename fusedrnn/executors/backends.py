"""The backends by name. In: a name; out: whether this machine has it. Nothing that captures or compiles is imported for that."""

from __future__ import annotations

import os

import torch

from ..errors import PlanError
from ..kernels import device, gpu
from ..kernels.cpu import build

BACKENDS = ("auto", "persistent", "stepwise", "native", "reference")


def unavailable(backend: str) -> str | None:
    """Why this executor cannot run on this machine, in one line; None where it can."""
    if backend == "persistent":
        return _no_persistent()
    if backend == "native" and build.compiler() is None:
        return "there is no C++ compiler: install g++ or clang++, or use backend='stepwise'"
    return None


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
    """The backend to use, if this machine has it.

    Raises:
        ValueError: no such backend.
        PlanError: it was named and cannot run here.
    """
    backend = checked_backend(backend)
    refuse_unavailable(backend)
    return backend


def refuse_unavailable(backend: str) -> None:
    """Raise PlanError where this machine does not have the backend."""
    reason = unavailable(backend)
    if reason is not None:
        raise PlanError(reason)


def _no_persistent() -> str | None:
    found = device.triton()
    if found.version is None:
        return f"Triton cannot be imported ({found.reason}); use backend='native', 'stepwise' or 'auto'"
    if not gpu.EMULATED and not torch.cuda.is_available():
        return "there is no CUDA device; use backend='native' or 'auto', or set FUSEDRNN_EMULATE=1 to interpret the kernel on the CPU"
    return None
