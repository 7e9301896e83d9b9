"""The example of TensorFlow's documentation, dynamic_rnn written with raw_rnn, ported line by line in three ways: each equals nn.LSTM."""

import pytest
import torch
from torch import nn

import fusedrnn

pytestmark = pytest.mark.usefixtures("float64")
MAX_TIME, BATCH, INPUT_DEPTH, NUM_UNITS = 6, 4, 3, 5


def with_cond(finished, time, inputs_ta):
    return torch.cond(finished, lambda: torch.zeros(BATCH, INPUT_DEPTH), lambda: inputs_ta.read(time))


def with_if(finished, time, inputs_ta):
    if finished:
        return torch.zeros(BATCH, INPUT_DEPTH)
    return inputs_ta.read(time)


def without(finished, time, inputs_ta):
    return inputs_ta.read(time)


@pytest.mark.parametrize("read", [with_cond, with_if, without])
def test_equals_nn_lstm(read):
    lstm = nn.LSTM(INPUT_DEPTH, NUM_UNITS)
    inputs = torch.randn(MAX_TIME, BATCH, INPUT_DEPTH, requires_grad=True)
    sequence_length = torch.tensor([6, 3, 1, 4])
    inputs_ta = fusedrnn.TensorArray(dtype=torch.float64, size=MAX_TIME)
    inputs_ta = inputs_ta.unstack(inputs)
    cell = fusedrnn.LSTMCell(INPUT_DEPTH, NUM_UNITS)
    for name, parameter in cell.named_parameters():
        parameter.data.copy_(getattr(lstm, f"{name}_l0").data)

    def loop_fn(time, cell_output, cell_state, loop_state):
        emit_output = cell_output  # == None for time == 0
        if cell_output is None:  # time == 0  # noqa: SIM108
            next_cell_state = cell.zero_state(BATCH, torch.float64)
        else:
            next_cell_state = cell_state
        elements_finished = time >= sequence_length
        finished = elements_finished.all()
        next_input = read(finished, time, inputs_ta)
        next_loop_state = None
        return elements_finished, next_input, next_cell_state, emit_output, next_loop_state

    outputs_ta, final_state, _ = fusedrnn.raw_rnn(cell, loop_fn)
    outputs = outputs_ta.stack()

    packed = nn.utils.rnn.pack_padded_sequence(inputs, sequence_length, enforce_sorted=False)
    expected, (h, c) = lstm(packed)
    expected, _ = nn.utils.rnn.pad_packed_sequence(expected)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(final_state, (h[0], c[0]))
    (mine,) = torch.autograd.grad(outputs.square().sum() + final_state[1].sum(), inputs)
    (theirs,) = torch.autograd.grad(expected.square().sum() + c.sum(), inputs)
    torch.testing.assert_close(mine, theirs)
