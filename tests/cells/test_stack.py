"""MultiRNNCell and ResidualWrapper: TensorFlow's values, torch's cells in a stack, and what they refuse."""

import pytest
import torch
from torch import nn

from fusedrnn.cells import BasicRNNCell, DropoutWrapper, GRUCell, LSTMCell, MultiRNNCell, ResidualWrapper, RNNCell, ZoneoutWrapper

from .golden import Case, gradcheck, random_state, steps


def gru(case, prefix=""):
    names = ("gates/kernel", "gates/bias", "candidate/kernel", "candidate/bias")
    return GRUCell.from_tensorflow(*case.variables(*(prefix + name for name in names)))


def test_stack_as_tensorflow():
    case = Case("stack")
    cell = MultiRNNCell([LSTMCell.from_tensorflow(*case.variables("cell_0/kernel", "cell_0/bias")), gru(case, "cell_1/")])
    c, h, above = case.leaves("initial")
    case.check(cell, ((h, c), above), lambda state: (state[0][1], state[0][0], state[1]))


def test_residual_as_tensorflow():
    case = Case("residual")
    case.check(ResidualWrapper(gru(case)), case.leaves("initial")[0], lambda state: [state])


def test_torch_cells_in_a_stack():
    cells = [nn.LSTMCell(3, 4), nn.GRUCell(4, 2), LSTMCell(2, 3)]
    stack = MultiRNNCell(cells)
    assert stack.state_size == ((4, 4), 2, (3, 3))
    assert stack.output_size == 3
    assert {id(p) for p in stack.parameters()} == {id(p) for cell in cells for p in cell.parameters()}
    assert "cells.1.weight_ih" in stack.state_dict()
    x, state = torch.randn(2, 3), stack.zero_state(2)
    output, new = stack(x, state)
    h, c = cells[0](x, state[0])
    middle = cells[1](h, state[1])
    torch.testing.assert_close((output, new), (cells[2](middle, state[2])[0], ((h, c), middle, cells[2](middle, state[2])[1])))


class Foreign:
    """No module at all."""

    output_size = state_size = 2

    def __call__(self, inputs, state):
        return inputs + state, state


def test_cells_that_are_no_modules_and_cells_replaced_later():
    stack = MultiRNNCell([Foreign(), GRUCell(2, 2)])
    assert set(stack.state_dict()) == {f"cells.1.{name}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    x, state = torch.randn(3, 2), (torch.ones(3, 2), torch.zeros(3, 2))
    torch.testing.assert_close(stack(x, state)[0], stack.cells[1](x + 1, state[1])[0])
    stack.cells[1] = torch.nn.GRUCell(2, 2)
    torch.testing.assert_close(stack(x, state)[0], stack.cells[1](x + 1, state[1]))


@pytest.mark.parametrize("wrap", [ResidualWrapper, DropoutWrapper, ZoneoutWrapper])
@pytest.mark.parametrize("cell", [GRUCell(2, 2), nn.GRUCell(2, 2)], ids=["ours", "torch"])
def test_a_wrapper_names_its_parameters_once(wrap, cell):
    assert list(wrap(cell).state_dict()) == [f"cell.{name}" for name in cell.state_dict()]
    x, h = torch.randn(2, 2), torch.randn(2, 2)
    assert wrap(Foreign())(x, h)[0].shape == (2, 2)


def test_a_copied_stack_is_its_own():
    from copy import deepcopy

    stack = MultiRNNCell([nn.GRUCell(2, 2)])
    copy = deepcopy(stack)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    x, state = torch.randn(1, 2), (torch.ones(1, 2),)
    assert torch.equal(copy(x, state)[0], torch.full((1, 2), 0.5))
    assert not torch.equal(stack(x, state)[0], copy(x, state)[0])


class Counting(RNNCell):
    """A cell of nested state that starts at its own initial state."""

    output_size = 2
    state_size = {"sum": 2, "count": torch.Size(())}  # noqa: RUF012

    def forward(self, inputs, state):
        new = {"sum": state["sum"] + inputs, "count": state["count"] + 1}
        return new["sum"], new

    def zero_state(self, batch_size, dtype=None, device=None):
        return {**super().zero_state(batch_size, dtype, device), "count": torch.full((batch_size,), 5.0)}


def test_nested_states_and_a_cells_own_zero_state():
    stack = MultiRNNCell([ResidualWrapper(Counting()), BasicRNNCell(2, 3)])
    state = stack.zero_state(4)
    assert torch.equal(state[0]["count"], torch.full((4,), 5.0))
    outputs, state = steps(stack, state, torch.ones(3, 4, 2))
    assert outputs.shape == (3, 4, 3)
    assert torch.equal(state[0]["count"], torch.full((4,), 8.0))


def test_residual_fn():
    cell = GRUCell(3, 2)
    wrapped = ResidualWrapper(cell, lambda inputs, output: output * inputs[:, :2])
    x, h = torch.randn(4, 3), torch.randn(4, 2)
    assert torch.equal(wrapped(x, h)[0], cell(x, h)[0] * x[:, :2])
    assert torch.equal(wrapped(x, h)[1], cell(x, h)[1])


@pytest.mark.parametrize(
    "cell",
    [
        MultiRNNCell([LSTMCell(2, 3, dtype=torch.float64), nn.GRUCell(3, 2, dtype=torch.float64)]),
        ResidualWrapper(LSTMCell(2, 2, dtype=torch.float64)),
    ],
)
def test_gradcheck(cell):
    assert gradcheck(cell, torch.randn(2, 2, dtype=torch.float64), random_state(cell, 2))


def test_refused_stacks():
    with pytest.raises(ValueError, match="at least one cell"):
        MultiRNNCell([])
    with pytest.raises(TypeError, match="cells must be a list or tuple of cells, got LSTMCell"):
        MultiRNNCell(LSTMCell(2, 2))
    with pytest.raises(TypeError, match=r"cells\[1\] must be an RNNCell.*Linear lacks output_size, state_size"):
        MultiRNNCell([GRUCell(2, 2), nn.Linear(2, 2)])
    stack = MultiRNNCell([GRUCell(2, 2), GRUCell(2, 2)])
    x, h = torch.zeros(1, 2), torch.zeros(1, 2)
    with pytest.raises(TypeError, match=r"state must be a tuple of 2 states, got \[float32\[1, 2\]"):
        stack(x, [h, h])
    with pytest.raises(ValueError, match="state must hold 2 states, one for each cell, got 3"):
        stack(x, (h, h, h))


def test_refused_residuals():
    x, h = torch.zeros(1, 3), torch.zeros(1, 2)
    with pytest.raises(
        ValueError, match=r"got inputs float32\[1, 3\] and output float32\[1, 2\]; project one of them, or pass residual_fn"
    ):
        ResidualWrapper(GRUCell(3, 2))(x, h)
    with pytest.raises(TypeError, match="residual_fn must be callable or None, got int"):
        ResidualWrapper(GRUCell(3, 2), 3)
    with pytest.raises(TypeError, match="cell must be an RNNCell"):
        ResidualWrapper(torch.tanh)
