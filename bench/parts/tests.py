"""The tests that need a GPU, where there are any: `pytest -m gpu` in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from . import Row, Where

_NONE_COLLECTED = 5


def cases(where: Where) -> list[Row]:
    return [{"command": "pytest -m gpu"}]


def measure(case: Row, where: Where, seconds: float) -> list[Row]:
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return [{"skipped": f"not installed: {', '.join(missing)}"}]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
    if where.dry:  # there is none to run: few files suffice to see that pytest says so
        command += ["--collect-only", "tests/bench/test_workers.py"]
    environment = dict(os.environ) if where.dry else os.environ | {"FUSEDRNN_EMULATE": "0"}
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=max(seconds - 5, 1), check=False)
    except subprocess.TimeoutExpired:
        return [{"faults": [f"no end in {seconds - 5:.0f} s"]}]
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == _NONE_COLLECTED:
        return [{"skipped": f"no test is marked gpu: {last}"}]
    return [
        {"said": last, "faults": [] if done.returncode == 0 else [f"exit code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"]}
    ]
