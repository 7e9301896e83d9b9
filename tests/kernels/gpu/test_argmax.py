"""The greatest key is torch's argmax: ties to the lowest index, NaN above all, -0 as +0."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("triton")
from fusedrnn.kernels import gpu  # before Triton, which it tells to interpret

if not gpu.EMULATED:
    pytest.skip("Triton does not interpret in this process", allow_module_level=True)

import triton
import triton.language as tl

from fusedrnn.kernels.gpu import emulator
from fusedrnn.kernels.gpu.argmax import LOWEST, key_index, order_key

INF, NAN = float("inf"), float("nan")


@triton.jit
def argmax(x, best, index, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Of each row of x ``[rows, SIZE]``."""
    row = tl.program_id(1)
    column = tl.arange(0, WIDTH)
    keys = order_key(tl.load(x + row * SIZE + column, mask=column < SIZE, other=0.0), column)
    key = tl.max(tl.where(column < SIZE, keys, LOWEST), 0)
    tl.store(best + row, key)
    tl.store(index + row, key_index(key, SIZE))


def of(x):
    best, index = torch.zeros(x.shape[0], dtype=torch.int64), torch.zeros(x.shape[0], dtype=torch.int32)
    constants = {"SIZE": x.shape[1], "WIDTH": triton.next_power_of_2(x.shape[1])}
    emulator.run(argmax, (1, x.shape[0]), {"x": x, "best": best, "index": index}, constants, outputs=["best", "index"])
    return best, index


@given(st.lists(st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, INF, -INF, NAN]), min_size=1, max_size=19))
@example([-0.0, 0.0])
@example([-INF, -INF])
@example([1.0, NAN, INF, NAN])
@example([-1e-45, -0.0, 0.0, -1.0])
def test_the_key_finds_torchs_argmax(row):
    x = torch.tensor([row])
    assert of(x)[1].item() == x.argmax(-1).item()


def test_keys_are_in_the_order_of_numbers():
    x = torch.tensor([[-INF], [-3.4e38], [-1.0], [-1e-45], [0.0], [1e-45], [1.0], [3.4e38], [INF], [NAN]])
    best, _ = of(x)
    assert (best[1:] > best[:-1]).all()
    assert best.min() > LOWEST.value
    assert of(torch.tensor([[-0.0]]))[0] == of(torch.tensor([[0.0]]))[0]
    assert of(torch.tensor([[-NAN]]))[0] == best[-1]


@triton.jit
def indices(keys, index, SIZE: tl.constexpr):
    at = tl.arange(0, 4)
    tl.store(index + at, key_index(tl.load(keys + at), SIZE))


def test_an_index_stays_within_bounds_whatever_the_key():
    index = torch.zeros(4, dtype=torch.int32)
    keys = torch.tensor([-(1 << 63), -1, 0, (1 << 63) - 1])
    emulator.run(indices, (1, 1), {"keys": keys, "index": index}, {"SIZE": 74}, outputs=["index"])
    assert index.min() >= 0
    assert index.max() < 74
