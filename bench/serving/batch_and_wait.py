"""A plain batching server: it gathers requests, runs them together to the end, answers, and gathers again. The same slots run them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from fusedrnn.serve import Model, Slots
from fusedrnn.serve.scheduler import slots_of

_AT_ONCE = 1 << 12  # steps of a launch: all that a batch takes


class Batch:
    """Requests of a model, run together to their end. Rows that have finished take no time.

    Args:
        model: what is served.
        most: requests in a batch.
    """

    def __init__(self, model: Model, most: int) -> None:
        self.model, self.slots = model, slots_of(model, most)

    @torch.no_grad()
    def run(self, requests: Sequence[Any]) -> list[list[Any]]:
        """The chunks of each."""
        slots: Slots = self.slots
        wrong = slots.admit(dict(enumerate(self.model.admit(requests))))  # type: ignore[arg-type]
        assert not wrong, wrong
        parts: list[list[list[np.ndarray]]] = [[] for _ in requests]
        while not slots.finished.all():
            launch = slots.launch(_AT_ONCE)
            for row, mine in enumerate(parts):
                mine.append([emit[: launch.taken[row], row] for emit in launch.emits])
        chunks = []
        for request, mine in zip(requests, parts, strict=True):
            if not mine:  # no row had a step to take
                chunks.append([])
                continue
            whole = [np.concatenate(leaves) for leaves in zip(*mine, strict=True)]
            chunk = self.model.emit(request, slots.emit_tree(whole))
            chunks.append([] if chunk is None else [chunk])
        return chunks


class BatchAndWait:
    """Batches of a model's requests.

    Args:
        model: what is served.
        most: requests in a batch.
        wait: seconds that the first request of a batch waits for others.
    """

    def __init__(self, model: Model, most: int, wait: float) -> None:
        self.most, self.wait, self._batch = most, wait, Batch(model, most)
        self._waiting: asyncio.Queue[tuple[Any, asyncio.Future[list[Any]]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
        self._task: asyncio.Task[None] | None = None
        self.batches = 0

    async def __aenter__(self) -> BatchAndWait:
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: Any) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    async def __call__(self, request: Any) -> AsyncIterator[Any]:
        """The chunks of a request, when its batch has ended."""
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((request, answer))
        for chunk in await answer:
            yield chunk

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            until = loop.time() + self.wait
            while len(batch) < self.most:
                left = until - loop.time()
                if self._waiting.empty() and left <= 0:
                    break
                try:  # without time left `wait_for` would not even look at what is there
                    batch.append(
                        self._waiting.get_nowait() if not self._waiting.empty() else await asyncio.wait_for(self._waiting.get(), left)
                    )
                except TimeoutError:
                    break
            made = await loop.run_in_executor(self._thread, self._batch.run, [request for request, _ in batch])
            self.batches += 1
            for (_, answer), chunks in zip(batch, made, strict=True):
                answer.set_result(chunks)
