"""The timeline of one greedy decode: the kernels that an eager loop launches, those of a graphed step, and one persistent launch.

A row for each who decodes: ``[name, start, microseconds]`` of every kernel and copy on the device, from the first one's start, by
torch.profiler with nothing but CUDA's activities, which costs the launches of Python little. Dry, it is the operators on the CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from ..loops import Greedy
from ..peers import eager
from ..timeline import profiled
from . import Row, Where
from .decode import graphed

FUSED = "the persistent kernel"
_KERNEL = "loop"  # what Triton calls it


def cases(where: Where) -> list[Row]:
    if where.dry:
        return [{"model": "lstm", "H": 16, "V": 20, "B": 1, "T": 3, "dtype": "float32"}]
    return [{"model": "lstm", "H": 512, "V": 1000, "B": 1, "T": 8, "dtype": "bfloat16"}]


def measure(case: Row, where: Where, seconds: float) -> list[Row]:
    work = Greedy.made(case["model"], case["H"], case["V"], case["B"], case["T"], getattr(torch, case["dtype"]))
    loop = work.loop("persistent")
    ways: dict[str, Callable[[], Any]] = {
        "eager loop": eager.greedy_loop(work).call,
        "graphed by hand": graphed(work, where),
        "fusedrnn": lambda: loop().emit_ta.stack(),
    }
    tokens = {who: call().clone() for who, call in ways.items()}
    rows = []
    for who, call in ways.items():
        fault = work.disagreement(tokens["fusedrnn"], tokens[who])
        if fault is not None:
            rows.append({"who": who, "faults": [fault]})
            continue
        found = profiled(call, 1)[0] if where.dry else _on_device(call)
        rows.append({"who": who, **found, "launches": len(found["operators"])} if "operators" in found else {"who": who, **found})
    return rows


def _on_device(call: Callable[[], Any], times: int = 7) -> Row:
    """The shortest of some decodes."""
    try:
        for _ in range(3):
            call()
        runs = [_kernels(call) for _ in range(times)]
    except RuntimeError as error:  # not every container lets it count
        return {"skipped": str(error).splitlines()[0]}
    runs = [run for run in runs if run]
    if not runs:
        return {"skipped": "the profiler saw no kernel"}
    found = min(runs, key=_span)
    return {"us": round(_span(found), 1), "operators": found}


def _kernels(call: Callable[[], Any]) -> list[list[Any]]:
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return placed(profile.events())


def placed(events: Any) -> list[list[Any]]:
    """What ran on the device, in its order: name, start after the first, microseconds."""
    on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    ordered = sorted(on_device, key=lambda event: float(event.time_range.start))
    return [
        [name_of(event.name), round(event.time_range.start - ordered[0].time_range.start, 1), round(event.time_range.elapsed_us(), 1)]
        for event in ordered
    ]


def name_of(kernel: str) -> str:
    """As a legend prints it: without template, arguments and name spaces."""
    if kernel == _KERNEL:
        return FUSED
    named = kernel.removeprefix("void ").replace("(anonymous namespace)::", "")
    return "".join(itertools.takewhile(lambda letter: letter not in "<(", named)).strip().split("::")[-1][:32]


def _span(found: list[list[Any]]) -> float:
    return max(start + took for _, start, took in found)
