"""The cells that many programs share, over the weights in a program's inputs ``p``."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn

from .inputs import H

_real = torch.float64


def real():
    """The dtype of a program's numbers: float64, unless a test runs within `numbers`."""
    return _real


@contextmanager
def numbers(dtype):
    """Within, programs have numbers of that dtype."""
    global _real
    before, _real = _real, dtype
    try:
        yield
    finally:
        _real = before


class Cell:
    """A foreign cell: any object with ``output_size``, ``state_size`` and a call; here around a function ``(inputs, state)``."""

    def __init__(self, step, output_size=H, state_size=H):
        self.step, self.output_size, self.state_size = step, output_size, state_size

    def __call__(self, inputs, state):
        return self.step(inputs, state)


def tanh_cell(p):
    def step(x, h):
        h = torch.tanh(x @ p.w + h @ p.u + p.b)
        return h, h

    return Cell(step)


def torch_cell(kind, p, prefix=""):
    """``nn.LSTMCell``, ``GRUCell`` or ``RNNCell`` with the weights of ``p``, which become its parameters."""
    inputs = getattr(p, f"{prefix}weight_ih").shape[1]
    cell = kind(inputs, H, dtype=real())
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        parameter = nn.Parameter(getattr(p, prefix + name).detach())
        setattr(cell, name, parameter)
        setattr(p, prefix + name, parameter)
    return cell


def zeros(*shape, dtype=None):
    return torch.zeros(shape, dtype=dtype or real())


def sequence(p, read, *, state0=None, emit=None, example=None):
    """The usual loop_fn: ``read(time)`` feeds, rows end at ``p.lengths``, ``emit(time, output, state)`` emits (None: the output)."""
    state0 = zeros(len(p.lengths), H) if state0 is None else state0

    def loop_fn(time, output, state, loop_state):
        finished = time >= p.lengths
        if output is None:
            return finished, read(time), state0, example, None
        return finished, read(time), state, output if emit is None else emit(time, output, state), None

    return loop_fn
