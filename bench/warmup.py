"""Compiling and warming up: seconds from having a model to its first result, of processes of their own, with nothing cached and again."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from . import workers
from .case import Missing, Run, text
from .loops import Greedy
from .peers import eager, inductor, jax_loops
from .runner import Row

_LIMIT = 300.0  # seconds for one process
_SHAPE = {"H": 512, "V": 1000, "B": 8, "T": 32}
_WAYS: dict[str, Callable[[Greedy], Run]] = {
    "eager loop": eager.greedy_loop,
    "fusedrnn native": Greedy.fused,
    "torch.compile of the step": eager.greedy_compiled_step,
    "torch.compile of while_loop": inductor.greedy,
    "JAX while_loop": jax_loops.greedy,
}
_CACHES = ("FUSEDRNN_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")


def measure(args: Any) -> list[Row]:
    """A row for each way, with an empty cache and then with what that run left: seconds to the first result, and of a call after it."""
    rows: list[Row] = []
    ways = [way for way in _WAYS if not args.quick or way in ("eager loop", "fusedrnn native")]
    print(f"to the first result of a greedy decode, {text(_SHAPE)}, in a new process, imports aside")
    for way in ways:
        with tempfile.TemporaryDirectory() as folder:
            caches = {name: str(Path(folder) / name) for name in _CACHES}
            for cached in (False, True):
                with mock.patch.dict(os.environ, caches):
                    ((_, found),) = workers.results(first, [(way, args.threads)], 1, lambda: _LIMIT)
                row: Row = {"case": "warmup", "shape": _SHAPE, "who": way, "cached": cached}
                if isinstance(found, workers.Failure):
                    rows.append(row | {"skipped": str(found)})
                    print(f"  {way:<32}{'again' if cached else 'first':<8}{found}", flush=True)
                else:
                    rows.append(row | found)
                    said = f"{found['first_seconds']:>8.2f} s, then {found['seconds'] * 1e3:>8.2f} ms"
                    print(f"  {way:<32}{'again' if cached else 'first':<8}{said}", flush=True)
    return rows


def first(way: str, threads: int) -> dict[str, float]:
    """In a process of its own: seconds until the first result, and the median of calls after it."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with torch.no_grad():
        work = Greedy.made("lstm", _SHAPE["H"], _SHAPE["V"], _SHAPE["B"], _SHAPE["T"], torch.float32)
        began = time.perf_counter()
        try:
            run = _WAYS[way](work)
        except Missing as error:
            raise RuntimeError(str(error)) from error
        run.call()
        taken = time.perf_counter() - began
        times = []
        for _ in range(7):
            began = time.perf_counter()
            run.call()
            times.append(time.perf_counter() - began)
    return {"first_seconds": taken, "seconds": sorted(times)[3]}
