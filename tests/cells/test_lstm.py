"""LSTMCell: TensorFlow's values, torch's cell, the formula of layer normalisation, and what it refuses."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn.cells import LSTMCell

from .golden import Case, close, gradcheck, random_state, steps

OPTIONS = {
    "lstm": {},
    "lstm_basic": {"forget_bias": 0.5},
    "lstm_peepholes": {},
    "lstm_cell_clip": {"cell_clip": 0.3},
    "lstm_projection": {},
    "lstm_proj_clip": {"proj_clip": 0.1},
    "lstm_relu": {"activation": "relu"},
    "lstm_all": {"forget_bias": 2.0, "cell_clip": 0.3, "proj_clip": 0.1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_tensorflow(name):
    case = Case(name)
    variables = {key.replace("projection/kernel", "projection_kernel"): value for key, value in case.variables().items()}
    cell = LSTMCell.from_tensorflow(**variables, **OPTIONS[name])
    c, h = case.leaves("initial")
    case.check(cell, (h, c), lambda state: (state[1], state[0]))


def test_keras():
    case = Case("keras_lstm")
    cell = LSTMCell.from_keras(**case.variables())
    case.check(cell, tuple(case.leaves("initial")), lambda state: state)  # Keras's state is [h, c]


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 5), st.booleans())
def test_torch(batch, inputs, hidden, bias):
    torch.manual_seed(1)
    theirs = torch.nn.LSTMCell(inputs, hidden, bias=bias, dtype=torch.float64)
    torch.manual_seed(1)
    ours = LSTMCell(inputs, hidden, bias=bias, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x, state = torch.randn(batch, inputs, dtype=torch.float64), random_state(ours, batch)
    found, expected = [], []
    for cell, into in ((ours, found), (theirs, expected)):
        leaves = [value.clone().requires_grad_() for value in (x, *state)]
        h, c = cell(leaves[0], tuple(leaves[1:])) if cell is theirs else cell(leaves[0], tuple(leaves[1:]))[1]
        into += [h, c, *torch.autograd.grad((h.sin() + c.cos()).sum(), [*leaves, *cell.parameters()])]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_torch_draws_the_same_parameters():
    torch.manual_seed(2)
    theirs = torch.nn.LSTMCell(3, 4).state_dict()
    torch.manual_seed(2)
    ours = LSTMCell(3, 4).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_fused_call_equals_the_written_formula():
    fused = LSTMCell(3, 4, dtype=torch.float64)
    written = LSTMCell(3, 4, activation=lambda x: x.tanh(), dtype=torch.float64)
    written.load_state_dict(fused.state_dict())
    x, state = torch.randn(2, 3, dtype=torch.float64), random_state(fused, 2)
    close(fused(x, state), written(x, state))


def test_an_option_changed_later_is_heeded():
    cell = LSTMCell(3, 4, dtype=torch.float64)
    x, state = torch.randn(2, 3, dtype=torch.float64), random_state(cell, 2)
    before, _ = cell(x, state)
    cell.forget_bias = 3.0
    assert not torch.allclose(cell(x, state)[0], before)


def normed(a, gain, shift, epsilon):
    centred = a - a.mean(-1, keepdim=True)
    return gain * centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt() + shift


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
def test_layer_norm(bias, epsilon):
    cell = LSTMCell(
        3, 4, bias=bias, layer_norm=True, layer_norm_eps=epsilon, forget_bias=1.0, use_peepholes=True, cell_clip=0.7, dtype=torch.float64
    )
    assert cell.bias_ih is None
    assert cell.bias_hh is None
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter)
    x, (h, c) = torch.randn(2, 3, dtype=torch.float64), random_state(cell, 2)
    output, state = cell(x, (h, c))

    shifts = [*cell.gate_shift.chunk(4), cell.cell_shift] if bias else [0.0] * 5
    products = (x @ cell.weight_ih.T + h @ cell.weight_hh.T).chunk(4, 1)
    i, f, g, o = (normed(a, gain, shift, epsilon) for a, gain, shift in zip(products, cell.gate_gain.chunk(4), shifts[:4], strict=True))
    c = torch.sigmoid(f + cell.weight_cf * c + 1.0) * c + torch.sigmoid(i + cell.weight_ci * c) * torch.tanh(g)
    c = normed(c, cell.cell_gain, shifts[4], epsilon).clamp(-0.7, 0.7)
    h = torch.sigmoid(o + cell.weight_co * c) * torch.tanh(c)
    close((output, *state), (h, h, c))


GRADCHECKED = [
    {},
    {"forget_bias": 1.0, "use_peepholes": True, "cell_clip": 5.0, "num_proj": 2, "proj_clip": 5.0},
    {"layer_norm": True, "use_peepholes": True},
    {"layer_norm": True, "bias": False, "num_proj": 2, "activation": "softsign"},
]


@pytest.mark.parametrize("options", GRADCHECKED, ids=str)
def test_gradcheck(options):
    cell = LSTMCell(2, 3, **options, dtype=torch.float64)
    assert gradcheck(cell, torch.randn(2, 2, dtype=torch.float64), random_state(cell, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    cell = LSTMCell(3, 4, layer_norm=True, forget_bias=1.0, num_proj=2, dtype=dtype)
    outputs, (h, c) = steps(cell, cell.zero_state(2), torch.randn(3, 2, 3, dtype=dtype))
    assert outputs.dtype == h.dtype == c.dtype == dtype
    assert outputs.isfinite().all()


def test_loader_takes_tensors_copies_them_and_converts():
    (kernel,) = Case("lstm").variables("kernel")
    given_kernel = torch.from_numpy(kernel.copy()).requires_grad_()
    cell = LSTMCell.from_tensorflow(given_kernel, dtype=torch.float32)
    assert cell.bias_ih is None
    assert cell.forget_bias == 1.0
    assert cell.weight_ih.dtype == torch.float32
    before = cell.weight_ih.detach().clone()
    given_kernel.detach().zero_()
    assert torch.equal(cell.weight_ih, before)


def test_extra_repr():
    assert repr(LSTMCell(3, 4)) == "LSTMCell(3, 4)"
    assert repr(LSTMCell(3, 4, num_proj=2, forget_bias=1.0)) == "LSTMCell(3, 4, forget_bias=1.0, num_proj=2)"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((-1, 4), {}, ValueError, "input_size must be at least 0, got -1"),
        ((3, 0), {}, ValueError, "hidden_size must be at least 1, got 0"),
        ((3.0, 4), {}, TypeError, "input_size must be an int, got 3.0"),
        ((3, True), {}, TypeError, "hidden_size must be an int, got True"),
        ((3, 4), {"num_proj": -2}, ValueError, "num_proj must be at least 1, got -2"),
        ((3, 4), {"cell_clip": -1.0}, ValueError, "cell_clip must be above 0"),
        ((3, 4), {"cell_clip": "1"}, TypeError, "cell_clip must be a number or None, got '1'"),
        ((3, 4), {"proj_clip": 1.0}, ValueError, "needs num_proj"),
        ((3, 4), {"activation": "tahn"}, ValueError, "activation must be one of elu, .*tanh or a callable, got 'tahn'"),
        ((3, 4), {"activation": 3}, TypeError, "activation must be a name or a callable, got 3"),
    ],
)
def test_bad_options(arguments, options, error, message):
    with pytest.raises(error, match=message):
        LSTMCell(*arguments, **options)


H, C = torch.zeros(2, 4), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("inputs", "state", "error", "message"),
    [
        (torch.zeros(2, 5), (H, C), ValueError, r"inputs must be a tensor \[B, 3\], got float32\[2, 5\] \(input_size = 3\)"),
        (torch.zeros(3), (H, C), ValueError, r"inputs must be a tensor \[B, 3\], got float32\[3\]"),
        ([1.0], (H, C), ValueError, r"inputs must be a tensor \[B, 3\], got \[1.0\]"),
        (None, (H, C), TypeError, r"inputs must be a tensor \[B, 3\], got None"),
        (torch.zeros(2, 3), H, TypeError, r"state must be the plain tuple \(h, c\), got float32\[2, 4\]; cell.zero_state"),
        (torch.zeros(2, 3), [H, C], TypeError, "state must be the plain tuple"),
        (torch.zeros(2, 3), (H,), ValueError, "state must be the two tensors .* got 1"),
        (torch.zeros(2, 3), (H, C, C), ValueError, "state must be the two tensors .* got 3"),
        (torch.zeros(2, 3), (H, torch.zeros(1, 4)), ValueError, r"state\[1\] \(c\) must be .*B = 2 as in inputs, and hidden_size = 4"),
        (torch.zeros(2, 3), (torch.zeros(2, 3), C), ValueError, r"state\[0\] \(h\) must be a tensor \[B, 4\]"),
    ],
)
def test_bad_calls(inputs, state, error, message):
    with pytest.raises(error, match=message):
        LSTMCell(3, 4)(inputs, state)


def test_tensorflows_state_tuple_is_refused():
    with pytest.raises(TypeError, match=r"state must be the plain tuple \(h, c\), got LSTMStateTuple"):
        LSTMCell(3, 4)(torch.zeros(2, 3), namedtuple("LSTMStateTuple", "c h")(C, H))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": np.zeros(16)}, r"kernel must have the shape \[D \+ P, 4H\], got \[16\]"),
        ({"kernel": np.zeros((7, 15))}, r"kernel must have 4 \* H columns, .* got the shape \[7, 15\]"),
        ({"kernel": np.zeros((3, 16))}, r"kernel must have the shape \[D \+ 4, ...\], at least 4 rows, got \[3, 16\]"),
        ({"kernel": np.zeros((7, 16)), "bias": np.zeros(15)}, r"bias must have the shape \[16\], got \[15\]"),
        ({"kernel": np.zeros((7, 16)), "w_i_diag": np.zeros(4)}, "w_f_diag, w_o_diag missing"),
        (
            {"kernel": np.zeros((7, 16)), "w_i_diag": np.zeros(4), "w_f_diag": np.zeros(4), "w_o_diag": np.zeros(3)},
            r"w_o_diag must have the shape \[4\], got \[3\]",
        ),
        (
            {"kernel": np.zeros((7, 16)), "projection_kernel": np.zeros((2, 4))},
            r"projection_kernel must have the shape \[4, P\], got \[2, 4\]",
        ),
    ],
)
def test_bad_tensorflow_arrays(arguments, message):
    with pytest.raises(ValueError, match=message):
        LSTMCell.from_tensorflow(**arguments)


@pytest.mark.parametrize(
    ("kernel", "recurrent", "bias", "message"),
    [
        ((3, 16), (4, 12), None, r"recurrent_kernel must have the shape \[3, 12\], got \[4, 12\]"),
        ((3, 12), (4, 16), None, r"kernel must have the shape \[D, 16\], got \[3, 12\]"),
        ((3, 16), (4, 16), (2, 16), r"bias must have the shape \[16\], got \[2, 16\]"),
    ],
)
def test_bad_keras_arrays(kernel, recurrent, bias, message):
    with pytest.raises(ValueError, match=message):
        LSTMCell.from_keras(np.zeros(kernel), np.zeros(recurrent), None if bias is None else np.zeros(bias))
