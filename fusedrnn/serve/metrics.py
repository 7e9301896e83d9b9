"""What an engine counts, as plain numbers that any exporter can read."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PARTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Histogram:
    """Counts of values by their size.

    Args:
        bounds: rising; a value belongs to the first bound that it does not exceed.

    Attributes:
        counts: of each bound, and last of what is above all.
        sum, count: of all values.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum, self.count = 0.0, 0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times
        self.count += times

    @property
    def mean(self) -> float:
        """Of all values; 0 of none."""
        return self.sum / self.count if self.count else 0.0


@dataclass
class Metrics:
    """What an engine has counted since it was made. Read it from the thread of the engine's event loop.

    Attributes:
        running, waiting: requests in slots, and in the queue, now.
        slots: how many there are.
        accepted, completed, failed, cancelled, expired: requests so far; each that was accepted is one of the others in the end.
        rejected: by reason, requests that were not accepted: "queue full", "draining", "bad request".
        launches, steps, row_steps: launches so far, steps in them, and steps of single rows.
        occupancy: rows in use as a part of the slots, once a launch.
        steps_per_launch: the steps of each launch.
        queue_seconds: from acceptance to the first launch of a request.
        first_chunk_seconds: from acceptance to the first chunk.
        step_seconds: the time of a launch by its steps, once for each step of a row: the time per token where a step is a token.
        total_seconds: from acceptance to the end, of requests that completed.
        launch_seconds: of each launch.
        fallbacks: by reason, launches that had to be run in parts.
    """

    slots: int
    running: int = 0
    waiting: int = 0
    accepted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    steps: int = 0
    row_steps: int = 0
    occupancy: Histogram = field(default_factory=lambda: Histogram(_PARTS))
    steps_per_launch: Histogram = field(default_factory=lambda: Histogram(_STEPS))
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    first_chunk_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    step_seconds: Histogram = field(default_factory=lambda: Histogram(_SHORT))
    total_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    launch_seconds: Histogram = field(default_factory=lambda: Histogram(_SHORT))
    fallbacks: Counter[str] = field(default_factory=Counter)
