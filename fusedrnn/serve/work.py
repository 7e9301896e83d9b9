"""A request that was accepted, and a launch that is planned. In: a model, slots and who is admitted; out: what the launch made of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..fallback import log
from .model import Model, Values
from .slots import Launch, Slots


@dataclass(eq=False)
class Ticket:
    """A request that was accepted.

    Attributes:
        request: the model's.
        priority: the lower, the sooner it gets a slot.
        deadline: on the scheduler's clock; None for none.
        accepted, started, first_chunk, ended: when, on that clock; None: not yet.
        slot: where it runs.
        steps: that its row has taken.
        chunks: that no one has taken yet.
        over: it takes no more steps.
        done: it has ended, and all its chunks are there; ``error`` says why, None where its row finished.
        told: called, if set, whenever there are new chunks or the request has ended.
    """

    request: Any
    priority: int
    deadline: float | None
    accepted: float
    order: int
    started: float | None = None
    first_chunk: float | None = None
    ended: float | None = None
    slot: int | None = None
    steps: int = 0
    chunks: deque[Any] = field(default_factory=deque)
    over: bool = False
    done: bool = False
    error: Exception | None = None
    told: Callable[[], None] | None = None

    def tell(self) -> None:
        """Say that there is news. What fails there is of whoever listens, and keeps no news from others."""
        try:
            if self.told is not None:
                self.told()
        except Exception:
            log.exception("a listener of a request failed")


@dataclass
class Work:
    """A launch that is planned: who is admitted, how many steps.

    Attributes:
        freed: slots whose rows are given up; some are admitted to again.
        occupants: by slot whose row it is in this launch. Who holds the slot later is another matter.
        admitted: the slots whose occupants begin.
        launch, wrong, error, seconds: what came of it: `run` sets them.
        states: the last state of rows that finished, by slot, if the model wants it.
    """

    model: Model
    slots: Slots
    freed: list[int]
    occupants: dict[int, Ticket]
    admitted: list[int]
    steps: int
    launch: Launch | None = None
    wrong: dict[int, Exception] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)
    error: BaseException | None = None
    began: float = 0.0
    seconds: float = 0.0

    def run(self) -> None:
        """Compute. Touches the slots and the model, and nothing of the scheduler."""
        try:
            with torch.no_grad():
                self._run()
        except BaseException as error:  # of the engine or of the model, and of no request in particular
            self.error = error
            if not isinstance(error, Exception):
                raise

    def _run(self) -> None:
        self.slots.free(self.freed)
        values, self.wrong = _admitted(self.model, {slot: self.occupants[slot].request for slot in self.admitted})
        self.wrong |= self.slots.admit(values)
        began = time.perf_counter()
        self.launch = self.slots.launch(self.steps)
        self.seconds = time.perf_counter() - began
        if self.model.wants_state:
            for slot in self.occupants:
                if self.launch.finished[slot] and slot not in self.launch.failed and slot not in self.wrong:
                    self.states[slot] = self.slots.final_state(slot)


def _admitted(model: Model, requests: Mapping[int, Any]) -> tuple[dict[int, Values], dict[int, Exception]]:
    """What the model gives for requests, and what is wrong with the others."""
    if not requests:
        return {}, {}
    try:
        pairs = list(zip(requests, model.admit(list(requests.values())), strict=True))
    except Exception as error:
        if len(requests) == 1:
            return {}, dict.fromkeys(requests, error)
        values, wrong = dict[int, Values](), dict[int, Exception]()
        for slot, request in requests.items():  # one of them is not as it should be: each by itself
            mine, mine_wrong = _admitted(model, {slot: request})
            values |= mine
            wrong |= mine_wrong
        return values, wrong
    return (
        {slot: value for slot, value in pairs if not isinstance(value, Exception)},
        {slot: value for slot, value in pairs if isinstance(value, Exception)},
    )
