"""GRUCell: TensorFlow's and Keras's values, torch's cell, the formula of layer normalisation, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn.cells import GRUCell

from .golden import Case, close, gradcheck, random_state, steps


def test_tensorflow():
    case = Case("gru")
    cell = GRUCell.from_tensorflow(*case.variables("gates/kernel", "gates/bias", "candidate/kernel", "candidate/bias"))
    assert not cell.reset_after
    case.check(cell, case.leaves("initial")[0], lambda state: [state])


@pytest.mark.parametrize("reset_after", [True, False])
def test_keras(reset_after):
    case = Case(f"keras_gru_{'after' if reset_after else 'before'}")
    cell = GRUCell.from_keras(**case.variables(), reset_after=reset_after)
    case.check(cell, case.leaves("initial")[0], lambda state: [state])


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 5), st.booleans())
def test_torch(batch, inputs, hidden, bias):
    torch.manual_seed(1)
    theirs = torch.nn.GRUCell(inputs, hidden, bias=bias, dtype=torch.float64)
    torch.manual_seed(1)
    ours = GRUCell(inputs, hidden, bias=bias, dtype=torch.float64)
    x, h = torch.randn(batch, inputs, dtype=torch.float64), random_state(ours, batch)
    found, expected = [], []
    for cell, into in ((ours, found), (theirs, expected)):
        leaves = [value.clone().requires_grad_() for value in (x, h)]
        new = cell(*leaves)[0] if cell is ours else cell(*leaves)
        into += [new, *torch.autograd.grad(new.sin().sum(), [*leaves, *cell.parameters()])]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_fused_call_equals_the_written_formula():
    fused = GRUCell(3, 4, dtype=torch.float64)
    written = GRUCell(3, 4, activation=lambda x: x.tanh(), dtype=torch.float64)
    written.load_state_dict(fused.state_dict())
    x, h = torch.randn(2, 3, dtype=torch.float64), random_state(fused, 2)
    close(fused(x, h), written(x, h))


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(reset_after, bias):
    cell = GRUCell(3, 4, bias=bias, reset_after=reset_after, layer_norm=True, activation="softsign", dtype=torch.float64)
    assert cell.bias_ih is None
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter)

    def product(x, side, gate):
        weight, gain, shift = (
            None if p is None else p[4 * gate : 4 * gate + 4] for p in (getattr(cell, f"{n}_{side}") for n in ("weight", "gain", "shift"))
        )
        a = x @ weight.T
        a = (a - a.mean(1, keepdim=True)) / (a.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        return gain * a + (shift if bias else 0)

    x, h = torch.randn(2, 3, dtype=torch.float64), random_state(cell, 2)
    r, z = (torch.sigmoid(product(x, "ih", gate) + product(h, "hh", gate)) for gate in (0, 1))
    reset = r * product(h, "hh", 2) if reset_after else product(r * h, "hh", 2)
    n = torch.nn.functional.softsign(product(x, "ih", 2) + reset)
    output, new = cell(x, h)
    close(output, (1 - z) * n + z * h)
    assert new is output


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("reset_after", [True, False])
def test_gradcheck(reset_after, layer_norm):
    cell = GRUCell(2, 3, reset_after=reset_after, layer_norm=layer_norm, dtype=torch.float64)
    assert gradcheck(cell, torch.randn(2, 2, dtype=torch.float64), random_state(cell, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    cell = GRUCell(3, 4, layer_norm=True, reset_after=False, dtype=dtype)
    outputs, h = steps(cell, cell.zero_state(2), torch.randn(3, 2, 3, dtype=dtype))
    assert outputs.dtype == h.dtype == dtype
    assert outputs.isfinite().all()


@pytest.mark.parametrize("reset_after", [True, False])
def test_parametrized_weights(reset_after):
    cell = GRUCell(2, 3, reset_after=reset_after)
    torch.nn.utils.parametrizations.spectral_norm(cell, "weight_hh")
    output, _ = cell(torch.randn(2, 2), torch.randn(2, 3))
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in cell.parameters())


def test_keras_without_bias():
    cell = GRUCell.from_keras(np.ones((2, 9), np.float32), np.ones((3, 9), np.float32))
    assert cell.bias_ih is None
    assert cell.weight_ih.dtype == torch.float32


def test_extra_repr():
    assert repr(GRUCell(3, 4)) == "GRUCell(3, 4)"
    assert repr(GRUCell(3, 4, reset_after=False)) == "GRUCell(3, 4, reset_after=False)"


def test_bad_options():
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got -4"):
        GRUCell(3, -4)
    with pytest.raises(ValueError, match="got 'softmax'"):
        GRUCell(3, 4, activation="softmax")


def test_bad_calls():
    cell = GRUCell(3, 4)
    with pytest.raises(ValueError, match=r"inputs must be a tensor \[B, 3\], got float32\[2, 4\]"):
        cell(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"state must be a tensor \[B, 4\], got float32\[1, 4\] \(B = 2 as in inputs"):
        cell(torch.zeros(2, 3), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"state must be a tensor \[B, 4\], got \(float32\[2, 4\], float32\[2, 4\]\)"):
        cell(torch.zeros(2, 3), (torch.zeros(2, 4), torch.zeros(2, 4)))


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (0, (7, 9), r"gates_kernel must have 2 \* H columns"),
        (0, (3, 8), r"gates_kernel must have the shape \[D \+ 4, ...\], at least 4 rows, got \[3, 8\]"),
        (1, (4,), r"gates_bias must have the shape \[8\], got \[4\]"),
        (2, (6, 4), r"candidate_kernel must have the shape \[7, 4\], got \[6, 4\]"),
        (3, (8,), r"candidate_bias must have the shape \[4\], got \[8\]"),
    ],
)
def test_bad_tensorflow_arrays(place, shape, message):
    shapes = [(7, 8), (8,), (7, 4), (4,)]
    shapes[place] = shape
    with pytest.raises(ValueError, match=message):
        GRUCell.from_tensorflow(*map(np.zeros, shapes))


def test_bad_keras_bias():
    with pytest.raises(ValueError, match=r"bias \(reset_after=True\) must have the shape \[2, 12\], got \[12\]"):
        GRUCell.from_keras(np.zeros((3, 12)), np.zeros((4, 12)), np.zeros(12))
    with pytest.raises(ValueError, match=r"bias \(reset_after=False\) must have the shape \[12\], got \[2, 12\]"):
        GRUCell.from_keras(np.zeros((3, 12)), np.zeros((4, 12)), np.zeros((2, 12)), reset_after=False)
