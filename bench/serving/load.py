"""Open-loop load. In: requests, when they come, and a server; out: when each had its first chunk and its last.

Arrivals are a Poisson process and do not wait for answers; a request's times count from when it was due, not from when the loop came to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Server = Callable[[Any], AsyncIterator[Any]]  # the chunks of a request


@dataclass
class Times:
    """Of one request, in seconds from when it was due; NaN where it failed.

    Attributes:
        first, total: to the first chunk and to the last.
        units: of output, as the load counts them.
    """

    first: float = float("nan")
    total: float = float("nan")
    units: int = 0


@dataclass
class Report:
    """What a load found.

    Attributes:
        offered, served: requests a second that came, and that were answered until the last was.
        units: of output a second.
        failed: requests.
        first, total: seconds at p50, p95 and p99.
    """

    offered: float
    served: float
    units: float
    failed: int
    first: dict[str, float]
    total: dict[str, float]


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """When so many requests come, a Poisson process of so many a second."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count)).tolist()  # type: ignore[no-any-return]


def heavy_tailed(count: int, seed: int, *, least: int, most: int, shape: float) -> list[int]:
    """Lengths of a Pareto distribution with that shape, between two numbers: most are short, and the few long ones are most of the work."""
    drawn = least * (1 + np.random.default_rng(seed).pareto(shape, count))
    return np.minimum(drawn, most).astype(int).tolist()  # type: ignore[no-any-return]


async def driven(server: Server, requests: Sequence[Any], due: Sequence[float], count: Callable[[Any], int]) -> Report:
    """Send requests when they are due and wait for all answers.

    Args:
        server: gives the chunks of a request.
        count: the units of output in a chunk.
    """
    began = time.perf_counter() + 0.05
    times = [Times() for _ in requests]
    tasks = []
    for request, at, mine in zip(requests, due, times, strict=True):
        late = began + at - time.perf_counter()
        if late > 0:
            await asyncio.sleep(late)
        tasks.append(asyncio.create_task(_sent(server, request, began + at, mine, count)))
    await asyncio.gather(*tasks)
    seconds = time.perf_counter() - began
    answered = [mine for mine in times if mine.total == mine.total]
    return Report(
        len(requests) / due[-1], len(answered) / seconds, sum(mine.units for mine in answered) / seconds, len(times) - len(answered),
        _quantiles([mine.first for mine in answered]), _quantiles([mine.total for mine in answered]),
    )  # fmt: skip


async def _sent(server: Server, request: Any, due: float, mine: Times, count: Callable[[Any], int]) -> None:
    try:
        async for chunk in server(request):
            if mine.first != mine.first:
                mine.first = time.perf_counter() - due
            mine.units += count(chunk)
    except Exception:  # a load goes on, and reports how many failed
        mine.first = float("nan")
        return
    mine.total = time.perf_counter() - due


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return dict.fromkeys(("p50", "p95", "p99"), float("nan"))
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in (50, 95, 99)}


class Curve:
    """What a server serves, by how long it may take.

    Args:
        reports: of loads at some rates.
    """

    def __init__(self, reports: Sequence[Report]) -> None:
        self.reports = sorted(reports, key=lambda report: report.offered)

    def served(self, of: str, limit: float) -> float | None:
        """The most requests a second with a p99 within a limit, between two loads by a straight line; None where no load was within.

        Args:
            of: "total", the whole answer's p99, or "first", the first chunk's.
            limit: seconds.
        """
        times = [float("inf") if report.failed else getattr(report, of)["p99"] for report in self.reports]
        within = [place for place, p99 in enumerate(times) if p99 <= limit]
        if not within:
            return None
        last = within[-1]
        here = self.reports[last]
        if last + 1 == len(times) or times[last + 1] == float("inf"):
            return here.served
        part = (limit - times[last]) / (times[last + 1] - times[last])
        return here.served + part * max(self.reports[last + 1].served - here.served, 0.0)
