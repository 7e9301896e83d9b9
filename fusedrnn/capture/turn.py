"""Whose turn it is to trace. In: a function that traces; out: the same for one thread of the process at a time, for torch patches itself
while it traces a graph."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_tracing = threading.RLock()  # a step that holds a loop is traced within the tracing of another


def one_at_a_time(traces: Callable[P, R]) -> Callable[P, R]:
    """The function, which waits until no other thread is in such a one."""

    @wraps(traces)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _tracing:
            return traces(*args, **kwargs)

    return alone
