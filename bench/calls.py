"""What a call of a compiled loop adds to its C++: the Python around it, for three loops whose inputs are new in every call, or the same."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fusedrnn
from fusedrnn.compiled import Loop
from fusedrnn.feedback import greedy, sequence
from fusedrnn.models import G2P, g2p_checkpoint

from .runner import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the measurement takes."""
    parser.add_argument("--calls", type=int, default=300, help="timed calls of each loop (default 300)")


@torch.no_grad()
def measure(args: argparse.Namespace) -> list[Row]:
    """Microseconds of each loop; prints a line for each."""
    found: list[Row] = []
    print(f"{'a call of a compiled loop':<34}{'inputs':<8}{'us in C++':>12}{'us in Python':>14}{'(quartiles)':>16}")
    for name, (loop, change) in loops().items():
        for inputs, before in (("same", lambda: None), ("new", change)):
            python, native = _times(loop, before, args.calls)
            quartiles = statistics.quantiles(python, n=4)
            found.append({
                "case": "calls", "loop": name, "inputs": inputs, "calls": args.calls, "python_median_us": quartiles[1],
                "python_quartiles_us": [quartiles[0], quartiles[2]], "native_median_us": statistics.median(native),
            })  # fmt: skip
            spread = f"{quartiles[0]:.0f} to {quartiles[2]:.0f}"
            print(f"{name:<34}{inputs:<8}{statistics.median(native):>12.0f}{quartiles[1]:>14.0f}{spread:>16}", flush=True)
    return found


def loops() -> dict[str, tuple[Loop, Callable[[], Any]]]:
    """Loops of one row, each with what makes its inputs new."""
    torch.manual_seed(0)
    lstm, x, zeros = nn.LSTMCell(256, 256), torch.randn(32, 1, 256), torch.zeros(1, 256)
    gru, embedding, project, h = nn.GRUCell(128, 256), nn.Embedding(1000, 128), nn.Linear(256, 1000), torch.randn(1, 256)
    model, encoded = G2P.pretrained(), torch.randn(1, 256)
    start, end, most = g2p_checkpoint.PHONEME_START, g2p_checkpoint.PHONEME_END, g2p_checkpoint.MAX_STEPS
    decode = greedy(model.phoneme_embedding, model.project, start, end, encoded, most)
    made: dict[str, tuple[nn.Module, Any, torch.Tensor]] = {
        "LSTM over a sequence, T=32 H=256": (lstm, sequence(x, None, (zeros, zeros)), x),
        "greedy, 20 steps, V=1000 H=256": (gru, greedy(embedding, project, 0, None, h, 20), h),
        "the decoder of G2P": (model.decoder, decode, encoded),
    }
    return {
        name: (fusedrnn.compile(cell, loop_fn, backend="native").warmup(), lambda tensor=tensor: tensor.mul_(1))  # type: ignore[misc]
        for name, (cell, loop_fn, tensor) in made.items()
    }


class _Timed:
    """A compiled library whose runs are timed."""

    def __init__(self, library: Any) -> None:
        self._run, self.seconds = library.run, 0.0

    def run(self, entries: int) -> int:
        began = time.thread_time()
        status: int = self._run(entries)
        self.seconds = time.thread_time() - began
        return status


def _times(loop: Loop, before: Callable[[], Any], calls: int) -> tuple[list[float], list[float]]:
    """Microseconds in Python and in C++ of each call, of this thread's own time: that others have its core does not count."""
    loop()
    assert loop._ready is not None
    native = loop._ready.warm.loop
    library = native.library
    timed: Any = _Timed(library)
    native.library = timed
    python, inside = [], []
    try:
        for _ in range(calls):
            before()
            began = time.thread_time()
            loop()
            took = time.thread_time() - began
            python.append((took - timed.seconds) * 1e6)
            inside.append(timed.seconds * 1e6)
    finally:
        native.library = library
    return python, inside
