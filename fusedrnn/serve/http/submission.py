"""Requests to an engine for one HTTP request. In: rows; out: their streams, all or none, and what they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..engine import Engine, Stream
from .problems import Problem, refusing


@contextmanager
def submitted(engine: Engine, rows: Sequence[Any], *, priority: int, deadline: float) -> Iterator[list[Stream]]:
    """The streams of the rows, all accepted or none; those that have not ended with the block are cancelled.

    Raises:
        Problem: there are more rows than the engine ever holds, or one is no request of its model.
        ServeError: as `Engine.submit`.
    """
    room = engine.scheduler.queue + engine.metrics.slots
    if len(rows) > room:
        raise Problem(413, f"{len(rows)} rows at once are more than the {room} that run and wait here: send fewer")
    streams = list[Stream]()
    try:
        with refusing():
            for row in rows:
                streams.append(engine.submit(row, priority=priority, deadline=deadline))
        yield streams
    finally:
        for stream in streams:
            stream.cancel()


async def answers(engine: Engine, rows: Sequence[Any], *, priority: int, deadline: float) -> list[list[Any]]:
    """The chunks of each row, when all have ended. Errors: `submitted`, `Stream`."""
    with submitted(engine, rows, priority=priority, deadline=deadline) as streams:
        return [await stream.chunks() for stream in streams]
