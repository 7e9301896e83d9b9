"""checkpointed: memory for time in the backward of long loops. In: a number of steps; out: loops that keep their state that often only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from . import fallback

_every: ContextVar[int | None] = ContextVar("fusedrnn checkpoints", default=None)


def every() -> int | None:
    """After how many steps a loop that is run now keeps its state; None: each step keeps what the backward needs of it."""
    return _every.get()


def unheeded(executor: str) -> None:
    """An executor runs a loop that keeps everything all the same: it is noted, once."""
    if _every.get() is not None and torch.is_grad_enabled():
        fallback.note("checkpointed() holds for compiled loops only, this one keeps everything: name backend='native'", None, executor)


@contextmanager
def checkpointed(every: int) -> Iterator[None]:
    """Loops run within keep, for their backward, their state after every so many steps; the backward runs those steps again.

    With T steps and a state of S bytes a loop keeps T / every * S bytes, and during the backward what ``every`` steps keep besides: about
    the square root of T is the least of both. Gradients are the same; the loop runs once more, as a compiled loop. It holds for the
    compiled executors, `native` and `persistent`; the others keep everything, and say so.

    Args:
        every: steps, from 1 on.

    Raises:
        TypeError, ValueError: it is no int, or below 1.
    """
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"every must be an int, a number of steps, got {every!r}")
    if every < 1:
        raise ValueError(f"every must be 1 or more steps, got {every}")
    token = _every.set(every)
    try:
        yield
    finally:
        _every.reset(token)
