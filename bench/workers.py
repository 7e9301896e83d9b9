"""Work in processes of its own. In: a function and its arguments; out: its results, or why there is none: a crash or a hang costs one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any
from unittest import mock

_SPAWN = multiprocessing.get_context("spawn")


class Failure(str):
    """Why a call has no result, in one line."""


def results(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    jobs: int,
    limit: Callable[[], float],
    without: Sequence[str] = (),
) -> Iterator[tuple[int, Any]]:
    """The place of a call and what it returned, as they end; a `Failure` where it raised, crashed or took too long.

    A process serves many calls; one whose call failed is replaced, because it may have lost its device.

    Args:
        function: importable, as its arguments and results are: they are pickled.
        limit: the seconds that a call may take, asked when it is given out; at 0 or less, calls fail without being made.
        without: environment variables that the processes do not have.
    """
    waiting = list(enumerate(calls))[::-1]
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and limit() <= 0:
                yield waiting.pop()[0], Failure("no time left")
            while waiting and len(workers) < jobs:
                workers.append(_Worker(function, without))
                workers[-1].give(*waiting.pop(), limit())
            wait([worker.pipe for worker in workers], timeout=1.0)
            for worker in list(workers):
                for result in worker.ended():
                    yield worker.place, result
                    if waiting and limit() > 0 and not isinstance(result, Failure):
                        worker.give(*waiting.pop(), limit())
                    else:
                        workers.remove(worker)
                        worker.stop(patience=10.0)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process, and the call that it is at."""

    def __init__(self, function: Callable[..., Any], without: Sequence[str]) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(function, theirs), daemon=True)
        with mock.patch.dict(os.environ):
            for name in without:
                os.environ.pop(name, None)
            self.process.start()
        theirs.close()  # or its end would not be seen when the process dies

    def give(self, place: int, call: tuple[Any, ...], limit: float) -> None:
        self.place, self._limit, self._until = place, limit, time.monotonic() + limit
        with contextlib.suppress(OSError):  # it died meanwhile: `ended` tells
            self.pipe.send(call)

    def ended(self) -> list[Any]:
        """What became of the call; nothing while it runs."""
        try:
            if self.pipe.poll():
                return [self.pipe.recv()]
        except (EOFError, OSError):
            self.process.join(5)
            return [Failure(f"the process crashed: {_exit(self.process.exitcode)}")]
        if time.monotonic() > self._until:
            self.process.kill()
            self.process.join()
            return [Failure(f"no end in {self._limit:.0f} s")]
        return []

    def stop(self, *, patience: float = 0.0) -> None:
        self.pipe.close()  # it ends when it sees that
        self.process.join(patience)
        self.process.kill()
        self.process.join()


def _serve(function: Callable[..., Any], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this ends it
    while True:
        try:
            call = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(*call))
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            pipe.send(Failure(f"{type(error).__name__}: {first}"))


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
