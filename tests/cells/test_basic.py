"""BasicRNNCell and the activations: TensorFlow's, Keras's and torch's values, and what they refuse."""

import numpy as np
import pytest
import torch

from fusedrnn.cells import ACTIVATIONS, BasicRNNCell, GRUCell, LSTMCell

from .golden import Case, gradcheck, random_state


@pytest.mark.parametrize(("name", "load"), [("basic", BasicRNNCell.from_tensorflow), ("keras_simple", BasicRNNCell.from_keras)])
def test_tensorflow(name, load):
    case = Case(name)
    case.check(load(**case.variables()), case.leaves("initial")[0], lambda state: [state])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_torch(activation, bias):
    torch.manual_seed(1)
    theirs = torch.nn.RNNCell(3, 4, bias=bias, nonlinearity=activation, dtype=torch.float64)
    torch.manual_seed(1)
    ours = BasicRNNCell(3, 4, bias=bias, activation=activation, dtype=torch.float64)
    x, h = torch.randn(2, 3, dtype=torch.float64), random_state(ours, 2)
    torch.testing.assert_close(ours(x, h)[0], theirs(x, h), rtol=0, atol=1e-15)
    found, expected = (
        torch.autograd.grad(new.sin().sum(), cell.parameters()) for cell, new in ((ours, ours(x, h)[0]), (theirs, theirs(x, h)))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    cell = BasicRNNCell(2, 3, activation=activation, dtype=torch.float64)
    x, h = torch.randn(2, 2, dtype=torch.float64), random_state(cell, 2)
    pre = x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
    function = {"identity": lambda a: a}.get(activation) or getattr(torch.nn.functional, activation)
    torch.testing.assert_close(cell(x, h)[0], function(pre))
    assert gradcheck(cell, x, h)


def test_a_callable_activation():
    cell = BasicRNNCell(2, 3, activation=torch.sin)
    x, h = torch.randn(2, 2), torch.zeros(2, 3)
    assert torch.equal(cell(x, h)[0], torch.sin(BasicRNNCell.forward(_with(cell, "identity"), x, h)[0]))


def test_the_fused_call_equals_the_written_formula():
    for activation in (torch.tanh, torch.relu):
        fused = BasicRNNCell(2, 3, activation=activation, dtype=torch.float64)
        written = _with(fused, lambda a, activation=activation: activation(a))
        x, h = torch.randn(2, 2, dtype=torch.float64), random_state(fused, 2)
        torch.testing.assert_close(fused(x, h), written(x, h), rtol=1e-14, atol=1e-14)


def _with(cell, activation):
    other = BasicRNNCell(cell.input_size, cell.hidden_size, activation=activation, dtype=cell.weight_ih.dtype)
    other.load_state_dict(cell.state_dict())
    return other


@pytest.mark.parametrize("kind", [BasicRNNCell, GRUCell, LSTMCell])
def test_an_activation_with_parameters(kind):
    cell = kind(2, 3, activation=torch.nn.PReLU())
    assert [name for name in cell.state_dict() if "activation" in name] == ["activation.weight"]
    assert cell.activation.weight.item() == 0.25
    cell(torch.randn(2, 2), cell.zero_state(2))[0].sum().backward()
    assert cell.activation.weight.grad is not None


def test_refused():
    with pytest.raises(ValueError, match="input_size must be at least 0"):
        BasicRNNCell(-1, 2)
    with pytest.raises(ValueError, match=r"kernel must have the shape \[D \+ 4, ...\]"):
        BasicRNNCell.from_tensorflow(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"recurrent_kernel must have the shape \[4, 4\], got \[3, 4\]"):
        BasicRNNCell.from_keras(np.zeros((3, 4)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"inputs must be a tensor \[B, 2\]"):
        BasicRNNCell(2, 3)(torch.zeros(2, 3), torch.zeros(2, 3))


def test_extra_repr():
    assert repr(BasicRNNCell(3, 4, bias=False, activation="relu")) == "BasicRNNCell(3, 4, bias=False, activation='relu')"
