"""Feedback: the next input depends on this step's output."""

from __future__ import annotations

import torch
from torch.nn.functional import embedding

from .cells import tanh_cell, zeros
from .golden import golden
from .inputs import B, D, V


@golden("greedy")
def test_greedy(p, raw_rnn):
    def loop_fn(time, output, state, loop_state):
        if output is None:
            start = torch.zeros(B, dtype=torch.int64)
            example = {"token": torch.zeros((), dtype=torch.int64), "logits": zeros(V)}
            return torch.zeros(B, dtype=torch.bool), embedding(start, p.table), p.h0, example, None
        logits = output @ p.out
        token = logits.argmax(1)
        return (token == 1) | (time >= 7), embedding(token, p.table), state, {"token": token, "logits": logits}, None

    return raw_rnn(tanh_cell(p), loop_fn)


@golden("soft_feedback")
def test_soft_feedback(p, raw_rnn):
    """The expected embedding of the next token, so that gradients flow through the feedback."""

    def loop_fn(time, output, state, loop_state):
        if output is None:
            return False, p.table[:1].repeat(B, 1), p.h0, zeros(V), None
        shares = torch.softmax(output @ p.out * 2.0, 1)
        return time >= 5, shares @ p.table, state, shares, None

    return raw_rnn(tanh_cell(p), loop_fn)


@golden("continuous")
def test_continuous(p, raw_rnn):
    ends = torch.tensor([4, 2, 6, 1])

    def loop_fn(time, output, state, loop_state):
        if output is None:
            return torch.zeros(B, dtype=torch.bool), zeros(B, D), p.h0, None, None
        return time >= ends, output @ p.feed, state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


@golden("scheduled")
def test_scheduled(p, raw_rnn):
    """Reads while time < 3, its own output afterwards; x is shorter than the loop runs, so the read is clamped."""
    last = len(p.x) - 1

    def loop_fn(time, output, state, loop_state):
        if output is None:
            return False, p.x[time], p.h0, None, None
        return time >= 7, torch.where(time < 3, p.x[time.clamp(max=last)], output @ p.feed), state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


@golden("teacher_mask")
def test_teacher_mask(p, raw_rnn):
    def loop_fn(time, output, state, loop_state):
        fed = zeros(B, D) if output is None else output @ p.feed
        next_input = torch.where(p.mask[time][:, None], p.x[time], fed)
        return time >= p.lengths, next_input, p.h0 if output is None else state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


@golden("finish_on_value")
def test_finish_on_value(p, raw_rnn):
    def loop_fn(time, output, state, loop_state):
        if output is None:
            return torch.zeros(B, dtype=torch.bool), zeros(B, D), p.h0, None, None
        return (output[:, 1] > 0.7) | (time >= 6), output @ p.feed, state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)
