"""Weights of one byte: what is stored, what is lost, what is refused."""

import copy

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn.quantization import error_of

DTYPES = (torch.int8, torch.float8_e4m3fn)
LARGEST = {torch.int8: 0.5 / 127, torch.float8_e4m3fn: 2.0**-4 * 256 / 448 + 1e-6}  # half a step at the top of the column's range


def frozen(module):
    return module.requires_grad_(False)


def cell(dtype=torch.float32):
    torch.manual_seed(1)
    return frozen(fusedrnn.LSTMCell(6, 10)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_is_off_by_half_a_step_at_most(dtype, of):
    before = cell(of)
    exact = {name: parameter.float().clone() for name, parameter in before.named_parameters()}
    after = fusedrnn.quantize(before, dtype=dtype)
    assert after is before
    for name in ("weight_ih", "weight_hh"):
        assert getattr(after, name).dtype == of
        state = after.state_dict()
        assert state[f"parametrizations.{name}.original"].dtype == dtype
        scale = state[f"parametrizations.{name}.0.scale"]
        assert scale.shape == (40, 1)
        error = error_of(dict(after.named_buffers())[f"parametrizations.{name}.0.scale"])
        rounding = 2.0**-8 if of == torch.bfloat16 else 1e-6
        assert 0 < error.rms < 0.05
        assert error.largest <= LARGEST[dtype] + rounding
        greatest = exact[name].abs().amax(1, keepdim=True)
        assert ((getattr(after, name).float() - exact[name]).abs() <= (LARGEST[dtype] + 2 * rounding) * greatest).all()
    assert torch.equal(after.bias_ih.float(), exact["bias_ih"])


def test_columns_of_zeros_stay_zero():
    linear = frozen(nn.Linear(3, 2))
    linear.weight[0] = 0
    fusedrnn.quantize(linear)
    assert (linear.weight[0] == 0).all()
    assert error_of(linear.parametrizations.weight[0].scale).rms > 0


def test_names():
    whole = frozen(nn.ModuleDict({"cell": fusedrnn.GRUCell(3, 4), "table": nn.Embedding(5, 3), "project": nn.Linear(4, 5)}))
    fusedrnn.quantize(whole, ["cell.weight_hh"])
    assert [name for name, buffer in whole.named_buffers() if buffer.dtype == torch.int8] == ["cell.parametrizations.weight_hh.original"]
    fusedrnn.quantize(whole)
    stored = {name for name, buffer in whole.named_buffers() if buffer.dtype == torch.int8}
    assert stored == {f"{name}.original" for name in (
        "cell.parametrizations.weight_hh", "cell.parametrizations.weight_ih", "project.parametrizations.weight"
    )}  # fmt: skip


def test_a_copy_knows_what_it_lost():
    made = copy.deepcopy(fusedrnn.quantize(cell()))
    assert error_of(made.parametrizations.weight_hh[0].scale).dtype == torch.int8
    assert error_of(torch.ones(40, 1)) is None


@pytest.mark.parametrize(
    ("module", "options", "told"),
    [
        (lambda: cell(), {"dtype": torch.int16}, "dtype must be torch.int8 or torch.float8_e4m3fn, got torch.int16"),
        (lambda: cell(), {"names": ["weight_xx"]}, "names: 'weight_xx' is not there, and not a floating-point matrix; there are bias_hh"),
        (lambda: cell(), {"names": ["bias_hh"]}, r"names: 'bias_hh' is torch.float32 \[40\], and not"),
        (lambda: fusedrnn.LSTMCell(3, 4), {}, r"'weight_ih' requires a gradient.*requires_grad_\(False\)"),
        (lambda: frozen(nn.Embedding(3, 4)), {}, "Embedding has no weight to quantize: name them"),
    ],
)
def test_refused(module, options, told):
    with pytest.raises(ValueError, match=told):
        fusedrnn.quantize(module(), **options)


def test_nothing_is_stored_where_one_weight_is_refused():
    made = cell()
    made.weight_hh[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'weight_hh' holds what is not finite"):
        fusedrnn.quantize(made)
    assert set(dict(made.named_parameters())) >= {"weight_ih", "weight_hh"}


def test_modules_that_share_a_weight_share_its_bytes():
    one, other = frozen(nn.Linear(4, 3)), frozen(nn.Linear(4, 3))
    other.weight = one.weight
    fusedrnn.quantize(nn.ModuleList([one, other, one]))
    assert torch.equal(one.weight, other.weight)
    assert one.parametrizations.weight.original is other.parametrizations.weight.original
    assert one.parametrizations.weight.original.dtype == torch.int8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("of", "size"), [(torch.float16, 1e-5), (torch.float16, 6e-8), (torch.float64, 1e60), (torch.float64, 1e-60)], ids=str
)
def test_weights_of_any_size(of, size, dtype):
    linear = frozen(nn.Linear(4, 3)).to(of)
    linear.weight[1] = torch.tensor([0, 1.0, -1.0, 0.5], dtype=torch.float64).mul(size).to(of)
    before = linear.weight.double().clone()
    fusedrnn.quantize(linear, dtype=dtype)
    error = error_of(linear.parametrizations.weight[0].scale)
    assert linear.weight.isfinite().all()
    lost = ((linear.weight.double() - before).abs() / before.abs().amax(1, keepdim=True)).amax()
    assert lost <= 1
    assert abs(error.largest - lost) <= 1e-3
