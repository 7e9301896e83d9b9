"""Keys whose order is that of numbers."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CODE = """
import torch, triton, triton.language as tl
from fusedrnn.kernels.gpu.reductions import order, unordered

@triton.jit
def kernel(x, key, back, N: tl.constexpr):
    i = tl.arange(0, N)
    k = order(tl.load(x + i))
    tl.store(key + i, k)
    tl.store(back + i, unordered(k))

inf, nan = float("inf"), float("nan")
x = torch.tensor([-inf, -3e38, -1.5, -1e-45, -0.0, 0.0, 1e-45, 2.0, 2.5, 3e38, inf, nan, nan, nan, nan, nan])
key, back = torch.empty(16, dtype=torch.int32), torch.empty(16)
kernel[1,](x, key, back, N=16)
assert key[:12].diff().gt(0).all(), key
assert torch.equal(back[:11].view(torch.int32), x[:11].view(torch.int32))
assert back[11:].isnan().all()
"""


def test_order():
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
