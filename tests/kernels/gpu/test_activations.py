"""Activations have the accuracy that their docstrings give, over all of float32."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")
from fusedrnn.kernels import gpu  # before Triton, which it tells to interpret

if not gpu.EMULATED:
    pytest.skip("Triton does not interpret in this process", allow_module_level=True)

import triton
import triton.language as tl

from fusedrnn.kernels.gpu import activations, emulator

INF = float("inf")
TRUTH = {
    "sigmoid": (torch.sigmoid, 3),
    "tanh": (torch.tanh, 2),
    "expm1": (torch.expm1, 8),
    "log1p": (torch.log1p, 4),
    "softplus": (lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())), 5),
    "erf": (torch.erf, 2),
}


@triton.jit
def apply(x, y, FUNCTION: tl.constexpr, N: tl.constexpr):
    at = tl.program_id(1) * N + tl.arange(0, N)
    tl.store(y + at, FUNCTION(tl.load(x + at)))


def applied(name, x):
    tile = min(1 << 14, triton.next_power_of_2(x.numel()))
    padded = torch.nn.functional.pad(x, (0, -x.numel() % tile))
    y = torch.full_like(padded, -7.0)
    constants = {"FUNCTION": getattr(activations, name), "N": tile}
    emulator.run(apply, (1, padded.numel() // tile), {"x": padded, "y": y}, constants, outputs=["y"])
    return y[: x.numel()]


def ulps(y, wanted):
    """Errors in units in the last place of float32, denormals included; NaN for NaN is none."""
    nearest = wanted.float()
    step = torch.nextafter(nearest.abs().clamp(max=3e38), torch.tensor(INF)).double() - nearest.abs().clamp(max=3e38).double()
    error = (y.double() - wanted).abs() / step
    return torch.where((y == nearest) | (y.isnan() & wanted.isnan()), 0.0, error)


def everywhere():
    """Magnitudes from the least denormal to the greatest number, and what lies about the places where formulas change."""
    magnitudes = torch.arange(1, 0x7F800000, 29_989, dtype=torch.int32).view(torch.float32)
    places = [torch.linspace(-low, low, 20_011) for low in (1.0, 10.0, 105.0)]
    places += [edge + torch.linspace(-1e-3, 1e-3, 2001) for edge in (-0.7, -0.625, 0.625, 0.7, 88.72, -87.3, -103.9)]
    return torch.cat([magnitudes, -magnitudes, *places])


@pytest.mark.parametrize("name", TRUTH)
def test_error_is_a_few_units_in_the_last_place(name):
    truth, most = TRUTH[name]
    x = everywhere()
    error = ulps(applied(name, x), truth(x.double()))
    worst = error.nan_to_num(INF).argmax()
    assert error[worst] <= most, f"{name}({x[worst].item()!r}) is off by {error[worst].item()} ulp"


@pytest.mark.parametrize("name", TRUTH)
@given(st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_any_number(name, numbers):
    truth, most = TRUTH[name]
    x = torch.tensor(numbers)
    assert (ulps(applied(name, x), truth(x.double())) <= most).all()


def test_limits_and_signs():
    x = torch.tensor([0.0, -0.0, INF, -INF, math.nan])
    assert applied("sigmoid", x)[:4].tolist() == [0.5, 0.5, 1.0, 0.0]
    for name, limits in (("tanh", [1.0, -1.0]), ("expm1", [INF, -1.0]), ("erf", [1.0, -1.0])):
        y = applied(name, x)
        assert y[2:4].tolist() == limits
        assert [math.copysign(1, value) for value in y[:2].tolist()] == [1, -1]
    assert applied("softplus", x)[2:4].tolist() == [INF, 0.0]
    assert all(applied(name, x)[4].isnan() for name in TRUTH)


@triton.jit
def apply_power(x, y, z, N: tl.constexpr):
    at = tl.program_id(1) * N + tl.arange(0, N)
    tl.store(z + at, activations.power(tl.load(x + at), tl.load(y + at)))


def powers(x, y):
    z, n = torch.full_like(x, -7.0), triton.next_power_of_2(x.numel())
    x, y, z = (torch.nn.functional.pad(value, (0, n - value.numel())) for value in (x, y, z))
    emulator.run(apply_power, (1, 1), {"x": x, "y": y, "z": z}, {"N": n}, outputs=["z"])
    return z


def test_power_has_the_error_it_says():
    x = torch.logspace(-6, 6, 500, base=2).repeat_interleave(30)
    y = torch.linspace(-5, 5, 30).repeat(500)
    n = x.numel()
    wanted = x.double() ** y.double()
    bits = wanted.log2().abs()
    assert (ulps(powers(x, y)[:n], wanted) <= 2 + bits).all()


EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 3.0, -2.0, -3.0, 2.5, INF, -INF, math.nan, 16777216.0]


def test_power_at_the_edges():
    x, y = (torch.tensor(edges) for edges in zip(*[(a, b) for a in EDGES for b in EDGES], strict=True))
    got, want = powers(x, y)[: x.numel()], x.double() ** y.double()
    wrong = ~torch.isclose(got.double(), want.float().double(), rtol=1e-5, atol=0, equal_nan=True)
    assert not wrong.any(), [(a, b, c, d) for a, b, c, d in zip(x[wrong], y[wrong], got[wrong], want[wrong], strict=True)]
    assert torch.equal(torch.signbit(got[~got.isnan()]), torch.signbit(want[~want.isnan()]))
