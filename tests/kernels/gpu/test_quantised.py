"""Weights of one byte become the numbers that they stand for."""

import pytest
import torch

pytest.importorskip("triton")
from fusedrnn.kernels import gpu  # before Triton, which it tells to interpret

if not gpu.EMULATED:
    pytest.skip("Triton does not interpret in this process", allow_module_level=True)

import triton
import triton.language as tl

from fusedrnn.kernels.gpu import emulator, quantised


@triton.jit
def convert(w, y, OF: tl.constexpr, ASM: tl.constexpr):
    at = tl.arange(0, 256)
    tl.store(y + at, quantised.converted(quantised.opaque(tl.load(w + at), ASM), OF))


def converted(codes, dtype, of):
    y = torch.full((256,), -7.0, dtype=dtype)
    emulator.run(convert, (1, 1), {"w": codes, "y": y}, {"OF": of, "ASM": False}, outputs=["y"])
    return y


@pytest.mark.parametrize(
    ("dtype", "of"), [(torch.float32, tl.float32), (torch.float16, tl.float16), (torch.bfloat16, tl.bfloat16)], ids=str
)
def test_every_code(dtype, of):
    codes = torch.arange(256).to(torch.uint8)
    want = codes.view(torch.float8_e4m3fn).float()
    finite = want.isfinite()
    assert finite.sum() == 254
    assert torch.equal(converted(codes, dtype, of)[finite].float(), want[finite])
    assert torch.equal(converted(codes.view(torch.int8), dtype, of).float(), codes.view(torch.int8).float())
