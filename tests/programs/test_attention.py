"""Attention over a memory whose rows have lengths of their own, written by hand."""

from __future__ import annotations

import torch
from torch import nn

from .cells import Cell, real, sequence, tanh_cell, torch_cell, zeros
from .golden import golden
from .inputs import B, H, M, S


def shares_of(scores, p):
    return scores.masked_fill(torch.arange(S) >= p.memory_lengths[:, None], -1e30).softmax(1)


def context(shares, p):
    return torch.einsum("bs,bsm->bm", shares, p.memory)


@golden("bahdanau")
def test_bahdanau(p, raw_rnn):
    def loop_fn(time, output, state, loop_state):
        finished = time >= p.lengths
        if output is None:
            return finished, torch.cat([p.x[time], zeros(B, M)], 1), (zeros(B, H), zeros(B, H)), (zeros(H), zeros(S)), None
        shares = shares_of((torch.tanh(p.memory + (output @ p.query)[:, None]) * p.score).sum(2), p)
        return finished, torch.cat([p.x[time], context(shares, p)], 1), state, (output, shares), None

    return raw_rnn(torch_cell(nn.LSTMCell, p), loop_fn)


@golden("luong")
def test_luong(p, raw_rnn):
    gru = torch_cell(nn.GRUCell, p)

    def step(x, state):
        h, attended = state
        h = gru(torch.cat([x, attended], 1), h)
        shares = shares_of(torch.einsum("bm,bsm->bs", h @ p.query, p.memory), p)
        attended = torch.tanh(torch.cat([h, context(shares, p)], 1) @ p.mix)
        return attended, (h, attended)

    return raw_rnn(Cell(step, H, (H, H)), sequence(p, lambda time: p.x[time], state0=(zeros(B, H), zeros(B, H))))


@golden("coverage")
def test_coverage(p, raw_rnn):
    """See et al. 2017: the attention spent so far joins the scores, and its overlap with the new one is emitted as a penalty."""

    def loop_fn(time, output, state, covered):
        finished = time >= p.lengths
        if output is None:
            return finished, torch.cat([p.x[time], zeros(B, M)], 1), zeros(B, H), zeros(S), zeros(B, S)
        keys = p.memory + (output @ p.query)[:, None] + covered[:, :, None] * p.cover
        shares = shares_of((torch.tanh(keys) * p.score).sum(2), p)
        return finished, torch.cat([p.x[time], context(shares, p)], 1), state, torch.minimum(shares, covered), covered + shares

    return raw_rnn(tanh_cell(p), loop_fn)


@golden("monotonic")
def test_monotonic(p, raw_rnn):
    """Graves 2013: a window that only moves forward."""
    positions = torch.arange(S, dtype=real())

    def loop_fn(time, output, state, place):
        if output is None:
            state, place = zeros(B, H), zeros(B)
        else:
            place = place + torch.exp(output @ p.move)
        shares = shares_of(-((positions - place[:, None]) ** 2), p)
        return time >= p.lengths, torch.cat([p.x[time], context(shares, p)], 1), state, output, place

    return raw_rnn(tanh_cell(p), loop_fn)
