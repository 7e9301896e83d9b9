"""Times on a device. In: functions that enqueue work; out: microseconds of their runs, by CUDA events where there is a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from . import Row, Where

Work = Callable[[], Any]


def microseconds(work: Work, where: Where) -> float:
    """From the call until the device is done with what it enqueued."""
    if where.dry:
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) * 1e6
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    work()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) * 1e3


def in_turn(works: dict[str, Work], where: Where, rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Microseconds of each run of some functions, A B C A B C ..., after rounds that do not count."""
    if where.dry:
        rounds, warm_up = 1, 0
    times: dict[str, list[float]] = {name: [] for name in works}
    for place in range(-warm_up, rounds):
        for name, work in works.items():
            taken = microseconds(work, where)
            if place >= 0:
                times[name].append(taken)
    return times


def spread(times: list[float], per: float = 1.0) -> Row:
    """Median and quartiles, of each of ``per`` parts of the work."""
    ordered = sorted(value / per for value in times)
    quarter = (len(ordered) - 1) // 4
    return {
        "median": round(statistics.median(ordered), 3),
        "quartiles": [round(ordered[quarter], 3), round(ordered[-1 - quarter], 3)],
        "runs": len(ordered),
    }


def ratio(mine: list[float], theirs: list[float]) -> Row:
    """The peer's time over fusedrnn's, pair by pair."""
    return spread([other / own for own, other in zip(mine, theirs, strict=True)])


def marginal(short: list[float], long: list[float], steps: int) -> float:
    """Microseconds of each of the ``steps`` by which one loop is longer than the other: without launch and what comes before the loop."""
    return round((statistics.median(long) - statistics.median(short)) / steps, 3)


def profiled(work: Work, where: Where, kernel: str = "loop") -> Row:
    """Launches of a kernel in one run of some work, and their microseconds, by the profiler."""
    if where.dry:
        return {"profile": "there is none of an emulated kernel"}
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            work()
            torch.cuda.synchronize()
        times = [event.time_range.elapsed_us() for event in profile.events() if event.name == kernel]
    except RuntimeError as error:  # not every container lets it count
        return {"profile": str(error).splitlines()[0]}
    return {"launches": len(times), "kernel_us": round(sum(times), 1)}
