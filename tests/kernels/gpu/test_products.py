"""Products of resident and streamed weights are torch's, in each precision and for widths that fill no chunk."""

import pytest
import torch

pytest.importorskip("triton")
from fusedrnn.kernels import gpu  # before Triton, which it tells to interpret

if not gpu.EMULATED:
    pytest.skip("Triton does not interpret in this process", allow_module_level=True)

import triton
import triton.language as tl

from fusedrnn.kernels.gpu import emulator
from fusedrnn.kernels.gpu.products import halves, met, multiply, own, product, resident, streamed


@triton.jit
def multiplying(
    w, x, out, far, M: tl.constexpr, K: tl.constexpr, KC: tl.constexpr, WIDTH: tl.constexpr, PREC: tl.constexpr, WINDOW: tl.constexpr
):
    m, k, rows = tl.arange(0, M), tl.arange(0, KC), tl.arange(0, 16)
    z = tl.zeros((M, 16), tl.float32)
    if WINDOW > 0:
        z = multiply(resident(w, far, m, k, K, KC, None, False, PREC, False), x, rows, k, z, WIDTH, K, KC, WINDOW, None, False, PREC, False)
    else:
        z = streamed(w, far, m, k, x, rows, z, WIDTH, K, KC, 2, None, False, PREC, False)
    tl.store(out + m[:, None] * 16 + rows[None, :], z)


def multiplied(w, x, precision, *, chunk, window=2):
    """``w`` ``[M, K]`` and ``x`` ``[16, WIDTH]``, of which K - WIDTH columns are missing; a window of 0: the weight is streamed."""
    (m, k), width = w.shape, x.shape[1]
    packed = w
    if precision == "hilo":
        top = (w.view(torch.int32) & -8192).view(torch.float32)
        packed = torch.stack([top, w - top])
    out = torch.full((m, 16), float("nan"))
    constants = {"M": m, "K": k, "KC": chunk, "WIDTH": width, "PREC": precision, "WINDOW": window}
    emulator.run(multiplying, (1, 1), {"w": packed, "x": x, "out": out, "far": w.numel()}, constants, outputs=["out"])
    return out


@pytest.mark.parametrize("window", [0, 1, 3, 4])
@pytest.mark.parametrize("width", [64, 50, 32, 7])
def test_float32_is_exact_to_its_rounding(width, window):
    w, x = torch.randn(32, 64), torch.randn(16, width)
    wanted = w[:, :width].double() @ x.double().T
    for precision, error in (("ieee", 1e-5), ("hilo", 3e-5), ("tf32", 3e-2)):
        assert (multiplied(w, x, precision, chunk=16, window=window).double() - wanted).abs().max() < error
    assert (multiplied(w, x, "tf32", chunk=32).double() - wanted).abs().max() > 1e-4  # so that hilo's accuracy says something


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_sum_in_float32(dtype):
    w, x = torch.randn(32, 64).to(dtype), torch.randn(16, 64).to(dtype)
    torch.testing.assert_close(multiplied(w, x, "tf32", chunk=16), (w.double() @ x.double().T).float(), rtol=1e-5, atol=1e-5)


def test_a_row_alone_has_the_same_bits():
    w, x = torch.randn(32, 64), torch.randn(16, 64)
    alone = torch.zeros_like(x)
    alone[3] = x[3]
    assert torch.equal(multiplied(w, alone, "hilo", chunk=32)[:, 3], multiplied(w, x, "hilo", chunk=32)[:, 3])


def test_rows_that_are_not_finite_stay_by_themselves():
    w, x = torch.randn(32, 64), torch.randn(16, 64)
    x[5, 3], x[6, 9] = float("nan"), float("inf")
    good = [row for row in range(16) if row not in (5, 6)]
    z = multiplied(w, x, "hilo", chunk=32)
    assert z[:, 5].isnan().all()
    assert z[:, good].isfinite().all()


@triton.jit
def stacking(w, x, there, out, V: tl.constexpr, RESIDENT: tl.constexpr):
    """V vectors ``x`` ``[V, 16, 64]`` with 8 rows of ``w`` ``[64, 64]`` each; only rows that are there are read."""
    m, k, side = tl.arange(0, 64), tl.arange(0, 32), tl.arange(0, V * 16)
    rows = tl.where(tl.load(there + side) > 0, side, -1)
    z = tl.zeros((64, V * 16), tl.float32)
    if RESIDENT:
        z = multiply(
            resident(w, 0, m, k, 64, 32, None, False, "ieee", False), x, rows, k, z, 64, 64, 32, 2, None, False, "ieee", False, True
        )
    else:
        z = streamed(w, 0, m, k, x, rows, z, 64, 64, 32, 2, None, False, "ieee", False, True)
    tl.store(out + m[:, None] * 16 + tl.arange(0, 16)[None, :], met(z, 8, V, 16))


@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize("vectors", [2, 4, 8])
def test_each_vector_meets_its_own_rows(vectors, is_resident):
    w, x = torch.randn(64, 64), torch.randn(vectors, 16, 64)
    x[:, 5] = float("nan")  # what is not there is not read
    x[1, 6] = float("inf")  # what is infinite stays by itself
    there = torch.ones(vectors, 16, dtype=torch.int32)
    there[:, 5] = 0
    out = torch.full((64, 16), float("nan"))
    tensors = {"w": w, "x": x, "there": there, "out": out}
    emulator.run(stacking, (1, 1), tensors, {"V": vectors, "RESIDENT": is_resident}, outputs=["out"])
    x[:, 5] = 0
    wanted = torch.cat([rows @ vector.T for rows, vector in zip(w.view(8, 8, 64), x, strict=False)])
    got, rest = out[: 8 * vectors], out[8 * vectors :]
    assert not got[8:16, 6].isfinite().any()
    got[8:16, 6] = wanted[8:16, 6] = 0
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert (rest == 0).all()


@triton.jit
def parts(x, whole, upper, lower, PREC: tl.constexpr):
    m, rows = tl.arange(0, 16), tl.arange(0, 16)
    at = m[:, None] * 16 + rows[None, :]
    tile = tl.load(x + at)
    total = tl.zeros((16, 16), tl.float32)
    chunks = own(tile, PREC)
    for j in tl.static_range(0, 2 if PREC == "hilo" else 1):
        total += chunks[j]
    tl.store(whole + at, total)
    high, low = halves(tile, 8, 16)
    half = tl.arange(0, 8)[:, None] * 16 + rows[None, :]
    tl.store(upper + half, high)
    tl.store(lower + half, low)


@triton.jit
def whole_product(w, x, out, far, K: tl.constexpr, PREC: tl.constexpr):
    m, k, rows = tl.arange(0, 32), tl.arange(0, K), tl.arange(0, 16)
    ws = resident(w, far, m, k, K, K, None, False, PREC, False)
    z = product(ws, own(tl.load(x + rows[None, :] * K + k[:, None]), PREC), tl.zeros((32, 16), tl.float32), None, False, PREC, False)
    tl.store(out + m[:, None] * 16 + rows[None, :], z)


@pytest.mark.parametrize(("precision", "error"), [("ieee", 1e-5), ("hilo", 3e-5), ("tf32", 3e-2)])
def test_a_product_with_a_vector_held_whole(precision, error):
    w, x, out = torch.randn(32, 64), torch.randn(16, 64), torch.full((32, 16), float("nan"))
    top = (w.view(torch.int32) & -8192).view(torch.float32)
    packed = torch.stack([top, w - top]) if precision == "hilo" else w
    tensors = {"w": packed, "x": x, "out": out, "far": w.numel()}
    emulator.run(whole_product, (1, 1), tensors, {"K": 64, "PREC": precision}, outputs=["out"])
    assert (out.double() - w.double() @ x.double().T).abs().max() < error


@pytest.mark.parametrize("precision", ["ieee", "hilo"])
def test_a_vector_held_whole_and_halves(precision):
    x = torch.randn(16, 16)
    whole, upper, lower = torch.zeros(16, 16), torch.zeros(8, 16), torch.zeros(8, 16)
    tensors = {"x": x, "whole": whole, "upper": upper, "lower": lower}
    emulator.run(parts, (1, 1), tensors, {"PREC": precision}, outputs=list(tensors))
    assert torch.equal(whole, x)
    assert torch.equal(torch.cat([upper, lower]), x)
