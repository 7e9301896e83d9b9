"""LSTM, GRU and RNN against torch.nn's, over their options: values, and gradients of the input, the state and all parameters."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fusedrnn

from .pairs import KINDS, pair, results, state, tensors

pytestmark = pytest.mark.usefixtures("float64")


@st.composite
def settings(draw):
    """A kind of module, its sizes and options."""
    kind, hidden = draw(st.sampled_from(KINDS)), draw(st.integers(2, 4))
    options = {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    options["num_layers"] = draw(st.integers(1, 3))
    if kind == "LSTM":
        options["proj_size"] = draw(st.integers(0, hidden - 1))
    if kind == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    return kind, draw(st.integers(1, 3)), hidden, options


def check(theirs, ours, x, hx):
    mine, gradients = results(ours, x, hx)
    expected, wanted = results(theirs, x, hx)
    torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(gradients, wanted)


@given(settings(), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_equals_torch(setting, steps, batch, given_state):
    kind, inputs, hidden, options = setting
    theirs, ours = pair(kind, inputs, hidden, **options)
    x = torch.randn(*((batch, steps) if options["batch_first"] else (steps, batch)), inputs)
    check(theirs, ours, x, state(theirs, batch) if given_state else None)


@pytest.mark.parametrize("kind", KINDS)
def test_where_no_row_takes_a_step_gradients_are_zeros(kind):
    _, ours = pair(kind, 3, 4, num_layers=2, bidirectional=True)
    _, (of_x, *gradients) = results(ours, torch.full((5, 2, 3), torch.nan), None, lengths=torch.zeros(2, dtype=torch.int64))
    assert not any(gradient.any() for gradient in (of_x, *gradients))


@given(settings(), st.integers(1, 5), st.booleans())
def test_one_row_alone_equals_torch(setting, steps, given_state):
    kind, inputs, hidden, options = setting
    theirs, ours = pair(kind, inputs, hidden, **options)
    check(theirs, ours, torch.randn(steps, inputs), state(theirs, None) if given_state else None)


@given(settings(), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_packed_sequences_equal_torch(setting, lengths, is_sorted, given_state):
    kind, inputs, hidden, options = setting
    theirs, ours = pair(kind, inputs, hidden, **options)
    if is_sorted:
        lengths = sorted(lengths, reverse=True)
    packed = pack_sequence([torch.randn(length, inputs) for length in lengths], enforce_sorted=is_sorted)
    hx = state(theirs, len(lengths)) if given_state else None
    check(theirs, ours, packed, hx)
    mine, expected = ours(packed, hx)[0], theirs(packed, hx)[0]
    assert isinstance(mine, PackedSequence)
    for got, wanted in zip(mine[1:], expected[1:], strict=True):
        assert got is wanted


@given(settings(), st.lists(st.integers(0, 5), min_size=1, max_size=4), st.sampled_from([torch.int64, torch.int32, torch.uint8]))
def test_lengths_are_those_of_packed_sequences_and_may_be_zero(setting, lengths, dtype):
    kind, inputs, hidden, options = setting
    options["batch_first"] = False
    theirs, ours = pair(kind, inputs, hidden, **options)
    x, hx = torch.randn(max(*lengths, 1) + 1, len(lengths), inputs), state(theirs, len(lengths))
    for row, length in enumerate(lengths):
        x[length:, row] = torch.nan  # what stands past an end is never looked at
    y, last = ours(x, hx, lengths=torch.tensor(lengths, dtype=dtype))
    for row, length in enumerate(lengths):
        own = tuple(part[:, row] for part in hx) if isinstance(hx, tuple) else hx[:, row]
        assert not y[length:, row].any()
        got = tuple(part[:, row] for part in last) if isinstance(last, tuple) else last[:, row]
        if length == 0:
            torch.testing.assert_close(got, own)
            continue
        expected, wanted = theirs(x[:length, row], own)
        torch.testing.assert_close(y[:length, row], expected)
        torch.testing.assert_close(got, wanted)
    gradients = results(ours, x, hx, lengths=torch.tensor(lengths))[1]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_out_of_range_count_as_none_and_all(kind):
    module = getattr(fusedrnn.nn, kind)(3, 4, batch_first=True)
    x = torch.randn(3, 5, 3)
    y, _ = module(x, lengths=torch.tensor([9, -2, 5]))
    whole, _ = module(x)
    assert torch.equal(y[0], whole[0])
    assert torch.equal(y[2], whole[2])
    assert not y[1].any()


STACK, BOTH_WAYS = {"num_layers": 2}, {"num_layers": 2, "bidirectional": True}


@pytest.mark.parametrize(
    ("kind", "backend", "options"),
    [
        *itertools.product(KINDS, ["stepwise", "native"], [STACK]),
        ("LSTM", "native", BOTH_WAYS),
        ("GRU", "stepwise", BOTH_WAYS),
        *[pytest.param(kind, "native", BOTH_WAYS, marks=pytest.mark.slow) for kind in ("GRU", "RNN")],
    ],
)
def test_captured_loops_equal_torch(kind, backend, options):
    theirs, ours = pair(kind, 3, 4, **options, backend=backend)
    x = torch.randn(6, 3, 3)
    check(theirs, ours, x, state(theirs, 3))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    check(theirs, ours, pack_padded_sequence(x, torch.tensor([2, 6, 3]), enforce_sorted=False), state(theirs, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_draws_what_torch_draws(kind, bidirectional):
    theirs, ours = pair(kind, 3, 8, num_layers=3, dropout=0.4, bidirectional=bidirectional)
    check(theirs, ours, torch.randn(5, 2, 3), None)
    x = torch.randn(5, 2, 3)
    assert not torch.equal(ours(x)[0], ours(x)[0])
    ours.eval()
    torch.testing.assert_close(ours(x), theirs.eval()(x))


@pytest.mark.parametrize("dropout", [0, 1, 1.0])
def test_dropout_of_all_and_of_nothing(dropout):
    theirs, ours = pair("GRU", 3, 4, num_layers=2, dropout=dropout)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    assert isinstance(ours.dropout, float)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(kind):
    _, ours = pair(kind, 2, 2, num_layers=2)
    x = torch.randn(3, 2, 2, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: torch.func.functional_call(ours, {"weight_hh_l0": w}, x)[0], (x, ours.weight_hh_l0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "stepwise", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_twice(kind, backend, dtype):
    module = getattr(fusedrnn.nn, kind)(16, 32, num_layers=2, dtype=dtype, backend=backend)
    x, lengths = torch.randn(9, 5, 16, dtype=dtype), torch.tensor([9, 4, 0, 7, 9])

    def gradients():
        made = module(x, lengths=lengths)
        loss = sum(tensor.float().square().sum() for tensor in tensors(made))
        return [*tensors(made), *torch.autograd.grad(loss, list(module.parameters()))]

    assert all(map(torch.equal, gradients(), gradients()))
    with torch.no_grad():
        assert all(map(torch.equal, tensors(module(x)), tensors(module(x))))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_as_exact_as_torch(kind):
    theirs, ours = pair(kind, 16, 32, dtype=torch.bfloat16)
    exact = getattr(nn, kind)(16, 32)
    exact.load_state_dict(theirs.state_dict())
    x = torch.randn(9, 5, 16, dtype=torch.bfloat16)
    wanted = exact(x.double())[0]
    mine, other = ((module(x)[0] - wanted).abs().max() for module in (ours, theirs))
    assert ours(x)[0].dtype == torch.bfloat16
    assert mine <= 2 * other + 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_computes_in_its_dtype(kind):
    _, ours = pair(kind, 3, 4, num_layers=2, dtype=torch.float32)
    x = torch.randn(5, 2, 3, dtype=torch.float32)
    exact = ours(x)
    with torch.autocast("cpu", torch.bfloat16):
        made = ours(x, tuple(part.detach() for part in exact[1]) if kind == "LSTM" else exact[1].detach())
        assert all(tensor.dtype == torch.bfloat16 for tensor in tensors(made))
        torch.testing.assert_close(ours(x)[0].float(), exact[0], atol=2e-2, rtol=0)
    made[0].float().sum().backward()
    assert ours.weight_hh_l1.grad.dtype == torch.float32


def test_inference_mode():
    theirs, ours = pair("GRU", 3, 4, backend="native")
    x = torch.randn(5, 2, 3)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_may_lie_anyhow_in_memory(kind):
    theirs, ours = pair(kind, 3, 4, num_layers=2)
    x = torch.randn(3, 7, 4).permute(2, 1, 0)[:, ::2]
    hx = state(theirs, 8)
    hx = tuple(part[:, ::2] for part in hx) if isinstance(hx, tuple) else hx[:, ::2]
    check(theirs, ours, x.detach(), hx)
