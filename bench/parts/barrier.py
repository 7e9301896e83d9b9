"""The barrier of a group: microseconds of one, over 1 program to all multiprocessors, and thousands of launches without a hang."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fusedrnn.kernels.gpu.barrier import arrive, wait
from fusedrnn.kernels.gpu.launch import Options, launch

from . import Row, Where
from .timing import in_turn, marginal


@triton.jit
def meet(counters, late, steps, limit, ASM: tl.constexpr, PREC: tl.constexpr):  # noqa: N803
    """``steps`` barriers in each group; ``late`` ``[groups, programs]`` says who waited in vain."""
    column, columns, group = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    counter = counters + group * 32
    failed = 0
    target = 0
    for _ in range(steps):
        arrive(counter, ASM)
        target += columns
        failed = failed | wait(counter, target, limit, ASM)
    tl.store(late + group * columns + column, failed)


def cases(where: Where) -> list[Row]:
    """The launches come last: they take the longest."""
    if where.dry:
        return [{"programs": 1, "groups": 1, "steps": 3}, {"programs": 2, "groups": 2, "steps": 3}, {"launches": 3, "steps": 2}]
    found = [{"programs": count, "groups": 1, "steps": 4000} for count in (2, 8, 16, 32, 64, 128, 1, 0)]  # 0: all multiprocessors
    found += [{"programs": count, "groups": 128 // count, "steps": 4000} for count in (64, 32, 16)]
    return [*found, {"launches": 10_000, "steps": 16}]


def measure(case: Row, where: Where, seconds: float) -> list[Row]:
    if "launches" in case:
        return [_launches(case, where)]
    programs = case["programs"] or _multiprocessors(where)
    groups, steps = case["groups"], case["steps"]
    late = torch.full((groups, programs), -1, dtype=torch.int32)
    times = in_turn({"once": lambda: _meet(late, steps), "twice": lambda: _meet(late, 2 * steps)}, where, 11)
    faults = [] if not bool(late.any()) else [f"late {late.flatten().tolist()}"]
    return [{"programs": programs, "us": marginal(times["once"], times["twice"], steps), "faults": faults}]


def _meet(late: torch.Tensor, steps: int) -> None:
    groups, programs = late.shape
    counters = torch.zeros((groups, 32), dtype=torch.int32)
    launch(
        meet, (programs, groups), {"counters": counters, "late": late}, {"steps": steps}, "tf32", Options(), outputs=["counters", "late"]
    )


def _launches(case: Row, where: Where) -> Row:
    """Launches one after another over all multiprocessors: none may hang, or leave before all have come."""
    late = torch.zeros((1, _multiprocessors(where)), dtype=torch.int32)
    bad = torch.zeros((), dtype=torch.int32)
    for _ in range(case["launches"]):
        late.fill_(-1)
        _meet(late, case["steps"])
        bad += late.ne(0).any()
    failed = int(bad)
    return {"programs": late.shape[1], "faults": [f"{failed} launches had a program that waited in vain"] if failed else []}


def _multiprocessors(where: Where) -> int:
    return 2 if where.dry else int(torch.cuda.get_device_properties(0).multi_processor_count)
