"""The barrier joins a group, and ends the wait for programs that do not come."""

import pytest
import torch

pytest.importorskip("triton")
from fusedrnn.kernels import gpu  # before Triton, which it tells to interpret

if not gpu.EMULATED:
    pytest.skip("Triton does not interpret in this process", allow_module_level=True)

import triton
import triton.language as tl

from fusedrnn.kernels.gpu import emulator
from fusedrnn.kernels.gpu.barrier import POISON, arrive, wait


@triton.jit
def meet(counter, seen, late, STEPS: tl.constexpr, LIMIT: tl.constexpr):
    """Notes after each barrier what the counter held, and whether the wait was in vain."""
    column, columns = tl.program_id(0), tl.num_programs(0)
    for t in range(STEPS):
        arrive(counter, False)
        tl.store(late + t * columns + column, wait(counter, (t + 1) * columns, LIMIT, False))
        tl.store(seen + t * columns + column, tl.atomic_add(counter, 0))


def met(columns, steps, *, limit=10**6, start=0, **settings):
    tensors = {
        "counter": torch.full((32,), start, dtype=torch.int32),
        "seen": torch.full((steps, columns), -1, dtype=torch.int32),
        "late": torch.full((steps, columns), -1, dtype=torch.int32),
    }
    emulator.run(meet, (columns, 1), tensors, {"STEPS": steps, "LIMIT": limit}, outputs=list(tensors), **settings)
    return tensors


@pytest.mark.parametrize("delay", [0.0, 0.003])
def test_nobody_leaves_before_all_have_come(delay):
    tensors = met(4, 5, delay=delay)
    assert tensors["counter"].tolist() == [20] + [0] * 31
    for step, seen in enumerate(tensors["seen"].tolist()):
        assert all(4 * (step + 1) <= count < 4 * (step + 2) for count in seen)
    assert not tensors["late"].any()


def test_one_that_does_not_come_makes_all_others_late():
    tensors = met(3, 2, limit=50, kill=(2, 0))
    assert tensors["late"].tolist() == [[1, 1, -1], [1, 1, -1]]
    assert tensors["counter"][0] >= POISON.value


def test_a_poisoned_counter_holds_nobody():
    tensors = met(1, 2, start=POISON.value)
    assert tensors["late"].tolist() == [[1], [1]]
