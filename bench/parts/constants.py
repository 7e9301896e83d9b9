"""What a device can do at best: reading the level-2 cache, the latency of it, shared memory's rate by its clock, products.

With the barriers of the part before, `python -m bench floor` makes of them what a step must take at least. No GPU has run this.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fusedrnn.kernels.gpu.launch import Options, launch

from . import Row, Where
from .timing import in_turn, marginal

_WIDE = 1024  # numbers that a program reads at once
_SHARED_BYTES = 128  # of a multiprocessor, each cycle


@triton.jit
def sweep(data, into, size, steps, limit, ASM: tl.constexpr, PREC: tl.constexpr):  # noqa: N803
    """All programs together read ``data`` ``[size]``, ``steps`` times, past the first cache."""
    places = tl.arange(0, 1024)
    total = tl.zeros([1024], tl.int32)
    for step in range(steps):
        for at in range(tl.program_id(0) * 1024, size, tl.num_programs(0) * 1024):
            total += tl.load(data + at + places, cache_modifier=".cg") + step
    tl.store(into + tl.program_id(0) * 1024 + places, total)


@triton.jit
def chase(data, into, steps, limit, ASM: tl.constexpr, PREC: tl.constexpr):  # noqa: N803
    """Each read says where the next one is."""
    place = 0
    for _ in range(steps):
        place = tl.load(data + place, cache_modifier=".cg")
    tl.store(into, place)


def cases(where: Where) -> list[Row]:
    if where.dry:
        return [{"what": "l2", "bytes": 2 * 4 * _WIDE, "steps": 2}, {"what": "latency", "steps": 3}, {"what": "products", "size": 16}]
    return [
        {"what": "l2", "bytes": 16 << 20, "steps": 64}, {"what": "latency", "steps": 4096}, {"what": "products", "size": 8192},
        {"what": "shared"},
    ]  # fmt: skip


def measure(case: Row, where: Where, seconds: float) -> list[Row]:
    return [{"l2": _l2, "latency": _latency, "products": _products, "shared": _shared}[case["what"]](case, where)]


def _l2(case: Row, where: Where) -> Row:
    size, steps, programs = case["bytes"] // 4, case["steps"], _multiprocessors(where)
    data, into = torch.zeros(size, dtype=torch.int32), torch.zeros(programs * _WIDE, dtype=torch.int32)

    def read(count: int) -> None:
        launch(sweep, (programs, 1), {"data": data, "into": into}, {"size": size, "steps": count}, "tf32", Options(8), outputs=["into"])

    times = in_turn({"once": lambda: read(steps), "twice": lambda: read(2 * steps)}, where, 11)
    us = marginal(times["once"], times["twice"], steps)
    sweeps = -(-size // (programs * _WIDE))  # of each program, of which every one adds the steps' numbers
    right = bool((into == sweeps * sum(range(2 * steps))).all()) if size % (programs * _WIDE) == 0 else True
    faults = [] if right else ["a program has not read all of its part"]
    return {"bytes_per_us": round(case["bytes"] / us) if us > 0 else None, "faults": faults}


def _latency(case: Row, where: Where) -> Row:
    data = ((torch.arange(4096) * 61 + 977) % 4096).to(torch.int32)
    into = torch.zeros(1, dtype=torch.int32)

    def follow(count: int) -> None:
        launch(chase, (1, 1), {"data": data, "into": into}, {"steps": count}, "tf32", Options(1), outputs=["into"])

    times = in_turn({"once": lambda: follow(case["steps"]), "twice": lambda: follow(2 * case["steps"])}, where, 11)
    place = 0
    for _ in range(2 * case["steps"]):
        place = (place * 61 + 977) % 4096
    faults = [] if int(into) == place else [f"the last place is {int(into)}, not {place}"]
    return {"us": marginal(times["once"], times["twice"], case["steps"]), "faults": faults}


def _products(case: Row, where: Where) -> Row:
    one, other = (torch.randn(case["size"], case["size"]).to(torch.bfloat16) for _ in range(2))
    times = in_turn({"once": lambda: one @ other}, where, 11)
    return {"multiply_adds_per_us": round(case["size"] ** 3 / min(times["once"]))}


def _shared(case: Row, where: Where) -> Row:
    """By the clock: 128 bytes a cycle of each multiprocessor. Not measured."""
    properties = torch.cuda.get_device_properties(0)
    return {"bytes_per_us": round(_SHARED_BYTES * properties.multi_processor_count * properties.clock_rate / 1e3), "by": "clock"}


def _multiprocessors(where: Where) -> int:
    return 2 if where.dry else int(torch.cuda.get_device_properties(0).multi_processor_count)
