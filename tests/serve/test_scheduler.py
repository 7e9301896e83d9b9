"""Who runs when, who is refused, and what is counted."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from fusedrnn.serve import Cancelled, DeadlineExceeded, Draining, QueueFull, RequestFailed, Scheduler, StepLimit, Ticket  # fmt: skip
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


def test_a_launch_that_fails_is_told_of_with_its_cause(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(steps: int) -> None:
        raise OSError("no memory")

    served = scheduler(2)
    tickets = [served.submit(Say(seed, 5)) for seed in (1, 2)]
    with monkeypatch.context() as patched:
        patched.setattr(served.slots, "launch", broken)
        assert served.step()
    assert [str(ticket.error) for ticket in tickets] == ["OSError: no memory"] * 2
    assert "a launch of sayer has failed, and its 2 requests" in caplog.text
    assert "OSError: no memory" in caplog.text
    assert ended(served, served.submit(Say(1, 5))) == [solo(Say(1, 5))]
