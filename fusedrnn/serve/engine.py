"""The engine of a server. In: requests from coroutines; out: their chunks, as they are made."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import torch

from ..fallback import log
from .errors import ServeError
from .metrics import Metrics
from .model import Model
from .scheduler import Scheduler
from .work import Ticket

_LAUNCHES_BEHIND = 4  # that are not handed out, at most


class Stream(AsyncIterator[Any]):
    """The chunks of one request, in their order; iterating raises at the end what ended the request, if its row did not finish.

    As a context manager it cancels the request where its block is left early: a client that is gone frees its slot within one launch. A
    stream that is dropped otherwise is not cancelled: its request runs on to its end or deadline. Chunks wait here for who takes them.
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
    whoever else is there, and none touches another. Between `start` and `close` a thread plans and computes launch after launch; the event
    loop hands out what they made, at most a few launches behind.

    Args:
        model: what is served.
        slots: how many requests run at once.
        threads: of a launch; None: as many as torch has where the engine is made.
        options: as `Scheduler` has them.

    Raises:
        ValueError: a number is out of range.
        PlanError: the model's loop cannot be served: ``.reason`` says why.

    Attributes:
        error: the fault that has ended it; None for none.
    """

    def __init__(self, model: Model, slots: int = 256, *, threads: int | None = None, **options: Any) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads must be an int of at least 1, or None, got {threads!r}")
        self.model, self.threads = model, threads or torch.get_num_threads()
        self.scheduler = Scheduler(model, slots, **options)
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = self._announced = False
        self._wake, self._read = threading.Event(), threading.Event()  # there are requests; what was made was handed out
        self._quiet = asyncio.Event()

    @property
    def metrics(self) -> Metrics:
        """What it has counted."""
        return self.scheduler.metrics

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self.alive and not self.scheduler.draining

    @property
    def alive(self) -> bool:
        """Whether it was started and neither closed nor ended by a fault: it may be draining."""
        return self._thread is not None and not self._closing and self.error is None

    async def start(self) -> Self:
        """Begin to serve. Raises RuntimeError if it was begun before."""
        if self._thread is not None:
            raise RuntimeError("this engine was started before: make another")
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, name=f"fusedrnn engine of {self.model.name}", daemon=True)
        self._thread.start()
        return self

    def submit(self, request: Any, *, priority: int = 0, deadline: float | None = None) -> Stream:
        """Accept a request; arguments and errors are those of `Scheduler.submit`.

        Raises:
            ServeError: the engine is not started, has been closed, was ended by a fault, or is a copy in a forked process.
            RuntimeError: this is not the event loop in which the engine was started.
        """
        self._check_alive()
        stream = Stream(self, self.scheduler.submit(request, priority=priority, deadline=deadline))
        self._wake.set()
        return stream

    def _check_alive(self) -> None:
        if self.error is not None:
            raise ServeError(f"the engine was ended by a fault, {self.error!r}: make another")
        if self._thread is None:
            raise ServeError("the engine is not running: await its start()")
        if self._closing:
            raise ServeError("the engine has been closed: make another")
        if not self._thread.is_alive():  # or it has just failed, which the event loop is about to hear
            raise ServeError("the engine's thread does not run, as in a forked process: make an engine in each process")
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not self._loop:
            raise RuntimeError(
                "submit must be called in the event loop in which the engine was started: elsewhere, hand a coroutine that does to "
                "asyncio.run_coroutine_threadsafe"
            )

    async def generate(self, request: Any, *, priority: int = 0, deadline: float | None = None) -> AsyncIterator[Any]:
        """The chunks of a request, which is cancelled where the iteration is given up. Errors: `submit`, `Stream`."""
        async with self.submit(request, priority=priority, deadline=deadline) as stream:
            async for chunk in stream:
                yield chunk

    async def drain(self) -> None:
        """Take no more requests and wait until all that were accepted have ended."""
        self.scheduler.drain()
        while self.alive and not self.scheduler.idle:
            self._quiet.clear()
            await self._quiet.wait()

    async def close(self) -> None:
        """Cancel what has not ended, and stop. After `drain` nothing is cancelled."""
        self.scheduler.drain()
        self._closing = True
        self._wake.set()
        self._read.set()
        try:
            if self._thread is not None:  # it still waits for the launch that is under way
                await asyncio.to_thread(self._thread.join)
        finally:
            self.scheduler.end_all()
            self._quiet.set()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                await self.drain()
        finally:
            await self.close()

    def _serve(self) -> None:
        """Launch after launch, in the engine's thread."""
        try:
            torch.set_num_threads(self.threads)  # a thread begins with as many as the environment says
            self._launches()
        except BaseException as error:
            log.exception("the engine of %s has ended by a fault", self.model.name)
            self._call(self._fail, error)

    def _launches(self) -> None:
        scheduler = self.scheduler
        most = _LAUNCHES_BEHIND * scheduler.metrics.slots
        while not self._closing:
            self._wake.clear()
            work = scheduler.plan()
            if work is not None:
                work.run()
                scheduler.take_back(work)
            if (scheduler.behind or work is None) and not self._announced:
                self._announced = True
                self._call(self._hand_out)
            if work is None:
                self._wake.wait()
            while scheduler.behind > most and not self._closing:  # nothing piles up where the event loop does not come to it
                self._read.clear()
                if scheduler.behind > most:
                    self._read.wait()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the event loop call something; where it has gone without `close`, there is no one left to serve."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._closing = True

    def _hand_out(self) -> None:
        self._announced = False
        try:
            self.scheduler.hand_out()
        except BaseException:  # what a model raised to end more than its request: others have theirs to come
            self._announced = True
            self._call(self._hand_out)
            raise
        self._read.set()
        if self.scheduler.idle:
            self._quiet.set()

    def _fail(self, error: BaseException) -> None:
        """No one may wait for what never comes."""
        self.error = error
        self.scheduler.drain()
        self.scheduler.end_all(error)
        self._quiet.set()
