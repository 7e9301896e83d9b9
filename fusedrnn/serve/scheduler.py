"""Who runs when. In: requests, cancellations and the clock; out: launches over the slots, and each request's chunks.

Nothing here starts a thread. `Scheduler.plan` decides, `Work.run` computes, `Scheduler.take_back` frees slots, `Scheduler.hand_out` gives
requests their chunks, or the news that they have ended. The first three may be called in one thread while another one submits, cancels and
hands out, as `fusedrnn.serve.Engine` does: the next launch waits for no one who reads.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..capture import closure
from ..contract import Call
from ..fallback import log
from .errors import Cancelled, DeadlineExceeded, Draining, QueueFull, RequestFailed, StepLimit
from .metrics import Metrics
from .model import Model, SlotLoop
from .pace import Pace
from .slots import Launch, Slots
from .work import Ticket, Work

Clock = Callable[[], float]


@dataclass
class _Made:
    """What a launch made for one request: its row, how many steps it took, and whether that was the end. No work: only the end."""

    ticket: Ticket
    slot: int
    taken: int
    over: bool
    error: Exception | None
    work: Work | None
    at: float


class Scheduler:
    """Requests over a fixed number of slots.

    Args:
        model: what is served.
        slots: how many requests run at once, at least 2.
        queue: how many may wait at most.
        step_limit: the most steps of one request; None for none.
        latency, throughput, steps: as `Pace` has them.
        backend: as `Slots` has it.
        clock: seconds that only go up.

    Raises:
        ValueError: a number is out of range.
        PlanError: the model's loop cannot be served.
    """

    def __init__(
        self,
        model: Model,
        slots: int = 256,
        *,
        queue: int = 4096,
        step_limit: int | None = None,
        latency: float = 0.004,
        throughput: float = 0.02,
        steps: int = 256,
        backend: str = "auto",
        clock: Clock = time.monotonic,
    ) -> None:
        for name, number, least in (("slots", slots, 2), ("queue", queue, 0), ("step_limit", step_limit, 1)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
                raise ValueError(f"{name} must be an int of at least {least}, got {number!r}")
        self.model, self.queue, self.step_limit, self.clock = model, queue, step_limit, clock
        self.pace = Pace(latency, throughput, steps)
        self.slots = slots_of(model, slots, backend)
        self.metrics = Metrics(slots)
        self.draining = False
        self._waiting: list[tuple[float, int, Ticket]] = []  # a heap; those that have ended are dropped when they come up
        self._running: dict[int, Ticket] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []  # a heap, like the one of those that wait
        self._free = list(range(slots))  # a heap: the lowest first
        self._freed: list[int] = []  # slots that are to be told
        self._order = itertools.count()
        self._work: Work | None = None
        self._made: deque[_Made] = deque()  # by launches that were taken back, and not handed out
        self._lock = threading.RLock()  # of who waits and runs
        self._service = 0.0  # seconds that a request holds its slot, of late

    def submit(self, request: Any, *, priority: int = 0, deadline: float | None = None, told: Callable[[], None] | None = None) -> Ticket:
        """Accept a request.

        Args:
            request: the model's.
            priority: the lower, the sooner; of equal ones the first.
            deadline: seconds from now after which it is given up; None for none.
            told: as `Ticket` has it.

        Raises:
            Draining: no requests are taken any more.
            QueueFull: as many are waiting as may.
            TypeError, ValueError: it is no request of the model, the priority is no int, or the deadline is no number or negative.
        """
        if self.draining:
            self.metrics.rejected["draining"] += 1
            raise Draining
        try:
            if isinstance(deadline, bool) or not isinstance(deadline, (int, float, type(None))):
                raise TypeError(f"deadline must be a number of seconds from now, or None, got {deadline!r}")
            if deadline is not None and not deadline >= 0:
                raise ValueError(f"deadline must be at least 0 seconds, got {deadline}")
            if isinstance(priority, bool) or not isinstance(priority, int):
                raise TypeError(f"priority must be an int, got {priority!r}")
            self.model.check(request)
        except Exception:
            self.metrics.rejected["bad request"] += 1
            raise
        with self._lock:
            if self.metrics.waiting >= self.queue + len(self._free):
                self.metrics.rejected["queue full"] += 1
                raise QueueFull(self.metrics.waiting, self.retry_after())
            now = self.clock()
            ticket = Ticket(request, priority, None if deadline is None else now + deadline, now, next(self._order), told=told)
            self._waiting = self._pushed(self._waiting, priority, ticket)
            if ticket.deadline is not None:
                self._deadlines = self._pushed(self._deadlines, ticket.deadline, ticket)
            self.metrics.accepted += 1
            self.metrics.waiting += 1
        return ticket

    def _pushed(self, heap: list[tuple[float, int, Ticket]], key: float, ticket: Ticket) -> list[tuple[float, int, Ticket]]:
        """The heap with a ticket, and without those that have ended where they are most of it."""
        if len(heap) > 2 * (self.metrics.running + self.metrics.waiting) + 64:
            heap = [entry for entry in heap if not entry[2].over]
            heapq.heapify(heap)
        heapq.heappush(heap, (key, ticket.order, ticket))
        return heap

    def cancel(self, ticket: Ticket) -> None:
        """End a request; its slot is free for the next launch. One that has ended stays as it is."""
        self._end(ticket, Cancelled())

    def end_all(self, error: BaseException | None = None) -> None:
        """End all requests, as cancelled or with an error."""
        self.hand_out()
        with self._lock:
            tickets = [*self._running.values(), *[ticket for _, _, ticket in self._waiting]]
        for ticket in tickets:
            self._end(ticket, Cancelled() if error is None else _failed(error))

    def drain(self) -> None:
        """Take no more requests; those that were accepted are run to their end."""
        self.draining = True

    @property
    def idle(self) -> bool:
        """Whether nothing that was accepted has not ended."""
        with self._lock:
            return not self.metrics.waiting and not self.metrics.running and not self._made

    @property
    def behind(self) -> int:
        """How much of what launches made is still to be handed out, in rows."""
        return len(self._made)

    def retry_after(self) -> float:
        """Seconds until there is likely to be room in the queue."""
        return max(self._service / self.metrics.slots, 0.01)

    def plan(self) -> Work | None:
        """The next launch, which has to be taken back before another is planned; None where there is nothing to run."""
        if self._work is not None:
            raise RuntimeError("a launch is under way: settle it before the next one is planned")
        with self._lock:
            now = self.clock()
            self._expire(now)
            admitted = self._admitted(now)
            if not self._running:
                return None
            urgent = self.metrics.waiting > 0 or any(ticket.first_chunk is None for ticket in self._running.values())
            steps = self.pace.steps(urgent)
            freed, self._freed = self._freed, []
            self._work = Work(self.model, self.slots, freed, dict(self._running), admitted, steps)
        self._work.began = time.perf_counter()
        return self._work

    def _admitted(self, now: float) -> list[int]:
        """The slots that requests have entered now."""
        admitted: list[int] = []
        while self._waiting and self._free:
            ticket = heapq.heappop(self._waiting)[2]
            if ticket.over:
                continue
            slot = ticket.slot = heapq.heappop(self._free)
            self._running[slot] = ticket
            admitted.append(slot)
            ticket.started = now
            self.metrics.queue_seconds.add(now - ticket.accepted)
            self.metrics.waiting -= 1
            self.metrics.running += 1
        return admitted

    def settle(self, work: Work) -> None:
        """Take a launch back and hand out what it made."""
        self.take_back(work)
        self.hand_out()

    def take_back(self, work: Work) -> None:
        """Free the slots of rows that a launch has ended; the next one can be planned. What it made is still to be handed out."""
        if work is not self._work:
            raise RuntimeError("this launch is not the one that was planned last")
        with self._lock:
            self._work = None
            now = self.clock()
            if work.error is not None or work.launch is None:
                log.error("a launch of %s has failed, and its %d requests", self.model.name, len(work.occupants), exc_info=work.error)
                for slot, ticket in work.occupants.items():
                    if not ticket.over:
                        self._leave(ticket, _Made(ticket, slot, 0, True, _failed(work.error or RuntimeError("it was given up")), None, now))
                self._freed = list(range(self.slots.count))
                return
            self._take_back(work, work.launch, now)
        self._note(work, work.launch)

    def _take_back(self, work: Work, launch: Launch, now: float) -> None:
        taken, finished = launch.taken.tolist(), launch.finished.tolist()
        for slot, ticket in work.occupants.items():
            if ticket.over:  # meanwhile: whoever has the slot now, this row was not theirs
                continue
            steps = 0 if slot in work.wrong else taken[slot]
            left = steps if self.step_limit is None else self.step_limit - ticket.steps
            error: Exception | None = None
            if slot in work.wrong:
                error = _failed(work.wrong[slot])
            elif steps > left or (steps == left and self.step_limit is not None and (slot in launch.failed or not finished[slot])):
                steps, error = left, StepLimit(left + ticket.steps)  # whatever the launch took: that depends on others
            elif slot in launch.failed:
                error = RequestFailed("the request looks where there is nothing, such as past the end of its input")
            ticket.steps += steps
            made = _Made(ticket, slot, steps, finished[slot] or error is not None, error, work, now)
            if made.over:
                self._leave(ticket, made)
            else:
                self._made.append(made)

    def hand_out(self) -> None:
        """Give requests the chunks of launches that were taken back, and tell those that have ended."""
        while self._made:
            one = self._made.popleft()
            if not one.ticket.done:
                self._hand_out(one)

    def step(self) -> bool:
        """Plan, run and settle one launch here and now; whether there was one."""
        work = self.plan()
        if work is None:
            self.hand_out()
            return False
        try:
            work.run()
        finally:
            self.settle(work)
        return True

    def _hand_out(self, made: _Made) -> None:
        ticket, work, slot, taken = made.ticket, made.work, made.slot, made.taken
        chunks: list[Any] = []
        try:
            if taken and work is not None and work.launch is not None:
                values = self.slots.emit_tree([emit[:taken, slot] for emit in work.launch.emits])
                chunks.append(self.model.emit(ticket.request, values))
            if made.over and made.error is None and work is not None:
                chunks.append(self.model.ended(ticket.request, work.states.get(slot)))
        except BaseException as error:
            self._end(ticket, _failed(error))
            if not isinstance(error, Exception):
                raise
            return
        if ticket.done:  # the model has cancelled it
            return
        new = [chunk for chunk in chunks if chunk is not None]
        if new:
            if ticket.first_chunk is None:
                ticket.first_chunk = made.at
                self.metrics.first_chunk_seconds.add(made.at - ticket.accepted)
            ticket.chunks += new
        if made.over:
            self._end(ticket, made.error)
        elif new:
            ticket.tell()

    def _expire(self, now: float) -> None:
        while self._deadlines and (self._deadlines[0][2].over or self._deadlines[0][0] <= now):
            deadline, _, ticket = heapq.heappop(self._deadlines)
            if not ticket.over:
                error = DeadlineExceeded(deadline - ticket.accepted, ticket.steps)
                self._leave(ticket, _Made(ticket, -1, 0, True, error, None, now))

    def _leave(self, ticket: Ticket, made: _Made | None = None) -> None:
        """A request is over, and has its slot or its place in the queue no more; the news of it are to be handed out."""
        ticket.over = True
        if made is not None:
            self._made.append(made)
        slot = ticket.slot
        if slot is None:
            self.metrics.waiting -= 1
            return
        del self._running[slot]
        heapq.heappush(self._free, slot)
        self._freed.append(slot)
        self.metrics.running -= 1
        assert ticket.started is not None
        held = self.clock() - ticket.started
        self._service = held if not self._service else 0.9 * self._service + 0.1 * held

    def _end(self, ticket: Ticket, error: Exception | None) -> None:
        """Tell a request that it has ended, if it was not told."""
        with self._lock:
            if ticket.done:
                return
            if not ticket.over:
                self._leave(ticket)
            ticket.done, ticket.error, ticket.ended = True, error, self.clock()
            metrics = self.metrics
            if error is None:
                metrics.completed += 1
                metrics.total_seconds.add(ticket.ended - ticket.accepted)
            elif isinstance(error, Cancelled):
                metrics.cancelled += 1
            elif isinstance(error, DeadlineExceeded):
                metrics.expired += 1
            else:
                metrics.failed += 1
        ticket.tell()

    def _note(self, work: Work, launch: Launch) -> None:
        metrics, rows = self.metrics, int(launch.taken.sum())
        metrics.launches += 1
        metrics.steps += launch.steps
        metrics.row_steps += rows
        metrics.occupancy.add(len(work.occupants) / metrics.slots)
        metrics.launch_seconds.add(work.seconds)
        if launch.failed:
            metrics.fallbacks["a row looked where there is nothing: the launch ran in parts"] += 1
        if launch.steps:
            metrics.steps_per_launch.add(launch.steps)
            metrics.step_seconds.add(work.seconds / launch.steps, rows)
        whole = time.perf_counter() - work.began
        self.pace.note(launch.steps, work.seconds, whole - work.seconds)


def slots_of(model: Model, count: int, backend: str = "auto") -> Slots:
    """So many slots, or a few more that stay empty, which costs nothing: a capture knows the batch by its size, which must be no other."""
    loop, larger = model.loop(count), model.loop(count + 1)
    fixed = {mine for mine, theirs in zip(_sizes(loop), _sizes(larger), strict=True) if mine == theirs}
    rows = next(number for number in itertools.count(count) if number not in fixed)
    if rows != count:
        loop = larger if rows == count + 1 else model.loop(rows)
    made = Slots(loop.cell, loop.loop_fn, loop.rows, backend=backend)
    if made.count != rows:
        raise ValueError(f"the model's loop has {made.count} rows where {rows} were asked for")
    return made


def _sizes(loop: SlotLoop) -> list[int]:
    """Of all that it closes over but parameters."""
    tensors = closure.walk(Call.checked(loop.cell, loop.loop_fn).cell, loop.loop_fn).tensors
    return [size for tensor in tensors if not isinstance(tensor, torch.nn.Parameter) for size in tensor.shape]


def _failed(error: BaseException) -> RequestFailed:
    made = RequestFailed(f"{type(error).__name__}: {error}")
    made.__cause__ = error
    return made
