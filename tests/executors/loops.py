"""Loops that the tests of persistent kernels run. In: sizes, lengths, dtypes; out: cells and loop_fns, and what runs them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import GRUCell, LSTMCell, feedback

from .layouts import assert_same

T, D, H, V = 5, 6, 20, 12


def run(loop, backend="persistent", **options):
    return fusedrnn.raw_rnn(*loop, backend=backend, **options)


def both(loop, **options):
    """The loop on the kernel, which is compared with `reference`."""
    fallbacks = fusedrnn.fallbacks()
    result = run(loop, **options)
    assert_same(result, run(loop, "reference", **options))
    assert fusedrnn.fallbacks() == fallbacks
    return result


def cell_of(kind, dtype=torch.float32):
    torch.manual_seed(5)
    return {
        "lstm": lambda: LSTMCell(D, H),
        "gru": lambda: nn.GRUCell(D, H),
        "tf gru": lambda: GRUCell(D, H, reset_after=False),
        "rnn": lambda: nn.RNNCell(D, H),
    }[kind]().to(dtype)


def start_of(cell, batch, dtype=torch.float32):
    h = torch.randn(batch, H, generator=torch.Generator().manual_seed(4)).to(dtype)
    return (h, h * 0.5) if isinstance(cell, LSTMCell) else h


def reading(kind="lstm", lengths=(5, 2, 0, 1), *, steps=T, dtype=torch.float32, x=None):
    """A loop that reads a sequence."""
    cell, ends = cell_of(kind, dtype), torch.as_tensor(lengths)
    x = torch.randn(steps, len(ends), D, generator=torch.Generator().manual_seed(2)).to(dtype) if x is None else x
    state0 = start_of(cell, len(ends), dtype)

    def loop_fn(time, output, state, loop_state):
        return time >= ends, x[time], state0 if output is None else state, output, None

    return cell, loop_fn


def greedy(kind="gru", batch=5, steps=9, *, dtype=torch.float32):
    """A loop that feeds its own best token back."""
    cell = cell_of(kind, dtype)
    table, project = nn.Embedding(V, D).to(dtype), nn.Linear(H, V).to(dtype)
    return cell, feedback.greedy(table, project, 0, 3, start_of(cell, batch, dtype), steps)


def endless(batch=3, until=1.0):
    """A loop that ends on a value: no bound on its steps is known."""
    cell = nn.RNNCell(2, 4)
    speed = torch.linspace(0.047, 0.3, batch)

    def loop_fn(time, output, state, clock):
        if output is None:
            return torch.zeros_like(speed, dtype=torch.bool), torch.zeros_like(speed)[:, None].expand(-1, 2), start, None, speed
        return clock > until, output[:, :2], state, output, clock + speed

    start = torch.zeros(batch, 4)
    return cell, loop_fn


def told_by_both(loop):
    """The IndexError that the loop ends in, the same on `reference` and on the kernel."""
    told = []
    for backend in ("reference", "persistent"):
        with pytest.raises(IndexError) as error:
            run(loop, backend)
        told.append(str(error.value))
    assert told[0] == told[1]
    return told[0]
