"""Every cell inside raw_rnn with ragged lengths: each row as if it ran alone for its own length."""

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import trees
from fusedrnn.cells import BasicRNNCell, DropoutWrapper, GRUCell, LSTMCell, MultiRNNCell, ResidualWrapper, ZoneoutWrapper

from .golden import close, random_state, steps

CELLS = {
    "lstm": lambda: LSTMCell(3, 4),
    "lstm with everything": lambda: LSTMCell(
        3, 4, forget_bias=1.0, use_peepholes=True, cell_clip=1.0, num_proj=2, proj_clip=0.5, layer_norm=True
    ),
    "gru": lambda: GRUCell(3, 4),
    "gru, reset before": lambda: GRUCell(3, 4, reset_after=False, layer_norm=True),
    "basic": lambda: BasicRNNCell(3, 4, activation="relu"),
    "stack": lambda: MultiRNNCell([ResidualWrapper(LSTMCell(3, 3)), nn.GRUCell(3, 4)]),
    "zoneout": lambda: ZoneoutWrapper(LSTMCell(3, 4), (0.1, 0.5)).eval(),
    "dropout": lambda: DropoutWrapper(LSTMCell(3, 4), input_dropout=0.5).eval(),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CELLS)
def test_ragged(name):
    cell, lengths = CELLS[name](), torch.tensor([2, 0, 5, 1])
    x, initial = torch.randn(5, 4, 3, requires_grad=True), random_state(cell, 4)

    def loop_fn(time, output, state, _):
        return time >= lengths, x[time], initial if state is None else state, output, None

    emit, final, _ = fusedrnn.raw_rnn(cell, loop_fn)
    outputs = emit.stack()
    (gradient,) = torch.autograd.grad(outputs.square().sum(), x)
    for row, length in enumerate(lengths.tolist()):
        alone = x[:length, row : row + 1].detach().requires_grad_()
        state = trees.map_leaves(lambda leaf, row=row: leaf[row : row + 1], initial)
        expected = torch.zeros(0, 1, cell.output_size)
        if length:
            expected, state = steps(cell, state, alone)
            close(gradient[:length, row : row + 1], torch.autograd.grad(expected.square().sum(), alone)[0])
        close(outputs[:length, row : row + 1], expected.detach())
        assert not outputs[length:, row].any()
        assert not gradient[length:, row].any()
        close(trees.map_leaves(lambda leaf, row=row: leaf[row : row + 1], final), state)


@pytest.mark.parametrize("name", CELLS)
def test_batch_of_none(name):
    cell = CELLS[name]()
    output, state = cell(torch.zeros(0, 3), cell.zero_state(0))
    assert output.shape == (0, cell.output_size)
    assert all(len(leaf) == 0 for leaf in trees.leaves(state))
