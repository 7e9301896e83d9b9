"""Numbers: lower precision, NaN and Inf, and gradients of gradients."""

from __future__ import annotations

import torch
from torch import nn

from .cells import real, sequence, tanh_cell, torch_cell, zeros
from .golden import golden
from .inputs import B, H


def in_dtype(p, raw_rnn, dtype):
    for key in ("x", "w", "u", "b"):
        setattr(p, f"{key}64", getattr(p, key))
        setattr(p, key, getattr(p, key).to(dtype))
    result = raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time], state0=zeros(B, H, dtype=dtype)))
    for key in ("x", "w", "u", "b"):
        setattr(p, key, vars(p).pop(f"{key}64"))  # gradients are taken for the float64 inputs, as TensorFlow's side does
    assert result[0].dtype == result[1].dtype == dtype
    return result


@golden("float32", tolerance=1e-5)
def test_float32(p, raw_rnn):
    return in_dtype(p, raw_rnn, torch.float32)


@golden("float16", tolerance=1e-2)
def test_float16(p, raw_rnn):
    """Each side rounds its products its own way: 4e-3 apart at most, in sums of gradients."""
    return in_dtype(p, raw_rnn, torch.float16)


@golden("bfloat16", tolerance=5e-2)
def test_bfloat16(p, raw_rnn):
    """8 bits, rounded after every operation: 2e-2 apart at most, in sums of gradients."""
    return in_dtype(p, raw_rnn, torch.bfloat16)


@golden("infinite_rows", finite_gradients=True)
def test_infinite_rows(p, raw_rnn):
    """Finished rows are fed NaN and Inf. TensorFlow masks the values, but its gradients turn NaN; ours are finite."""
    bad = torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [torch.nan]], dtype=real())
    read = lambda time: torch.where((time >= p.lengths)[:, None], bad, p.x[time])  # noqa: E731
    return raw_rnn(torch_cell(nn.LSTMCell, p), sequence(p, read, state0=(zeros(B, H), zeros(B, H))))
