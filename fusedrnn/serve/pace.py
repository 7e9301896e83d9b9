"""How many steps a launch takes. In: how long steps took; out: a number that keeps requests from waiting, or launches from being many."""

from __future__ import annotations

import math

_MEMORY = 0.2  # the weight of the newest launch in what is known of the past


class Pace:
    """Steps of a launch by the clock: few while someone waits for a slot or a first chunk, more otherwise.

    A launch also costs what does not depend on its steps (`overhead`); that is kept to a quarter of it where the longer target allows.

    Args:
        latency: seconds that a launch should take while someone waits.
        throughput: seconds that it should take otherwise.
        most: steps of a launch at most.
    """

    def __init__(self, latency: float, throughput: float, most: int) -> None:
        if not 0 < latency <= throughput:
            raise ValueError(f"latency must be above 0 and at most throughput, in seconds; got {latency} and {throughput}")
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ValueError(f"steps must be an int of at least 1, got {most!r}")
        self.latency, self.throughput, self.most = latency, throughput, most
        self.step, self.overhead = 0.0, 0.0  # seconds

    def steps(self, urgent: bool) -> int:
        """Of the next launch: a power of two."""
        if not self.step:
            return 1
        target = self.latency if urgent else self.throughput
        target = min(max(target, 3 * self.overhead), self.throughput)
        wanted = min(max(target / self.step, 1.0), float(self.most))
        return int(2 ** math.floor(math.log2(wanted)))

    def note(self, steps: int, seconds: float, around: float) -> None:
        """A launch of so many steps took that long, and what is done around it so long again."""
        if steps:
            self.step = _mixed(self.step, seconds / steps)
            self.overhead = _mixed(self.overhead, around)


def _mixed(before: float, now: float) -> float:
    return now if not before else (1 - _MEMORY) * before + _MEMORY * now
