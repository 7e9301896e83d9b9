"""Requests in any order, cancelled, too late and bad ones among them: no slot is lost, and each gives what it would give alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fusedrnn.serve import Cancelled, DeadlineExceeded, Draining, QueueFull, RequestFailed, Scheduler, StepLimit, Ticket  # fmt: skip
from fusedrnn.serve.pace import Pace
from fusedrnn.serve.work import Work
from tests.serve.loops import Say, Sayer
from tests.serve.test_scheduler import Clock, solo

pytestmark = pytest.mark.usefixtures("auto")


class Hooked(Sayer):
    """A model whose hooks fail for some requests, and give one up from within."""

    def __init__(self) -> None:
        super().__init__()
        self.give_up: Any = None

    def admit(self, requests: Any) -> Any:
        if any(request.spoiled == "admit" for request in requests):
            raise KeyError("admit")
        return super().admit(requests)

    def emit(self, request: Any, values: Any) -> Any:
        if request.spoiled == "emit":
            raise ZeroDivisionError("emit")
        if request.spoiled == "gives up":
            self.give_up(request)
        return super().emit(request, values)


HOOKED = Hooked()
SPOILED = ["shape", "start", "jump", "nan", "admit", "emit", "gives up"]


@cache
def expected(request: Say, limit: int | None) -> tuple[list[Any], type[Exception] | None]:
    """What a request gives, and what it ends with, if no one meddles."""
    if request.spoiled in ("shape", "start", "admit"):
        return [], RequestFailed
    said = solo(Say(request.seed, request.most, "nan" if request.spoiled == "nan" else ""))
    if said and request.spoiled in ("emit", "gives up"):
        return [], RequestFailed if request.spoiled == "emit" else Cancelled
    if limit is not None and len(said) > limit and not (request.spoiled == "jump" and limit > 2):
        return said[:limit], StepLimit
    if request.spoiled == "jump" and len(said) > 2:  # loop_fn looks up in the step that ends a row, too
        return said[:2], RequestFailed
    return said, None


class Chosen(Pace):
    """Steps as a test wants them: by the clock, the same rules would not be the same test twice."""

    def __init__(self) -> None:
        super().__init__(1.0, 1.0, 8)
        self.chosen = 1

    def steps(self, urgent: bool) -> int:
        return self.chosen


class Requests(RuleBasedStateMachine):
    """Against a model that knows of each request only how it must end."""

    def __init__(self) -> None:
        super().__init__()
        self.served: Scheduler
        self.work: Work | None = None
        self.tickets: list[Ticket] = []
        self.ends: dict[Ticket, type[Exception]] = {}  # of those that someone meddled with

    @initialize(slots=st.integers(2, 4), queue=st.integers(0, 3), limit=st.none() | st.integers(1, 7))
    def begin(self, slots: int, queue: int, limit: int | None = None) -> None:
        HOOKED.give_up = self.give_up
        self.served = Scheduler(HOOKED, slots, clock=Clock(), queue=queue, step_limit=limit)
        self.served.pace = self.pace = Chosen()

    def give_up(self, request: Any) -> None:
        for ticket in self.tickets:
            if ticket.request is request:
                self.served.cancel(ticket)

    @rule(
        seed=st.integers(0, 30),
        most=st.integers(0, 9),
        priority=st.integers(0, 2),
        seconds=st.none() | st.sampled_from([0.0, 1.0, 5.0]),
        spoiled=st.just("") | st.sampled_from(SPOILED),
    )
    def submit(self, seed: int, most: int, priority: int = 0, seconds: float | None = None, spoiled: str = "") -> None:
        served, metrics = self.served, self.served.metrics
        room = served.queue + metrics.slots - metrics.running - metrics.waiting
        try:
            ticket = served.submit(Say(seed, most, spoiled), priority=priority, deadline=seconds)
        except Draining:
            assert served.draining
            return
        except QueueFull:
            assert room <= 0
            return
        assert not served.draining
        assert room > 0
        self.tickets.append(ticket)

    @precondition(lambda self: self.work is None)
    @rule(steps=st.integers(1, 5))
    def plan(self, steps: int = 1) -> None:
        self.pace.chosen = steps
        self.work = self.served.plan()
        if self.work is None:
            self.served.hand_out()
            assert self.served.idle

    @precondition(lambda self: self.work is not None)
    @rule()
    def launch(self) -> None:
        work, self.work = self.work, None
        assert work is not None
        work.run()
        assert work.error is None
        self.served.take_back(work)

    @precondition(lambda self: self.work is not None)
    @rule()
    def launch_that_fails(self) -> None:
        work, self.work = self.work, None
        assert work is not None
        whole, self.served.slots.launch = self.served.slots.launch, None  # type: ignore[assignment,method-assign]
        work.run()
        self.served.slots.launch = whole  # type: ignore[method-assign]
        assert work.error is not None
        self.served.hand_out()
        for ticket in work.occupants.values():
            if not ticket.over:
                self.ends[ticket] = RequestFailed
        self.served.take_back(work)

    @rule()
    def hand_out(self) -> None:
        self.served.hand_out()

    @precondition(lambda self: self.tickets)
    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        ticket = self.tickets[which % len(self.tickets)]
        if not ticket.done:
            self.ends[ticket] = Cancelled
        self.served.cancel(ticket)
        assert ticket.done

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        self.served.clock.now += seconds  # type: ignore[attr-defined]

    @rule()
    def drain(self) -> None:
        self.served.drain()

    @invariant()
    def no_slot_is_lost_and_no_request(self) -> None:
        if not hasattr(self, "served"):
            return
        served, metrics = self.served, self.served.metrics
        assert sorted([*served._free, *served._running]) == list(range(metrics.slots))
        assert metrics.running == len(served._running)
        assert metrics.waiting == sum(not ticket.over for _, _, ticket in served._waiting)
        assert metrics.accepted == len(self.tickets)
        over = metrics.completed + metrics.failed + metrics.cancelled + metrics.expired
        made = sum(one.over and not one.ticket.done for one in served._made)
        assert metrics.accepted == over + metrics.running + metrics.waiting + made
        assert over == sum(ticket.done for ticket in self.tickets)
        if self.work is None:
            assert {slot for slot in range(served.slots.count) if not served.slots.finished[slot]} <= {*served._running, *served._freed}

    def teardown(self) -> None:
        if not hasattr(self, "served"):
            return
        if self.work is not None:
            self.launch()
        self.served.drain()
        while self.served.step():
            pass
        assert self.served.idle
        for ticket in self.tickets:
            assert ticket.done
            said, end = expected(ticket.request, self.served.step_limit)
            made = [piece for chunk in ticket.chunks for piece in chunk]
            assert made == said[: len(made)], ticket.request
            if isinstance(ticket.error, DeadlineExceeded):
                assert ticket.deadline is not None
                assert ticket.deadline <= self.served.clock()
            elif ticket in self.ends:
                assert type(ticket.error) is self.ends[ticket], ticket.error
            else:
                assert type(ticket.error) is (end or type(None)), ticket.error
                assert made == said, ticket.request


@pytest.mark.parametrize("spoiled", ["shape", "admit", "start"])
def test_a_request_that_cannot_begin_is_given_nothing_of_the_one_before_it(spoiled: str) -> None:
    machine = Requests()
    machine.begin(slots=2, queue=0)
    machine.submit(0, 2)
    machine.plan()
    machine.cancel(0)
    machine.submit(0, 0, spoiled=spoiled)
    machine.teardown()
    assert not machine.tickets[1].chunks


Requests.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestRequests = pytest.mark.usefixtures("auto")(Requests.TestCase)
