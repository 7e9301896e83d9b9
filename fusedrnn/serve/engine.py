"""The engine of a server. In: requests from coroutines; out: their chunks, as they are made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch

from .errors import ServeError
from .metrics import Metrics
from .model import Model
from .scheduler import Scheduler
from .work import Ticket


class Stream(AsyncIterator[Any]):
    """The chunks of one request, in their order; iterating raises at the end what ended the request, if its row did not finish.

    As a context manager it cancels the request where its block is left early: a client that is gone frees its slot within one launch.
    """

    def __init__(self, engine: Engine, ticket: Ticket) -> None:
        self.ticket = ticket
        self._engine = engine
        self._news = asyncio.Event()
        ticket.told = self._news.set

    def cancel(self) -> None:
        """Give the request up."""
        self._engine.scheduler.cancel(self.ticket)

    async def __anext__(self) -> Any:
        ticket = self.ticket
        while not ticket.chunks:
            if ticket.done:
                if ticket.error is not None:
                    raise ticket.error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return ticket.chunks.popleft()

    async def chunks(self) -> list[Any]:
        """All chunks that are left, when the request has ended; cancelled, it cancels the request.

        Raises:
            ServeError: what ended the request, if its row did not finish.
        """
        async with self:
            return [chunk async for chunk in self]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()


class Engine:
    """Continuous batching of a model's requests over a fixed number of slots.

    Requests enter free slots between launches and leave at the step in which they finish. A request's output has the same bits
    whoever else is there, and none touches another. Between `start` and `close` a task of the event loop plans, and a thread computes.

    Args:
        model: what is served.
        slots: how many requests run at once.
        threads: of a launch; None: as many as torch has where the engine is made.
        options: as `Scheduler` has them.

    Raises:
        ValueError: a number is out of range.
        PlanError: the model's loop cannot be served: ``.reason`` says why.
    """

    def __init__(self, model: Model, slots: int = 256, *, threads: int | None = None, **options: Any) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads must be an int of at least 1, or None, got {threads!r}")
        self.model, self.threads = model, threads or torch.get_num_threads()
        self.scheduler = Scheduler(model, slots, **options)
        self._thread: ThreadPoolExecutor | None = None
        self._driver: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._quiet = asyncio.Event()

    @property
    def metrics(self) -> Metrics:
        """What it has counted."""
        return self.scheduler.metrics

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self._driver is not None and not self._driver.done() and not self.scheduler.draining

    @property
    def alive(self) -> bool:
        """Whether it was started and neither closed nor ended by a fault: it may be draining."""
        return self._driver is not None and not self._driver.done()

    async def start(self) -> Self:
        """Begin to serve. Raises RuntimeError if it was begun before."""
        if self._driver is not None:
            raise RuntimeError("this engine was started before: make another")
        self._thread = ThreadPoolExecutor(
            1, "fusedrnn-serve", torch.set_num_threads, (self.threads,)
        )  # a thread begins with as many as the environment says
        self._driver = asyncio.create_task(self._drive(), name=f"fusedrnn engine of {self.model.name}")
        return self

    def submit(self, request: Any, *, priority: int = 0, deadline: float | None = None) -> Stream:
        """Accept a request; arguments and errors are those of `Scheduler.submit`.

        Raises:
            ServeError: the engine is not started.
        """
        if self._driver is None or self._driver.done():
            raise ServeError("the engine is not running: await its start()")
        stream = Stream(self, self.scheduler.submit(request, priority=priority, deadline=deadline))
        self._news.set()
        return stream

    async def generate(self, request: Any, *, priority: int = 0, deadline: float | None = None) -> AsyncIterator[Any]:
        """The chunks of a request, which is cancelled where the iteration is given up. Errors: `submit`, `Stream`."""
        async with self.submit(request, priority=priority, deadline=deadline) as stream:
            async for chunk in stream:
                yield chunk

    async def drain(self) -> None:
        """Take no more requests and wait until all that were accepted have ended."""
        self.scheduler.drain()
        while not self.scheduler.idle and self._driver is not None and not self._driver.done():
            self._quiet.clear()
            self._news.set()
            await self._quiet.wait()

    async def close(self) -> None:
        """Cancel what has not ended, and stop. After `drain` nothing is cancelled."""
        self.scheduler.drain()
        if self._driver is not None and not self._driver.done():
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        self.scheduler.end_all()
        if self._thread is not None:
            self._thread.shutdown()
        self._quiet.set()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                await self.drain()
        finally:
            await self.close()

    async def _drive(self) -> None:
        try:
            await self._launches()
        except BaseException as error:  # a fault of the engine, or its end: no one may wait for what never comes
            self.scheduler.drain()
            self.scheduler.end_all(None if isinstance(error, asyncio.CancelledError) else error)
            self._quiet.set()
            raise

    async def _launches(self) -> None:
        loop, scheduler = asyncio.get_running_loop(), self.scheduler
        while True:
            work = scheduler.plan()
            if work is None:
                self._quiet.set()
                self._news.clear()
                await self._news.wait()
                continue
            computed = loop.run_in_executor(self._thread, work.run)
            try:
                scheduler.hand_out()  # what the launch before has made, while this one runs
                await asyncio.shield(computed)
            finally:  # told to stop, it still waits for the launch that is under way
                if not computed.done():
                    await asyncio.wait([computed])
                scheduler.take_back(work)
