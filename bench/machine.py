"""What a machine can do at most, measured: the first part of `bench cpu`. In: nothing; out: the constants that `bench.floor` works with.

Each constant is the best of many runs, because the floor is what no program here can go below: products of float32 and bfloat16 matrices,
reading memory at working sets from the first cache to the memory beyond all of them, and the sigmoid of values that are in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .runner import Row

_SETS = (0.25, 1, 2, 4, 8, 16, 32, 64, 256)  # MiB that are read again and again
_SIZES = (256, 512, 1024)  # of square matrices


@torch.no_grad()
def measure(args: Any) -> list[Row]:
    """One row of constants: multiply-adds and sigmoids a microsecond, bytes a microsecond at each working set."""
    sets = _SETS[::2] if args.quick else _SETS
    found: Row = {
        "case": "machine",
        "bytes_per_us": {str(size): round(_read(size)) for size in sets},
        "sigmoids_per_us": round(_sigmoids()),
        "multiply_adds_per_us": {name: round(_products(getattr(torch, name))) for name in ("float32", "bfloat16")},
    }
    print("what this machine can do, at best of many runs:")
    for size, rate in found["bytes_per_us"].items():
        print(f"  read {size:>5} MiB again and again: {rate / 1e3:,.1f} GB/s")
    print(f"  sigmoid: {found['sigmoids_per_us']:,} a microsecond")
    for name, rate in found["multiply_adds_per_us"].items():
        print(f"  products in {name}: {rate * 2 / 1e3:,.0f} GFLOP/s", flush=True)
    return [found]


def best(work: Callable[[], Any], seconds: float = 0.4) -> float:
    """The least microseconds of one call, of as many as take so many seconds, five at least."""
    work()
    least, runs, until = float("inf"), 0, time.perf_counter() + seconds
    while runs < 5 or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        least, runs = min(least, time.perf_counter() - began), runs + 1
    return least * 1e6


def _read(megabytes: float) -> float:
    """Bytes a microsecond: whichever is faster of a sum and a product with a vector, many times a call where the set is small."""
    rows = int(megabytes * 2**20) // 4 // 512
    data, vector = torch.ones(rows, 512), torch.ones(512)
    times = max(1, int(4 / megabytes))

    def products() -> None:
        for _ in range(times):
            torch.mv(data, vector)

    def sums() -> None:
        for _ in range(times):
            data.sum()

    return rows * 512 * 4 * times / min(best(products), best(sums))


def _sigmoids() -> float:
    values = torch.randn(64 * 1024)
    into = torch.empty_like(values)
    return len(values) / best(lambda: torch.sigmoid(values, out=into))


def _products(dtype: torch.dtype) -> float:
    rates = []
    for size in _SIZES:
        one, other = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        into = torch.empty(size, size, dtype=dtype)
        rates.append(size**3 / best(lambda one=one, other=other, into=into: torch.mm(one, other, out=into)))  # type: ignore[misc]
    return max(rates)
