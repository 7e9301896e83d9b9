"""Where rows are told apart though loop_fn fixes the batch size."""

import pytest
import torch
from torch import nn

from fusedrnn.lowering.pipeline import optimised

from .gpu.loops import program_of

B = 4


def fixed(step):
    """A loop whose emit has the batch size as a number."""
    x, start = torch.zeros(6, B, 3), torch.zeros(B, B)  # as many columns as rows

    def loop_fn(time, output, state, loop_state):
        emit = torch.zeros(2) if output is None else step(output)
        return time >= 6, x[time], start if output is None else state, emit, None

    return program_of(nn.GRUCell(3, B), loop_fn)


@pytest.mark.parametrize(
    "step",
    [
        lambda output: torch.zeros(B, 2),
        lambda output: torch.ones(B, 2) * output[:, :2],
        lambda output: (output + torch.zeros(B, B)).view(B, 2, 2).sum(1),
    ],
)
def test_rows_of_a_fixed_batch(step):
    program = fixed(step)
    assert program.batch == B
    assert optimised(program, program.batch).locality is None
    found = optimised(program, program.batch, fixed=True)
    assert found.retires
    assert all(found.locality.of(node).dim == 0 for node in found.module.graph.nodes if node.target is torch.ops.aten.mm.default)


@pytest.mark.parametrize(
    "step",
    [
        lambda output: torch.zeros(B, 2) + output.mean(0)[:2],
        lambda output: torch.zeros(B, 2) + output.t()[:, :2],
        lambda output: torch.zeros(B, 2) + output.flip(0)[:, :2],
        lambda output: output[torch.tensor([1, 0, 3, 2]).clone(), :2] + torch.zeros(B, 2),
        lambda output: (output @ output)[:, :2] + torch.zeros(B, 2),
        lambda output: output.cumsum(0)[:, :2] + torch.zeros(B, 2),
    ],
)
def test_rows_that_mix(step):
    program = fixed(step)
    found = optimised(program, program.batch, fixed=True)
    assert found.locality is None
    assert not found.retires
