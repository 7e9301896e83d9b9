"""Packed weights against a plain loop."""

from __future__ import annotations

import pytest
import torch

from fusedrnn.lowering.gpu.packing import packed


def plainly(weights, segments, programs, rows, inner, dtype):
    made = torch.zeros(programs, rows, inner, dtype=dtype)
    for weight, (begin, block, whole) in zip(weights, segments, strict=True):
        for program in range(programs):
            for row in range(block):
                column = row if whole else program * block + row
                if column < weight.shape[1]:
                    made[program, begin + row, : weight.shape[0]] = weight[:, column].to(dtype)
    return made


CASES = {
    "one weight": ([(16, 32)], [(0, 16, False)], 2, 16, 16),
    "gates of a width that is no power of two": ([(20, 20)] * 3, [(0, 16, False), (16, 16, False), (32, 16, False)], 2, 64, 32),
    "more programs than columns": ([(5, 3)], [(0, 1, False)], 4, 16, 16),
    "what every program has": ([(20, 20), (20, 12)], [(0, 16, False), (16, 16, True)], 2, 32, 32),
    "a single program": ([(7, 20), (7, 1)], [(0, 32, True), (32, 16, True)], 1, 64, 16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_packed(name, dtype):
    shapes, segments, programs, rows, inner = CASES[name]
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    found = packed(weights, segments, programs, rows, inner, dtype, False)
    assert found.dtype == dtype
    assert torch.equal(found, plainly(weights, segments, programs, rows, inner, dtype))


@pytest.mark.parametrize("name", CASES)
def test_packed_in_two_parts(name):
    """The upper part is what tf32 holds, and nothing is lost."""
    shapes, segments, programs, rows, inner = CASES[name]
    weights = [torch.randn(shape) for shape in shapes]
    whole = packed(weights, segments, programs, rows, inner, torch.float32, False)
    top, rest = packed(weights, segments, programs, rows, inner, torch.float32, True)
    assert torch.equal(top + rest, whole)
    assert not (top.view(torch.int32) & 0x1FFF).any()
    assert rest.any()
    assert (rest.abs() <= whole.abs() / 1024).all()


def test_a_weight_that_needs_a_gradient_is_packed_without():
    weight = torch.randn(4, 4, requires_grad=True)
    assert not packed([weight], [(0, 4, False)], 1, 16, 16, torch.float32, False).requires_grad
