"""Cells: stacks, wrappers, other gates, TensorFlow's own, and a loop inside a cell."""

from __future__ import annotations

import torch
from torch import nn

from .cells import Cell, sequence, tanh_cell, torch_cell, zeros
from .golden import golden
from .inputs import B, H, T


@golden("stacked")
def test_stacked(p, raw_rnn):
    lower, upper = torch_cell(nn.LSTMCell, p, "a_"), torch_cell(nn.LSTMCell, p, "b_")

    def step(x, state):
        first = lower(x, state[0])
        second = upper(first[0], state[1])
        return second[0], (first, second)

    zero = (zeros(B, H), zeros(B, H))
    return raw_rnn(Cell(step, H, ((H, H), (H, H))), sequence(p, lambda time: p.x[time], state0=(zero, zero)))


@golden("residual")
def test_residual(p, raw_rnn):
    cell = tanh_cell(p)

    def step(x, h):
        output, h = cell(x, h)
        return output + x, h

    return raw_rnn(Cell(step), sequence(p, lambda time: p.x[time]))


@golden("zoneout")
def test_zoneout(p, raw_rnn):
    """Zoneout in its expectation (Krueger et al. 2016): old and new state mixed by fixed shares, 0 and 1 among them."""
    cell = tanh_cell(p)

    def step(x, h):
        output, new = cell(x, h)
        return output, p.keep * h + (1 - p.keep) * new

    return raw_rnn(Cell(step), sequence(p, lambda time: p.x[time], state0=p.h0))


@golden("layer_norm")
def test_layer_norm(p, raw_rnn):
    def step(x, h):
        h = torch.tanh(nn.functional.layer_norm(x @ p.w + h @ p.u, (H,), p.gain, p.b, eps=1e-5))
        return h, h

    return raw_rnn(Cell(step), sequence(p, lambda time: p.x[time]))


@golden("projected")
def test_projected(p, raw_rnn):
    """An LSTM with clipped cell and projection: state leaves of different width, an output that is neither."""

    def step(x, state):
        h, c = state
        i, f, g, o = (x @ p.weight_ih.T + h @ p.weight_hh.T + p.bias).chunk(4, 1)
        c = (f.sigmoid() * c + i.sigmoid() * g.tanh()).clamp(-0.3, 0.3)
        h = (o.sigmoid() * c.tanh()) @ p.proj
        return torch.cat([h, c], 1), (h, c)

    return raw_rnn(Cell(step, 2 + H, (2, H)), sequence(p, lambda time: p.x[time], state0=(zeros(B, 2), zeros(B, H))))


@golden("peephole")
def test_peephole(p, raw_rnn):
    def step(x, state):
        h, c = state
        i, f, g, o = (x @ p.weight_ih.T + p.bias_ih + h @ p.weight_hh.T + p.bias_hh).chunk(4, 1)
        new = (f + c * p.peep[1]).sigmoid() * c + (i + c * p.peep[0]).sigmoid() * g.tanh()
        h = (o + new * p.peep[2]).sigmoid() * new.tanh()
        return h, (h, new)

    return raw_rnn(Cell(step, H, (H, H)), sequence(p, lambda time: p.x[time], state0=(zeros(B, H), zeros(B, H))))


@golden("tf_basic_lstm")
def test_tf_basic_lstm(p, raw_rnn):
    """TensorFlow's BasicLSTMCell: state (c, h), gates i j f o of one product, forget_bias 1."""

    def step(x, state):
        c, h = state
        i, j, f, o = (torch.cat([x, h], 1) @ p.kernel + p.bias).chunk(4, 1)
        c = c * (f + 1.0).sigmoid() + i.sigmoid() * j.tanh()
        h = o.sigmoid() * c.tanh()
        return h, (c, h)

    return raw_rnn(Cell(step, H, (H, H)), sequence(p, lambda time: p.x[time], state0=(zeros(B, H), zeros(B, H))))


@golden("tf_gru")
def test_tf_gru(p, raw_rnn):
    """TensorFlow's GRUCell: reset before the product, which makes two products in a row."""

    def step(x, h):
        r, u = (torch.cat([x, h], 1) @ p.kernel + p.bias).sigmoid().chunk(2, 1)
        c = torch.tanh(torch.cat([x, r * h], 1) @ p.candidate + p.candidate_bias)
        h = u * h + (1 - u) * c
        return h, h

    return raw_rnn(Cell(step), sequence(p, lambda time: p.x[time]))


@golden("nested_loop", eager_only=True)
def test_nested_loop(p, raw_rnn):
    """The cell reads a sentence a step: its own raw_rnn over the words, whose final state is the outer input."""

    def inner_step(words, h):
        h = torch.tanh(words @ p.w + h @ p.iu)
        return h, h

    def step(x, h):
        words, lengths = x

        def loop_fn(time, output, state, loop_state):
            return time >= lengths, words[:, time], h if output is None else state, output, None

        _, encoded, _ = raw_rnn(Cell(inner_step), loop_fn)
        h = torch.tanh(encoded + h @ p.u + p.b)
        return h, h

    return raw_rnn(Cell(step), sequence(p, lambda time: (p.x[time], p.inner_lengths[time])))


@golden("dynamic_rnn")
def test_dynamic_rnn(p, raw_rnn):
    """TensorFlow's dynamic_rnn over batch-major inputs; it pads to T, as the longest row here does."""
    return raw_rnn(torch_cell(nn.LSTMCell, p), sequence(p, lambda time: p.x[:, time], state0=(zeros(B, H), zeros(B, H))))


@golden("dynamic_rnn_clipped")
def test_dynamic_rnn_clipped(p, raw_rnn):
    """Lengths above T and below 0 are T and 0 to dynamic_rnn."""
    p.lengths = p.lengths.clamp(0, T)
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time], state0=p.h0))


@golden("bidirectional")
def test_bidirectional(p, raw_rnn):
    """The backward half reads each row from its own end and its outputs are put back in place."""
    rows = torch.arange(B)
    forward = raw_rnn(torch_cell(nn.GRUCell, p, "a_"), sequence(p, lambda time: p.x[time]))
    backward = raw_rnn(torch_cell(nn.GRUCell, p, "b_"), sequence(p, lambda time: p.x[(p.lengths - 1 - time).clamp(min=0), rows]))
    places = (p.lengths - 1 - torch.arange(T)[:, None]).clamp(min=0)
    placed = backward[0].stack()[places, rows] * (torch.arange(T)[:, None] < p.lengths)[..., None]
    return (forward[0], placed), (forward[1], backward[1]), None
