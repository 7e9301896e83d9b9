"""The timeline of one decode: when which operators run, of a Python loop over a step and of one call of a compiled loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from .loops import Greedy
from .peers import eager
from .runner import Row

_SHAPE = {"H": 256, "V": 1000, "B": 1, "T": 8}
_LOOP = "compiled loop"
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of every start and stop


@torch.no_grad()
def measure(args: Any) -> list[Row]:
    """A row for each who decodes: the operators that ran, ``[name, start, microseconds]``, and microseconds of the whole call, profiled."""
    torch.manual_seed(0)
    work = Greedy.made("lstm", _SHAPE["H"], _SHAPE["V"], _SHAPE["B"], _SHAPE["T"], torch.float32)
    rows = []
    for who, call in {"eager loop": eager.greedy_loop(work).call, "fusedrnn": _fused(work)}.items():
        found = min(_profiled(call, 20), key=lambda decode: float(decode["us"]))
        rows.append({"case": "timeline", "shape": _SHAPE, "who": who, **found})
        print(
            f"one decode of {_SHAPE['T']} tokens, profiled: {who} {len(found['operators'])} operators in {found['us']:.0f} us", flush=True
        )
    return rows


def _fused(work: Greedy) -> Callable[[], Any]:
    """The loop, whose C++ the profiler sees as one operator."""
    loop = work.loop("native").warmup()
    loop()
    assert loop._ready is not None
    native: Any = loop._ready.warm.loop
    run = native.library.run

    def recorded(entries: int) -> int:
        with torch.profiler.record_function(_LOOP):
            status: int = run(entries)
        return status

    native.library = SimpleNamespace(run=recorded)
    return lambda: loop()[0].stack()


def _profiled(call: Any, times: int) -> list[dict[str, Any]]:
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(times):
            with torch.profiler.record_function("decode"):
                call()
    events = profile.events()
    found = []
    for whole in (event for event in events if event.name == "decode"):
        start = whole.time_range.start
        operators = [
            [event.name, round(event.time_range.start - start, 1), round(event.time_range.elapsed_us(), 1)]
            for event in events
            if event.cpu_parent is whole
        ]
        found.append({"us": round(whole.time_range.elapsed_us(), 1), "operators": operators})
    return found
