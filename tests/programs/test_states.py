"""States: their structure, what freezes, and what loop_fn makes of the state that the cell proposes."""

from __future__ import annotations

from collections import namedtuple

import torch

from .cells import Cell, sequence, tanh_cell, zeros
from .golden import golden
from .inputs import B, H

Memory = namedtuple("Memory", "h c")


def states_of(p, raw_rnn, structure, pack, unpack):
    """A cell with two states, written down as ``pack(h, c)``."""

    def step(x, state):
        h, c = unpack(state)
        c = 0.5 * c + torch.tanh(x @ p.w + h @ p.u + p.b)
        h = torch.sin(c)
        return h, pack(h, c)

    result = raw_rnn(Cell(step, H, structure), sequence(p, lambda time: p.x[time], state0=pack(zeros(B, H), zeros(B, H))))
    assert type(result[1]) is type(pack(zeros(B, H), zeros(B, H)))
    return result


@golden("state_record")
def test_state_record(p, raw_rnn):
    return states_of(p, raw_rnn, Memory(H, H), Memory, tuple)


@golden("state_dict")
def test_state_dict(p, raw_rnn):
    return states_of(p, raw_rnn, {"c": H, "h": H}, lambda h, c: {"h": h, "c": c}, lambda state: (state["h"], state["c"]))


@golden("state_list")
def test_state_list(p, raw_rnn):
    return states_of(p, raw_rnn, [H, H], lambda h, c: [h, c], tuple)


@golden("state_nested")
def test_state_nested(p, raw_rnn):
    def pack(h, c):
        return (Memory(h, {"c": [c]}), h[:, 0])

    structure = (Memory(H, {"c": [H]}), torch.Size([]))
    return states_of(p, raw_rnn, structure, pack, lambda state: (state[0].h, state[0].c["c"][0]))


@golden("fast_weights")
def test_fast_weights(p, raw_rnn):
    def step(x, state):
        h, fast = state
        h = torch.tanh(x @ p.w + h @ p.u + torch.einsum("bij,bj->bi", fast, h) + p.b)
        return h, (h, 0.9 * fast + 0.3 * h[:, :, None] * h[:, None, :])

    return raw_rnn(Cell(step, H, (H, torch.Size([H, H]))), sequence(p, lambda time: p.x[time], state0=(p.h0, p.fast0)))


@golden("scalar_leaf")
def test_scalar_leaf(p, raw_rnn):
    """A rank-0 leaf belongs to no row: it goes on after rows end."""

    def step(x, state):
        h, age = state
        h = torch.tanh(x @ p.w + h @ p.u + p.b * age)
        return h, (h, age + 0.5 + 0.1 * h.sum())

    return raw_rnn(Cell(step, H, (H, torch.Size([]))), sequence(p, lambda time: p.x[time], state0=(zeros(B, H), zeros())))


@golden("int_leaf")
def test_int_leaf(p, raw_rnn):
    def step(x, state):
        h, age = state
        h = torch.tanh(x @ p.w + h @ p.u / (1 + age)[:, None] + p.b)
        return h, (h, age + 1)

    start = (zeros(B, H), torch.zeros(B, dtype=torch.int32))
    return raw_rnn(Cell(step, H, (H, torch.Size([]))), sequence(p, lambda time: p.x[time], state0=start))


def overriding(p, propose):
    def loop_fn(time, output, state, loop_state):
        state = zeros(B, H) if output is None else propose(time, state)
        return time >= p.lengths, p.x[time], state, output, None

    return loop_fn


@golden("reset_on_time")
def test_reset_on_time(p, raw_rnn):
    return raw_rnn(tanh_cell(p), overriding(p, lambda time, state: torch.where(time == 2, torch.zeros_like(state), state)))


@golden("reset_rows")
def test_reset_rows(p, raw_rnn):
    return raw_rnn(tanh_cell(p), overriding(p, lambda time, state: state.masked_fill(state[:, :1] < -0.73, 0)))


@golden("teacher_state")
def test_teacher_state(p, raw_rnn):
    return raw_rnn(tanh_cell(p), overriding(p, lambda time, state: p.states[time] + 0.1 * state))


@golden("initial_state")
def test_initial_state(p, raw_rnn):
    """The gradient of a frozen row's state is the identity: that of length 0 hands it to the initial state unchanged."""
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time], state0=p.h0))


@golden("scalar_finished")
def test_scalar_finished(p, raw_rnn):
    def loop_fn(time, output, state, loop_state):
        return time >= 4, p.x[time], zeros(B, H) if output is None else state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


@golden("sticky")
def test_sticky(p, raw_rnn):
    """A row reports its end once, then False again."""

    def loop_fn(time, output, state, loop_state):
        return time == p.lengths, p.x[time], zeros(B, H) if output is None else state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


@golden("last_state")
def test_last_state(p, raw_rnn):
    """The emit and the state that come with the report of the end still count; those after it do not."""

    def loop_fn(time, output, state, loop_state):
        finished = time >= p.lengths
        if output is None:
            return finished, p.x[time], zeros(B, H), None, None
        ending = finished[:, None]
        return finished, p.x[time], torch.where(ending, state * 10, state), torch.where(ending, output + 5, output), None

    return raw_rnn(tanh_cell(p), loop_fn)
