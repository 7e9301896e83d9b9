"""Pairs of runs, in turn. In: two functions that do the same; out: their times and the ratio of each pair."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fusedrnn

_PAUSE = 0.02  # seconds before each sample: threads of whoever ran before may spin for some milliseconds
_SAMPLE = 0.02  # seconds of a sample at least: as many calls as that takes


def timed(work: Callable[[], Any], calls: int = 1) -> float:
    """Seconds of one of some calls; where a call returns a float, that is its own measurement."""
    if calls > 1:
        work()  # the caches are cold of it
    began = time.perf_counter()
    for _ in range(calls):
        result = work()
    return result if isinstance(result, float) else (time.perf_counter() - began) / calls


def compared(mine: Callable[[], Any], theirs: Callable[[], Any], pairs: int, most: float = float("inf")) -> dict[str, Any]:
    """Seconds of each run of two functions in turn, medians, quartiles, and for each pair the peer's time over fusedrnn's.

    Args:
        pairs: that are timed, after one that is not.
        most: seconds for all of them; at least three pairs are timed.
    """
    both = (mine, theirs)
    first = [timed(function) for function in both]
    calls = [max(1, math.ceil(_SAMPLE / max(seconds, 1e-6))) for seconds in first]
    pairs = int(max(min(pairs, most / sum(max(seconds, _SAMPLE) + _PAUSE for seconds in first)), min(pairs, 3)))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for function, many, into in zip(both, calls, times, strict=True):
            time.sleep(_PAUSE)
            into.append(timed(function, many))
    fused, peer = times
    ratios = [theirs / ours for ours, theirs in zip(fused, peer, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "fusedrnn_median_seconds": statistics.median(fused),
        "peer_median_seconds": statistics.median(peer),
        "fusedrnn_quartiles_seconds": np.quantile(fused, [0.25, 0.75]).tolist(),
        "peer_quartiles_seconds": np.quantile(peer, [0.25, 0.75]).tolist(),
        "fusedrnn_seconds": fused,
        "peer_seconds": peer,
        "ratios": ratios,
    }


def circumstances() -> dict[str, Any]:
    """Machine, versions, commit and command."""
    model_names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "machine": {
            "platform": platform.platform(),
            "cpu": model_names[0] if model_names else platform.processor(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg(),
        },
        "versions": {
            "fusedrnn": fusedrnn.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            **{name: version for name in ("jax", "onnxruntime", "litserve") if (version := _version(name)) is not None},
        },
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    done = subprocess.run(["git", *command], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
