"""Pairs of runs, in turn. In: two functions that do the same; out: their times and the ratio of each pair."""

from __future__ import annotations

import datetime
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


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a function takes; where it returns a float, that is its own measurement."""
    began = time.perf_counter()
    result = work()
    return result if isinstance(result, float) else time.perf_counter() - began


def compared(mine: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> dict[str, Any]:
    """Seconds of each run of two functions in turn, medians, quartiles, and for each pair the peer's time over fusedrnn's."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs + 1):
        for function, into in zip((mine, theirs), times, strict=True):
            into.append(timed(function))
    fused, peer = times[0][1:], times[1][1:]  # the first pair warms up
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
        },
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def _git(*command: str) -> str | None:
    done = subprocess.run(["git", *command], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
