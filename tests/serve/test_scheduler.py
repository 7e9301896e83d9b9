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

pytestmark = pytest.mark.usefixtures("auto")
MODEL = Sayer()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def scheduler(slots: int = 3, **options: Any) -> Scheduler:
    return Scheduler(MODEL, slots, clock=Clock(), **options)


def ended(served: Scheduler, *tickets: Ticket) -> list[list[Any]]:
    """Steps until all have ended; their chunks put together."""
    for _ in range(1000):
        if all(ticket.done for ticket in tickets):
            break
        assert served.step()
    return [[piece for chunk in ticket.chunks for piece in chunk] for ticket in tickets]


@cache
def solo(request: Say) -> list[Any]:
    """What a request gives when no one else is there."""
    served = scheduler(2)
    ticket = served.submit(request)
    (made,) = ended(served, ticket)
    assert ticket.error is None
    return made


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


def test_requests_enter_by_priority_and_then_in_their_order() -> None:
    served = scheduler(2, queue=10)
    tickets = [served.submit(Say(seed, 9), priority=priority) for seed, priority in enumerate([2, 1, 1, 0, 2])]
    while served.step():
        served.clock.now += 1  # type: ignore[attr-defined]
    began = sorted(range(5), key=lambda place: (tickets[place].started, tickets[place].slot))
    assert began == [3, 1, 2, 0, 4]


def test_a_cancelled_request_frees_its_slot_for_the_next_launch() -> None:
    served = scheduler(2, queue=5, steps=1)
    first, second, third = (served.submit(Say(seed, 9)) for seed in (1, 2, 4))
    work = served.plan()
    assert work is not None
    served.cancel(first)  # while a launch is under way
    work.run()
    served.settle(work)
    assert isinstance(first.error, Cancelled)
    assert not first.chunks
    work = served.plan()
    assert work is not None
    assert third.slot == 0
    work.run()
    served.settle(work)
    made = ended(served, second, third)
    assert made == [solo(second.request), solo(third.request)]


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits() -> None:
    served = scheduler(2, steps=1)
    running, other, waiting = (served.submit(Say(seed, 9), deadline=seconds) for seed, seconds in ((1, 3.0), (2, None), (4, 2.0)))
    assert served.step()
    served.clock.now += 3  # type: ignore[attr-defined]
    assert served.step()
    assert isinstance(running.error, DeadlineExceeded)
    assert "deadline of 3 s passed after 1 steps" in str(running.error)
    assert isinstance(waiting.error, DeadlineExceeded)
    assert served.metrics.expired == 2
    assert ended(served, other) == [solo(other.request)]


def test_the_step_limit_ends_a_request_and_keeps_its_chunks() -> None:
    long = next(seed for seed in range(40) if len(solo(Say(seed, 9))) == 9)
    served = scheduler(2, step_limit=4, steps=1)
    ticket = served.submit(Say(long, 9))
    (made,) = ended(served, ticket)
    assert isinstance(ticket.error, StepLimit)
    assert made == solo(Say(long, 9))[:4]


def test_a_full_queue_and_a_bad_request_are_refused_at_once() -> None:
    served = scheduler(2, queue=1)
    for seed in range(3):
        served.submit(Say(seed))
    with pytest.raises(QueueFull, match="3 requests are waiting already") as full:
        served.submit(Say(3))
    assert full.value.retry_after > 0
    with pytest.raises(TypeError, match="a request must be a Say, got str"):
        served.submit("hello")
    with pytest.raises(ValueError, match="deadline must be at least 0 seconds, got nan"):
        served.submit(Say(3), deadline=float("nan"))
    with pytest.raises(TypeError, match="priority must be an int, got 'high'"):
        served.submit(Say(3), priority="high")  # type: ignore[arg-type]
    served.drain()
    with pytest.raises(Draining, match="takes no new requests"):
        served.submit(Say(3))
    assert served.metrics.rejected == {"queue full": 1, "bad request": 3, "draining": 1}
    while served.step():
        pass
    assert served.metrics.completed == 3


def test_a_model_that_fails_for_one_request_or_for_all_loses_no_slot() -> None:
    class Failing(Sayer):
        def admit(self, requests: Any) -> Any:
            if any(request.seed == 7 for request in requests):
                raise KeyError("seven")
            return super().admit(requests)

        def emit(self, request: Any, values: Any) -> Any:
            if request.seed == 5:
                raise ZeroDivisionError("five")
            return super().emit(request, values)

    served = Scheduler(Failing(), 3, clock=Clock())
    tickets = [served.submit(Say(seed, 5)) for seed in (1, 7, 5)]
    made = ended(served, *tickets)
    assert made[0] == solo(Say(1, 5))
    assert [type(ticket.error) for ticket in tickets] == [type(None), RequestFailed, RequestFailed]
    causes = [ticket.error.__cause__ for ticket in tickets if ticket.error is not None]
    assert [type(cause) for cause in causes] == [KeyError, ZeroDivisionError]
    broken = served.slots.launch
    served.slots.launch = None  # type: ignore[assignment]
    lost = served.submit(Say(2, 5))
    assert served.step()
    assert isinstance(lost.error, RequestFailed)
    served.slots.launch = broken  # type: ignore[method-assign]
    assert ended(served, served.submit(Say(2, 5))) == [solo(Say(2, 5))]
    assert served.idle


def test_metrics_count_what_happened() -> None:
    served = scheduler(2, steps=2)
    tickets = [served.submit(Say(seed, 6)) for seed in range(4)]
    ended(served, *tickets)
    metrics = served.metrics
    steps = sum(len(solo(ticket.request)) for ticket in tickets)
    assert (metrics.accepted, metrics.completed, metrics.running, metrics.waiting) == (4, 4, 0, 0)
    assert metrics.row_steps == steps == metrics.step_seconds.count
    assert metrics.launches == metrics.occupancy.count == metrics.launch_seconds.count == metrics.steps_per_launch.count
    assert metrics.steps == metrics.steps_per_launch.sum
    assert metrics.queue_seconds.count == metrics.first_chunk_seconds.count == metrics.total_seconds.count == 4
    assert 0.5 <= metrics.occupancy.mean <= 1
    assert sum(metrics.occupancy.counts) == metrics.launches


@pytest.mark.parametrize(
    ("option", "number", "words"),
    [("slots", 1, "slots must be an int of at least 2, got 1"), ("queue", -1, "queue must"), ("steps", 0, "steps must")],
)
def test_numbers_out_of_range_are_refused(option: str, number: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Scheduler(MODEL, **{"slots": 3, option: number})


def test_a_launch_has_to_be_settled_before_the_next() -> None:
    served = scheduler(2)
    served.submit(Say(1))
    work = served.plan()
    with pytest.raises(RuntimeError, match="settle it before the next one is planned"):
        served.plan()
    with pytest.raises(RuntimeError, match="not the one that was planned last"):
        served.settle(Work(MODEL, served.slots, [], {}, [], 1))
    assert work is not None
    work.run()
    served.settle(work)


def test_a_listener_that_fails_keeps_no_news_from_others(caplog: pytest.LogCaptureFixture) -> None:
    def told() -> None:
        raise OSError("gone")

    served = scheduler(2)
    tickets = [served.submit(Say(seed, 5), told=told) for seed in (1, 2)]
    assert ended(served, *tickets) == [solo(Say(seed, 5)) for seed in (1, 2)]
    assert "a listener of a request failed" in caplog.text


def test_the_step_limit_and_a_fault_are_the_same_for_any_launches() -> None:
    long = next(seed for seed in range(40) if len(solo(Say(seed, 9))) == 9)
    for steps in (1, 3, 8):
        for limit, spoiled, kind, count in (
            (2, "", StepLimit, 2),
            (7, "jump", RequestFailed, 2),
            (2, "jump", StepLimit, 2),
            (9, "", None, 9),
        ):
            served = scheduler(2, step_limit=limit, steps=steps)
            served.pace.step = 1e-9  # as many steps as there may be
            ticket = served.submit(Say(long, 9, spoiled))
            (made,) = ended(served, ticket)
            assert type(ticket.error) is (kind or type(None))
            assert made == solo(Say(long, 9))[:count]
            assert ticket.steps == count


def test_what_finished_in_time_is_not_late_where_it_is_handed_out_late() -> None:
    served = scheduler(2, steps=8)
    ticket = served.submit(Say(1, 5), deadline=1.0)
    while not ticket.over:
        work = served.plan()
        assert work is not None
        work.run()
        served.take_back(work)
    served.clock.now += 5  # type: ignore[attr-defined]
    assert served.plan() is None
    served.hand_out()
    assert ticket.error is None
    assert [piece for chunk in ticket.chunks for piece in chunk] == solo(Say(1, 5))
