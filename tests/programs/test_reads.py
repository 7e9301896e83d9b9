"""Reads: what next_input is taken from, and when."""

from __future__ import annotations

import torch
from torch import nn

from fusedrnn import TensorArray

from .cells import Cell, real, sequence, tanh_cell, torch_cell, zeros
from .golden import golden
from .inputs import B, D, H, T


def zero_pair():
    return (zeros(B, H), zeros(B, H))


@golden("lstm_natural")
def test_lstm_natural(p, raw_rnn):
    """The example everyone writes: it reads x[T] once all rows are done."""
    cell = torch_cell(nn.LSTMCell, p)

    def loop_fn(time, cell_output, cell_state, loop_state):
        emit_output = cell_output
        next_cell_state = zero_pair() if cell_output is None else cell_state
        elements_finished = time >= p.lengths
        next_input = p.x[time]
        return elements_finished, next_input, next_cell_state, emit_output, None

    return raw_rnn(cell, loop_fn)


@golden("lstm_natural")
def test_lstm_cond(p, raw_rnn):
    cell = torch_cell(nn.LSTMCell, p)

    def loop_fn(time, output, state, loop_state):
        finished = time >= p.lengths
        next_input = torch.cond(finished.all(), lambda: zeros(B, D), lambda: p.x[time])
        return finished, next_input, zero_pair() if output is None else state, output, None

    return raw_rnn(cell, loop_fn)


@golden("lstm_natural")
def test_lstm_cond_operands(p, raw_rnn):
    cell = torch_cell(nn.LSTMCell, p)

    def loop_fn(time, output, state, loop_state):
        finished = time >= p.lengths
        next_input = torch.cond(finished.all(), lambda x, time: torch.zeros_like(x[0]), lambda x, time: x[time], (p.x, time))
        return finished, next_input, zero_pair() if output is None else state, output, None

    return raw_rnn(cell, loop_fn)


@golden("lstm_natural", eager_only=True)
def test_lstm_python_if(p, raw_rnn):
    cell = torch_cell(nn.LSTMCell, p)

    def loop_fn(time, output, state, loop_state):
        finished = time >= p.lengths
        next_input = zeros(B, D) if finished.all() else p.x[time]
        return finished, next_input, zero_pair() if output is None else state, output, None

    return raw_rnn(cell, loop_fn)


@golden("lstm_natural")
def test_lstm_select(p, raw_rnn):
    return raw_rnn(torch_cell(nn.LSTMCell, p), sequence(p, lambda time: torch.select(p.x, 0, time), state0=zero_pair()))


@golden("lstm_natural")
def test_lstm_index_select(p, raw_rnn):
    read = lambda time: p.x.index_select(0, time.reshape(1)).squeeze(0)  # noqa: E731
    return raw_rnn(torch_cell(nn.LSTMCell, p), sequence(p, read, state0=zero_pair()))


@golden("gru_array")
def test_gru_array(p, raw_rnn):
    array = TensorArray(real(), T).unstack(p.x)
    return raw_rnn(torch_cell(nn.GRUCell, p), sequence(p, array.read, state0=p.h0))


@golden("rnn_full")
def test_rnn_full(p, raw_rnn):
    return raw_rnn(torch_cell(nn.RNNCell, p), sequence(p, lambda time: p.x[time]))


@golden("duck_typed")
def test_duck_typed(p, raw_rnn):
    class Relu:
        output_size = H
        state_size = torch.Size([H])

        def __call__(self, x, h):
            h = torch.relu(x @ p.w + h @ p.u + p.b)
            return h, h

    return raw_rnn(Relu(), sequence(p, lambda time: p.x[time]))


@golden("all_finished")
def test_all_finished(p, raw_rnn):
    def never(x, h):
        raise AssertionError("the cell runs although no row wants a step")

    cell = tanh_cell(p)

    def step(x, h):  # only to ask for dtypes, on tensors without data
        return cell(x, h) if isinstance(x, torch._subclasses.FakeTensor) else never(x, h)

    return raw_rnn(Cell(step), sequence(p, lambda time: p.x[time], state0=p.h0))


@golden("no_time")
def test_no_time(p, raw_rnn):
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time], state0=p.h0))


@golden("one_row")
def test_one_row(p, raw_rnn):
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time]))


@golden("no_rows")
def test_no_rows(p, raw_rnn):
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time]))


@golden("previous_read")
def test_previous_read(p, raw_rnn):
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[torch.clamp(time - 1, min=0)]))


@golden("reversed_read")
def test_reversed_read(p, raw_rnn):
    """At time T the index is -1, which is the last element in both libraries."""
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[T - 1 - time]))


@golden("reversed_rows")
def test_reversed_rows(p, raw_rnn):
    rows = torch.arange(B)
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[(p.lengths - 1 - time).clamp(min=0), rows]))


@golden("strided_read")
def test_strided_read(p, raw_rnn):
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[2 * time]))


@golden("clamped_read")
def test_clamped_read(p, raw_rnn):
    """Lengths above T: the last element again and again."""
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[torch.clamp(time, max=T - 1)]))


@golden("lookahead_read")
def test_lookahead_read(p, raw_rnn):
    def step(x, h):
        h = torch.tanh(x[0] @ p.w + x[1] @ p.v + h @ p.u + p.b)
        return h, h

    return raw_rnn(Cell(step), sequence(p, lambda time: (p.x[time], p.x[torch.clamp(time + 1, max=T - 1)])))


@golden("two_inputs")
def test_two_inputs(p, raw_rnn):
    def step(x, h):
        h = torch.tanh(x[0] @ p.w + x[1] @ p.v + h @ p.u + p.b)
        return h, h

    return raw_rnn(Cell(step), sequence(p, lambda time: (p.x[time], p.y[time])))


@golden("dict_inputs")
def test_dict_inputs(p, raw_rnn):
    def step(x, h):
        h = torch.tanh(x["x"] @ p.w + nn.functional.embedding(x["ids"], p.table) + h @ p.u + p.b)
        return h, h

    return raw_rnn(Cell(step), sequence(p, lambda time: {"ids": p.ids[time], "x": p.x[time]}))


@golden("column_read")
def test_column_read(p, raw_rnn):
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[:, time]))


@golden("column_read")
def test_column_select(p, raw_rnn):
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x.select(1, time)))


def pointing(p, read):
    def loop_fn(time, output, state, pointer):
        if output is None:
            state, pointer = zeros(B, H), torch.zeros(B, dtype=torch.int32)
        else:
            pointer = pointer + torch.where(output[:, 0] > 0, 2, 1).to(torch.int32)
        return pointer >= p.lengths, read(pointer), state, output, pointer

    return loop_fn


@golden("pointer_read")
def test_pointer_read(p, raw_rnn):
    """Every row at its own place; rows that are finished point past the end."""
    rows = torch.arange(B)
    return raw_rnn(tanh_cell(p), pointing(p, lambda pointer: p.x[pointer, rows]))


@golden("gather_read")
def test_gather_read(p, raw_rnn):
    return raw_rnn(tanh_cell(p), pointing(p, lambda pointer: torch.gather(p.x, 0, pointer[None].long()).T))


@golden("gather_read")
def test_take_along_dim_read(p, raw_rnn):
    return raw_rnn(tanh_cell(p), pointing(p, lambda pointer: torch.take_along_dim(p.x, pointer[None].long(), 0).T))
