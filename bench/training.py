"""Forward and backward on the CPU: an LSTM against torch.nn.LSTM, a layer-norm LSTM against the Python loop over the same cell."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import fusedrnn
from fusedrnn.feedback import sequence

from .measure import compared

Step = Callable[[], Sequence[torch.Tensor]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the measurement takes, beside what `bench.lstm` does: that is for forward alone."""
    parser.add_argument("--train-hidden", type=int, nargs="+", default=[512], help="hidden sizes of training, inputs as wide (default 512)")
    parser.add_argument("--train-rows", type=int, nargs="+", default=[32], help="batch sizes of training (default 32)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times of each shape against each peer; prints a line for each. Raises ValueError where gradients differ."""
    found: dict[str, Any] = {}
    print(f"{'training, float32':<36}{'against':<20}{'fusedrnn us/step':>18}{'peer us/step':>14}{'ratio':>8}{'(least to most)':>18}")
    for hidden in args.train_hidden:
        for rows in args.train_rows:
            for kind, (mine, theirs, peer) in pairs(args.steps, rows, hidden).items():
                name = f"{kind} H={hidden} B={rows} T={args.steps}"
                worst = max(_relative(one, other) for one, other in zip(mine(), theirs(), strict=True))
                if worst > 1e-4:
                    raise ValueError(f"{name}: a gradient of {peer} differs from fusedrnn's by {worst} of its greatest")
                result = found[f"{name} {peer}"] = compared(mine, theirs, args.pairs)
                ours, other = (result[f"{who}_median_seconds"] / args.steps * 1e6 for who in ("fusedrnn", "peer"))
                spread = f"{min(result['ratios']):.2f} to {max(result['ratios']):.2f}"
                print(f"{name:<36}{peer:<20}{ours:>18,.0f}{other:>14,.0f}{result['ratio']:>8.2f}{spread:>18}", flush=True)
    return found


def pairs(steps: int, rows: int, hidden: int) -> dict[str, tuple[Step, Step, str]]:
    """For each cell: a forward and backward of fusedrnn's loop, that of a peer, and its name. Both give the gradients in one order."""
    x, upstream = torch.randn(steps, rows, hidden, requires_grad=True), torch.randn(steps, rows, hidden)
    layer = nn.LSTM(hidden, hidden)
    plain = nn.LSTMCell(hidden, hidden)
    plain.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    normal = fusedrnn.LSTMCell(hidden, hidden, layer_norm=True)
    zeros = torch.zeros(rows, hidden)

    def gradients(outputs: torch.Tensor, weights: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return torch.autograd.grad((outputs * upstream).sum(), [x, *weights])

    def fused(cell: nn.Module) -> Step:
        loop_fn = sequence(x, None, (zeros, zeros))
        return lambda: gradients(fusedrnn.raw_rnn(cell, loop_fn, backend="native").emit_ta.stack(), list(cell.parameters()))

    def eager() -> Sequence[torch.Tensor]:
        state, outputs = (zeros, zeros), []
        for inputs in x.unbind():
            output, state = normal(inputs, state)
            outputs.append(output)
        return gradients(torch.stack(outputs), list(normal.parameters()))

    return {
        "lstm": (fused(plain), lambda: gradients(layer(x)[0], list(layer.parameters())), "nn.LSTM"),
        "layer norm lstm": (fused(normal), eager, "the cell in a loop"),
    }


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
