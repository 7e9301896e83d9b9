"""Load for a while: clients that leave, are slow, come too late or send nonsense. Nothing is lost, and memory stays as it is.

A minute, unless ``FUSEDRNN_SOAK_SECONDS`` says for how long; an hour is 3600.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from pathlib import Path

import pytest

from fusedrnn.serve import DeadlineExceeded, Engine, QueueFull, RequestFailed
from tests.serve.loops import Say, Sayer
from tests.serve.test_scheduler import solo

pytestmark = [pytest.mark.usefixtures("auto"), pytest.mark.slow]
SECONDS = float(os.environ.get("FUSEDRNN_SOAK_SECONDS", "60"))
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_load_of_every_kind_loses_nothing_and_keeps_nothing() -> None:
    order = random.Random(0)
    answered = refused = 0
    wanted = {Say(seed, most): solo(Say(seed, most)) for seed in range(10) for most in range(10)}

    async def client(engine: Engine) -> None:
        nonlocal answered, refused
        kind = order.choice(["plain"] * 6 + ["leaves", "slow", "late", "bad"])
        request = Say(order.randrange(10), order.randrange(10), order.choice(["jump", "start", "shape", "nan"]) if kind == "bad" else "")
        try:
            stream = engine.submit(request, priority=order.randrange(3), deadline=order.choice([0.0, 0.002]) if kind == "late" else 60.0)
        except QueueFull:
            refused += 1
            return
        made = []
        try:
            async with stream:
                async for chunk in stream:
                    made += chunk
                    if kind == "leaves":
                        return
                    if kind == "slow":
                        await asyncio.sleep(0.01)
        except (DeadlineExceeded, RequestFailed):
            if kind not in ("late", "bad"):
                raise
        else:
            assert request.spoiled or made == wanted[request]
            answered += 1

    async def main() -> None:
        async with Engine(Sayer(), 16, queue=32) as engine:
            until, memory = time.monotonic() + SECONDS, 0
            clients: set[asyncio.Task[None]] = set()
            while time.monotonic() < until:
                for _ in range(order.randrange(60)):
                    task = asyncio.create_task(client(engine))
                    clients.add(task)
                await asyncio.sleep(order.choice([0.0, 0.005, 0.02]))
                for task in [task for task in clients if task.done()]:
                    clients.discard(task)
                    task.result()
                if not memory and time.monotonic() > until - 0.7 * SECONDS:
                    gc.collect()
                    memory = resident()
            await asyncio.gather(*clients)
            clients.clear()
            gc.collect()
            grown = resident() - memory
            metrics = engine.metrics
            assert metrics.accepted == metrics.completed + metrics.failed + metrics.cancelled + metrics.expired
            assert engine.scheduler.idle
            assert metrics.accepted > 50 * SECONDS
            assert answered > metrics.accepted / 2
            assert min(metrics.failed, metrics.cancelled, metrics.expired, refused) > 0
            assert grown < 16 << 20, f"{grown / 2**20:.1f} MiB more than after three tenths of the time"

    asyncio.run(main())
