"""The engine as coroutines use it."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections.abc import Coroutine
from typing import Any

import pytest
import torch

from fusedrnn.serve import Cancelled, DeadlineExceeded, Draining, Engine, QueueFull, RequestFailed, ServeError
from tests.serve.loops import Say, Sayer, slowed
from tests.serve.test_scheduler import solo

pytestmark = pytest.mark.usefixtures("auto")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def joined(chunks: list[Any]) -> list[Any]:
    return [piece for chunk in chunks for piece in chunk]


LONG = next(seed for seed in range(60) if len(solo(Say(seed, 9))) == 9)


def test_many_requests_at_once_give_what_each_gives_alone() -> None:
    async def main() -> None:
        requests = [Say(seed % 30, seed % 9) for seed in range(120)]
        async with Engine(Sayer(), 5, queue=200) as engine:
            made = await asyncio.gather(*[engine.submit(request).chunks() for request in requests])
        assert [joined(chunks) for chunks in made] == [solo(request) for request in requests]
        assert engine.metrics.completed == 120
        assert engine.metrics.occupancy.mean > 0.5

    run(main())


def test_chunks_come_while_the_request_runs() -> None:
    async def main() -> None:
        async with slowed(Engine(Sayer(), 2, steps=1)) as engine:
            stream = engine.submit(Say(LONG, 9))
            seen = [(len(chunk), stream.ticket.done) async for chunk in stream]
            assert sum(steps for steps, _ in seen) == 9
            assert not seen[0][1]
            assert joined([chunk async for chunk in engine.generate(Say(LONG, 9))]) == solo(Say(LONG, 9))

    run(main())


def test_a_stream_that_is_left_gives_its_slot_to_another() -> None:
    async def main() -> None:
        async with slowed(Engine(Sayer(), 2, steps=1, queue=10)) as engine:
            stream = engine.submit(Say(LONG, 9))
            async with stream:
                async for _ in stream:
                    break
            assert isinstance(stream.ticket.error, Cancelled)
            stream.ticket.chunks.clear()
            with pytest.raises(Cancelled):
                await anext(stream)
            waiting = asyncio.create_task(engine.submit(Say(LONG, 9)).chunks())
            await asyncio.sleep(0)
            waiting.cancel()  # the client is gone
            await asyncio.gather(waiting, return_exceptions=True)
            assert joined(await engine.submit(Say(1)).chunks()) == solo(Say(1))
            assert engine.metrics.cancelled == 2
            assert engine.metrics.running == engine.metrics.waiting == 0

    run(main())


def test_draining_finishes_what_was_accepted_and_takes_no_more() -> None:
    async def main() -> None:
        engine = await Engine(Sayer(), 2, queue=50).start()
        assert engine.ready
        streams = [engine.submit(Say(seed, 9)) for seed in range(20)]
        draining = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        assert not engine.ready
        with pytest.raises(Draining):
            engine.submit(Say(1))
        await draining
        assert all(stream.ticket.done for stream in streams)
        assert [joined(await stream.chunks()) for stream in streams] == [solo(Say(seed, 9)) for seed in range(20)]
        await engine.close()
        await engine.drain()  # there is nothing left to wait for
        with pytest.raises(ServeError, match="closed: make another"):
            engine.submit(Say(1))

    run(main())


def test_closing_cancels_what_has_not_ended() -> None:
    async def main() -> None:
        engine = await slowed(Engine(Sayer(), 2, steps=1, queue=50)).start()
        streams = [engine.submit(Say(LONG, 9)) for _ in range(20)]
        await anext(streams[0])
        await engine.close()
        assert all(stream.ticket.done for stream in streams)
        assert engine.metrics.cancelled + engine.metrics.completed == 20
        assert engine.metrics.cancelled > 0
        with pytest.raises(RuntimeError, match="started before"):
            await engine.start()

    run(main())


def test_deadlines_and_a_full_queue_reach_the_caller() -> None:
    async def main() -> None:
        async with Engine(Sayer(), 2, queue=1, steps=1) as engine:
            late = engine.submit(Say(LONG, 9), deadline=0.0)
            others = [engine.submit(Say(LONG, 9)) for _ in range(2)]
            with pytest.raises(QueueFull):
                engine.submit(Say(LONG, 9))
            with pytest.raises(DeadlineExceeded):
                await late.chunks()
            assert [joined(await stream.chunks()) for stream in others] == [solo(Say(LONG, 9))] * 2

    run(main())


def test_bad_requests_among_good_ones_fail_alone() -> None:
    async def main() -> None:
        spoiled = ["shape", "start", "jump", "nan"]
        requests = [Say(LONG if seed % 3 == 0 else seed % 30, 9, spoiled[seed // 3 % 4] if seed % 3 == 0 else "") for seed in range(90)]
        async with Engine(Sayer(), 7, queue=100) as engine:
            streams = [engine.submit(request) for request in requests]
            made = await asyncio.gather(*[stream.chunks() for stream in streams], return_exceptions=True)
        for request, chunks in zip(requests, made, strict=True):
            if request.spoiled in ("shape", "start", "jump"):
                assert isinstance(chunks, RequestFailed), request
            elif request.spoiled != "nan":
                assert not isinstance(chunks, BaseException)
                assert joined(chunks) == solo(request)

    run(main())


def test_a_fault_of_the_engine_reaches_those_who_wait() -> None:
    async def main() -> None:
        engine = await Engine(Sayer(), 2).start()
        engine.scheduler.take_back = None  # type: ignore[assignment]
        with pytest.raises(RequestFailed, match="TypeError"):
            await engine.submit(Say(1)).chunks()
        assert not engine.ready
        assert not engine.alive
        assert isinstance(engine.error, TypeError)
        with pytest.raises(ServeError, match=r"ended by a fault, TypeError.*make another"):
            engine.submit(Say(1))
        await engine.drain()
        await engine.close()

    run(main())


def test_nothing_is_kept_of_requests_that_have_ended() -> None:
    async def main() -> None:
        order = random.Random(0)
        async with Engine(Sayer(), 4, queue=1000) as engine:

            async def load(count: int) -> None:
                streams = [engine.submit(Say(order.randrange(30), 9), deadline=100.0) for _ in range(count)]
                for stream in streams[::5]:
                    stream.cancel()
                await asyncio.gather(*[stream.chunks() for stream in streams], return_exceptions=True)

            await load(100)
            gc.collect()
            before = len(gc.get_objects())
            await load(600)
            gc.collect()
            await load(100)
            gc.collect()
            assert len(gc.get_objects()) < before + 300
            assert not engine.scheduler._running
            assert not engine.scheduler._waiting
            assert len(engine.scheduler._deadlines) <= 1400
            engine.submit(Say(1), deadline=1.0)
            assert len(engine.scheduler._deadlines) <= 64

    run(main())


def test_launches_have_as_many_threads_as_they_were_given() -> None:
    seen = []

    class Noting(Sayer):
        def admit(self, requests: Any) -> Any:
            seen.append(torch.get_num_threads())
            return super().admit(requests)

    async def main() -> None:
        for threads in (1, 2, None):
            async with Engine(Noting(), 2, threads=threads) as engine:
                assert joined(await engine.submit(Say(1)).chunks()) == solo(Say(1))

    run(main())
    assert seen == [1, 2, torch.get_num_threads()]
    with pytest.raises(ValueError, match="threads must be an int of at least 1, or None, got 0"):
        Engine(Sayer(), 2, threads=0)


def test_draining_ends_where_the_last_request_is_cancelled() -> None:
    async def main() -> None:
        async with slowed(Engine(Sayer(), 2, steps=1)) as engine:
            stream = engine.submit(Say(LONG, 9))
            draining = asyncio.create_task(engine.drain())
            await anext(stream)
            stream.cancel()
            await draining
            assert engine.scheduler.idle

    run(main())


def test_launches_wait_for_an_event_loop_that_does_not_come_to_hand_out() -> None:
    async def main() -> None:
        async with Engine(Sayer(), 2, steps=1, queue=1000) as engine:
            streams = [engine.submit(Say(LONG, 9)) for _ in range(60)]
            time.sleep(0.3)
            assert 0 < engine.scheduler.behind <= 4 * 2 + 2
            assert [joined(await stream.chunks()) for stream in streams] == [solo(Say(LONG, 9))] * 60

    run(main())


def test_hooks_that_raise_or_cancel_end_their_request_alone() -> None:
    class Odd(Sayer):
        def admit(self, requests: Any) -> Any:
            return super().admit(requests)[: 0 if any(request.seed == 3 for request in requests) else None]  # one answer too few

        def emit(self, request: Any, values: Any) -> Any:
            if request.seed == 1:
                streams[1].cancel()
            if request.seed == 2:
                raise LookupError("emit")
            return super().emit(request, values)

    streams: list[Any] = []

    async def main() -> None:
        async with Engine(Odd(), 4) as engine:
            streams.extend(engine.submit(Say(seed, 9)) for seed in (LONG, 1, 2, 3))
            made = await asyncio.gather(*[stream.chunks() for stream in streams], return_exceptions=True)
        assert [type(chunks) for chunks in made] == [list, Cancelled, RequestFailed, RequestFailed]
        assert joined(made[0]) == solo(Say(LONG, 9))  # type: ignore[arg-type]
        assert isinstance(made[2].__cause__, LookupError)  # type: ignore[union-attr]
        metrics = engine.metrics
        assert (metrics.completed, metrics.cancelled, metrics.failed, metrics.running, metrics.waiting) == (1, 1, 2, 0, 0)

    run(main())


def test_a_hook_that_raises_what_is_no_exception_loses_no_request() -> None:
    class Odd(Sayer):
        def emit(self, request: Any, values: Any) -> Any:
            if request.seed == 1:
                raise asyncio.CancelledError
            return super().emit(request, values)

    async def main() -> None:
        async with Engine(Odd(), 3, steps=1, queue=100) as engine:  # more than are handed out at once, had launches to wait
            streams = [engine.submit(Say(1 if place % 3 == 0 else LONG, 9)) for place in range(60)]
            made = await asyncio.gather(*[stream.chunks() for stream in streams], return_exceptions=True)
            await engine.drain()
        for place, chunks in enumerate(made):
            if place % 3 == 0:
                assert isinstance(chunks, RequestFailed)
                assert isinstance(chunks.__cause__, asyncio.CancelledError)
            else:
                assert not isinstance(chunks, BaseException)
                assert joined(chunks) == solo(Say(LONG, 9))

    run(main())


def test_another_event_loop_is_refused_with_a_way_out() -> None:
    async def main() -> None:
        async with Engine(Sayer(), 2) as engine:

            async def other() -> None:
                engine.submit(Say(1))

            for call in (lambda: asyncio.run(other()), lambda: engine.submit(Say(1))):
                with pytest.raises(RuntimeError, match=r"the event loop in which the engine was started.*run_coroutine_threadsafe"):
                    await asyncio.to_thread(call)
            assert engine.metrics.accepted == 0

            async def asked() -> list[Any]:
                return await engine.submit(Say(1)).chunks()

            here = asyncio.get_running_loop()
            far = await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(asked(), here))
            assert joined(await asyncio.wrap_future(far)) == solo(Say(1))

    run(main())


@pytest.mark.filterwarnings("ignore:This process")
def test_a_copy_in_a_forked_process_is_refused() -> None:
    async def main() -> None:
        async with Engine(Sayer(), 2) as engine:
            child = os.fork()
            if not child:
                said = ""
                try:
                    engine.submit(Say(1))
                except ServeError as error:
                    said = str(error)
                finally:  # whatever it was: the tests are the parent's
                    os._exit("forked" not in said)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert joined(await engine.submit(Say(1)).chunks()) == solo(Say(1))

    run(main())


@pytest.mark.parametrize(
    ("deadline", "kind", "said"),
    [
        ("5", TypeError, "a number of seconds from now, or None, got '5'"),
        (True, TypeError, "got True"),
        (-1, ValueError, "at least 0 seconds, got -1"),
    ],
)
def test_deadlines_that_are_none(deadline: Any, kind: type[Exception], said: str) -> None:
    async def main() -> None:
        async with Engine(Sayer(), 2) as engine:
            with pytest.raises(kind, match=said):
                engine.submit(Say(1), deadline=deadline)

    run(main())
