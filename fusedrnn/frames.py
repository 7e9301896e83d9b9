"""The loop that runs now, in this thread: which step it is at, what it drew and what it read past the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class PastEnd(NamedTuple):
    """One look-up beyond the last element: of what, where, and by which rows (None: by all of them)."""

    position: int
    shape: tuple[int, ...]
    dim: int
    rows: torch.Tensor | None


@dataclass
class Unbound:
    """A tensor that loop_fn reads element by element along one dimension.

    Attributes:
        tensor, version: what was read, and its version then.
        first, last: the times of the first and of the last read.
        elements: the tensor taken apart; None until a second step reads it.
    """

    tensor: torch.Tensor
    version: int
    first: int
    last: int
    elements: tuple[torch.Tensor, ...] | None = None


class Frame:
    """One running loop.

    Attributes:
        time: the time of the step in hand: that of its loop_fn call. The cell call before it shares it.
        draws: how many random draws the step has made; the next one's call site.
        lineage: 0 for an outermost loop; for a nested one, a number that its place in the outer loop determines.
        clock: while a step is being captured, the traced 0-d time of its loop_fn call; ``time`` means nothing then.
        conditional: while a step is being captured, what stands for ``torch.cond``.
        past_end: the look-ups past the end that loop_fn has made in its current call.
        unbound: the tensors that loop_fn reads element by element, by identity and dimension; gone two steps after their last read.
    """

    def __init__(self, lineage: int) -> None:
        self.time = 0
        self.draws = 0
        self.lineage = lineage
        self.clock: torch.Tensor | None = None
        self.conditional: Callable[..., Any] | None = None
        self.past_end: list[PastEnd] = []
        self.unbound: dict[tuple[int, int], Unbound] = {}
        self._seed: int | torch.Tensor | None = None

    def begin_step(self, time: int) -> None:
        self.time = time
        self.draws = 0
        if self.unbound:
            self.unbound = {key: read for key, read in self.unbound.items() if read.last >= time - 1}

    def next_site(self) -> int:
        site = self.draws
        self.draws += 1
        return site

    @property
    def seed(self) -> int | torch.Tensor:
        """A seed for draws that were given none: one from torch's CPU generator for the whole loop. Traced while a step is captured."""
        if self._seed is None:
            self._seed = fresh_seed()
        return self._seed

    @seed.setter
    def seed(self, seed: int | torch.Tensor) -> None:
        self._seed = seed


class _Stack(threading.local):
    def __init__(self) -> None:
        self.frames: list[Frame] = []


_stack = _Stack()


def fresh_seed() -> int:
    """A 63-bit seed from torch's default CPU generator, so that ``torch.manual_seed`` decides it."""
    with torch._C.DisableTorchFunction():  # within a loop torch.randint is counter-based: it asks for this seed
        return int(torch.randint(2**63 - 1, (), dtype=torch.int64))


def current() -> Frame | None:
    """The innermost running loop of this thread, or None outside of one."""
    return _stack.frames[-1] if _stack.frames else None


@contextmanager
def running() -> Iterator[Frame]:
    """A new loop runs inside the block."""
    outer = current()
    # 32 bits that differ between the steps and call sites of the outer loop (Knuth's multiplicative hash).
    lineage = 0 if outer is None else ((outer.lineage * 31 + outer.time) * 2654435761 + outer.next_site() + 1) & 0xFFFFFFFF
    frame = Frame(lineage)
    with within(frame):
        yield frame


@contextmanager
def within(frame: Frame) -> Iterator[None]:
    """A loop that began before goes on inside the block."""
    _stack.frames.append(frame)
    try:
        yield
    finally:
        _stack.frames.pop()
