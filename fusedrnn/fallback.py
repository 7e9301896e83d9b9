"""What did not run where it was meant to. In: a reason; out: one line in the log for each program, and a count for each reason."""

from __future__ import annotations

import logging
import threading
from collections import Counter

log = logging.getLogger("fusedrnn")
_lock = threading.Lock()
_counts: Counter[str] = Counter()
_told: set[tuple[str, str | None]] = set()


def fallbacks() -> dict[str, int]:
    """How many loops fell back to a slower executor since the program started, by reason."""
    with _lock:
        return dict(_counts)


def note(reason: str, location: str | None, executor: str, *, level: int = logging.WARNING) -> None:
    """Count a loop that runs on ``executor`` for this reason; the first one of a place is logged."""
    with _lock:
        _counts[reason] += 1
        new = (reason, location) not in _told
        _told.add((reason, location))
    if new:
        log.log(level, "%s%s: the loop runs on '%s'", reason, f" ({location})" if location else "", executor)
