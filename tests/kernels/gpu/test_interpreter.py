"""What the interpreter gets wrong of bfloat16 and tf32 comes out as torch has it."""

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

from fusedrnn.kernels.gpu import emulator

FLOATS = st.floats(width=32) | st.floats(-4, 4, width=32)


@triton.jit
def pointwise(x, y, out, N: tl.constexpr):
    at = tl.arange(0, N)
    a, b = tl.load(x + at).to(tl.bfloat16), tl.load(y + at).to(tl.bfloat16)
    tl.store(out + at, (a + b).to(tl.float32))
    tl.store(out + N + at, (a * b).to(tl.float32))
    tl.store(out + 2 * N + at, tl.where(a < b, a, b).to(tl.float32))
    tl.store(out + 3 * N + at, (-a).to(tl.float32))
    tl.store(out + 4 * N + at, (at * 37).to(tl.bfloat16).to(tl.float32))
    tl.store(out + 5 * N + at, (a == b).to(tl.bfloat16).to(tl.float32))


@given(st.lists(FLOATS, min_size=16, max_size=16), st.lists(FLOATS, min_size=16, max_size=16))
def test_bfloat16_is_computed_as_in_torch(x, y):
    x, y = torch.tensor(x), torch.tensor(y)
    out = torch.zeros(6, 16)
    emulator.run(pointwise, (1, 1), {"x": x, "y": y, "out": out}, {"N": 16}, outputs=["out"])
    a, b = x.bfloat16(), y.bfloat16()
    wanted = torch.stack([a + b, a * b, torch.where(a < b, a, b), -a, (torch.arange(16) * 37).bfloat16(), (a == b).bfloat16()]).float()
    torch.testing.assert_close(out, wanted, rtol=0, atol=0, equal_nan=True)


@triton.jit
def multiply(a, b, out, PRECISION: tl.constexpr):
    at = tl.arange(0, 16)
    square = at[:, None] * 16 + at[None, :]
    z = tl.zeros((16, 16), tl.float32)
    tl.store(out + square, tl.dot(tl.load(a + square), tl.load(b + square), acc=z, input_precision=PRECISION))


def product(a, b, precision="ieee"):
    out = torch.zeros(16, 16)
    emulator.run(multiply, (1, 1), {"a": a, "b": b, "out": out}, {"PRECISION": precision}, outputs=["out"])
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_sum_in_float32(dtype):
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype)
    torch.testing.assert_close(product(a, b), (a.double() @ b.double()).float(), rtol=1e-6, atol=1e-5)


def test_tf32_drops_what_tensor_cores_drop():
    a, b = torch.randn(16, 16), torch.randn(16, 16)
    kept = [(x.view(torch.int32) & -8192).view(torch.float32) for x in (a, b)]
    torch.testing.assert_close(product(a, b, "tf32"), (kept[0].double() @ kept[1].double()).float(), rtol=1e-6, atol=1e-5)
    assert (product(a, b, "tf32") - product(a, b)).abs().max() > 1e-5
