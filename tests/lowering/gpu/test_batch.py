"""Values that are made of all rows, in kernels that are emulated."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedrnn
from fusedrnn import PlanError

from ...executors.layouts import assert_same, assert_same_bits, planning
from .loops import program_of

if os.environ["FUSEDRNN_EMULATE"] != "1":
    pytest.skip("no kernel is emulated", allow_module_level=True)

T, D, H = 5, 4, 12


def spread(h):
    return (h - h.mean(0)) / (h.var(0, correction=0, keepdim=True) + 0.1).sqrt()


CHANGES = {
    "batch norm": spread,
    "softmax over rows": lambda h: h * torch.softmax(h, 0) * len(h),
    "greatest and least": lambda h: h.clamp(max=h.amax(0) * 0.9) - h.amin(0, keepdim=True),
    "of columns too": lambda h: h / (1 + h.abs().max()) + h.mean((0, 1)) + h.sum() * 0.1,
    "any and all": lambda h: torch.where((h > 0.3).any(0), h, -h) + (h > -0.2).all(0) + ((h > 0.9).any() | (h < 0.8).all()),
    "converted before": lambda h: h * 0.5 + (h * 9).sum((0, 1), dtype=torch.int64) * 0.02 + (h > 0).mean((0, 1), dtype=torch.float32),
    "a window of it": lambda h: h * 0.3 + F.pad(h[:, :5].mean(0), (3, 4)) + torch.cat([torch.zeros(7), h[:, :5].mean(0)]),
    "a row's table": lambda h: h * 0.5 + F.embedding(h.argmax(1) % 2, h.mean(0).view(2, 6)).repeat(1, 2),
    "integers": lambda h: h + ((h * 9).long().amax(0) - (h * 7).int().amin(0)) * 0.05 + (h > 0).sum(0) * 0.1,
    "a product of it": lambda h: torch.tanh(h + (h.mean(0, keepdim=True) @ WEIGHT)),
    "a product of it by every row": lambda h: torch.tanh((h - h.mean(0)) @ WEIGHT),
}
WEIGHT = torch.randn(H, H, generator=torch.Generator().manual_seed(5)) * 0.4


def loop(change, lengths, *, carry=None):
    """A loop whose loop_fn changes the state."""
    torch.manual_seed(2)
    cell = nn.GRUCell(D, H).requires_grad_(False)
    ends = torch.tensor(lengths)
    x, start = torch.randn(T, len(ends), D), torch.randn(len(ends), H)

    def loop_fn(time, output, state, loop_state):
        first = output is None
        carried = None if carry is None else torch.zeros(()) if first else carry(loop_state, output)
        return time >= ends, x[time], start if first else change(state), output, carried

    return cell, loop_fn


def both(pair):
    got = fusedrnn.raw_rnn(*pair, backend="persistent")
    assert_same(got, fusedrnn.raw_rnn(*pair, backend="reference"))
    return got


@pytest.mark.parametrize("name", CHANGES)
def test_rows_together(name):
    """Finished rows count, as they do on `reference`."""
    both(loop(CHANGES[name], [5, 2, 0, 1, 4]))


@pytest.mark.parametrize("layout", [{"programs": 1}, {"programs": 3, "tile": 32}], ids=str)
def test_layouts(monkeypatch, layout):
    planning(monkeypatch, **layout)
    pair = loop(spread, [(3 * row) % 6 for row in range(13)])
    assert_same_bits(both(pair), fusedrnn.raw_rnn(*pair, backend="persistent"))


def test_of_all_rows_into_a_number_that_is_carried():
    both(loop(lambda h: h, [5, 2, 0, 1], carry=lambda total, output: total + output.sum() - (output > 0).all().float()))


def test_rows_that_are_not_there_do_not_count():
    """One row is a batch of its own size; 17 rows leave 15 empty ones in their group."""
    for rows in (1, 2, 17):
        both(loop(spread, [5] * rows))


def test_they_do_not_retire():
    from fusedrnn.lowering.gpu.schedule import needs_one_group
    from fusedrnn.lowering.gpu.step import prepared, step_of

    made = prepared(program_of(*loop(spread, [5, 2, 0])))
    assert not made.retires
    assert needs_one_group(step_of(made)) == "rows depend on one another"


def test_more_rows_than_a_group_has():
    with pytest.raises(
        PlanError, match="rows depend on one another, so all 130 rows would have to run in one group, which has 128 at most"
    ):
        fusedrnn.raw_rnn(*loop(spread, [1] * 130), backend="persistent")


@pytest.mark.parametrize("change", [lambda h: h.flip(0), lambda h: h.roll(1, 0), lambda h: h.cumsum(0)])
def test_one_row_in_the_place_of_another_is_refused(change):
    with pytest.raises(PlanError, match="rows depend on one another"):
        fusedrnn.raw_rnn(*loop(change, [5, 2, 3]), backend="persistent")
