"""What a training step keeps: peak memory of a process, of loops that keep everything, checkpoints, or the state alone."""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import fusedrnn
from fusedrnn.feedback import sequence

from . import measure as measure_
from . import workers
from .runner import Row

HOW = ("native", "native, checkpoints", "native, all made again", "the cell in a loop")
_LIMIT = 600.0  # seconds for one process
_RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives the system back at once what was larger, see mallopt(3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--hidden", type=int, default=256, help="hidden size, inputs as wide (default 256)")
    parser.add_argument("--rows", type=int, default=32, help="batch size (default 32)")
    parser.add_argument("--steps", type=int, nargs="+", default=[256, 1024], help="lengths of the sequences (default 256 1024)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")


def run(args: argparse.Namespace) -> int:
    """Measure each way in a process of its own; 1 where one fails."""
    rows = peaks(args.hidden, args.rows, args.steps)
    if args.json:
        args.json.write_text(json.dumps({**measure_.circumstances(), "rows": rows}, indent=2) + "\n")
    return int(any("error" in row for row in rows))


def measure(args: argparse.Namespace) -> list[Row]:
    """The same as a part of `bench cpu`."""
    return peaks(256, 32, [64] if args.quick else [256, 1024])


def peaks(hidden: int, rows: int, lengths: Sequence[int]) -> list[Row]:
    """A row for each length and way; prints a line for each."""
    found: list[Row] = []
    for steps, how in itertools.product(lengths, HOW):
        with mock.patch.dict(os.environ, _RETURNED):
            ((_, result),) = workers.results(peak, [(how, hidden, rows, steps)], 1, lambda: _LIMIT)
        failed = isinstance(result, workers.Failure)
        found.append(
            {"case": "memory", "how": how, "H": hidden, "B": rows, "T": steps, **({"error": str(result)} if failed else {"bytes": result})}
        )
        said = str(result) if failed else f"{result / 2**20:>8.0f} MiB"
        print(f"LSTM H={hidden} B={rows} T={steps:<6}{how:<26}{said}", flush=True)
    return found


def peak(how: str, hidden: int, rows: int, steps: int) -> int:
    """Bytes by which the resident memory of the process grows at most in a forward and backward over ``steps``: a short one goes before,
    which compiles and allocates what stays."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cell = fusedrnn.LSTMCell(hidden, hidden)
    _step(how, cell, rows, 2)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here, see proc(5)
    _step(how, cell, rows, steps)
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _step(how: str, cell: Any, rows: int, steps: int) -> None:
    x = torch.zeros(1, rows, cell.input_size).expand(steps, rows, cell.input_size)  # takes no memory of its own
    state = (torch.zeros(rows, cell.hidden_size),) * 2
    context = fusedrnn.checkpointed(max(int(steps**0.5), 1)) if how.endswith("checkpoints") else nullcontext()
    little = mock.patch("fusedrnn.memory.free", return_value=0) if how.endswith("again") else nullcontext()
    if how.startswith("native"):
        with context, little:
            result = fusedrnn.raw_rnn(cell, sequence(x, None, state), backend="native")
        loss = result.final_state[0].sum() + result.emit_ta.stack().mean()
    else:
        total: Any = 0.0
        for inputs in x.unbind():
            output, state = cell(inputs, state)
            total = total + output.mean() / steps
        loss = state[0].sum() + total
    loss.backward()
