"""ZoneoutWrapper: statistics, its mean in eval mode, the output that is a state, and what it refuses."""

import pytest
import torch
from torch import nn

from fusedrnn.cells import DropoutWrapper, GRUCell, LSTMCell, ResidualWrapper, ZoneoutWrapper
from fusedrnn.random import row_seeds

from .golden import gradcheck, random_state
from .test_dropout import Echo, echo_state, loop


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_training(p):
    cell = LSTMCell(3, 200)
    x, state = torch.randn(100, 3), random_state(cell, 100, torch.float32)
    _, new = cell(x, state)
    output, zoned = ZoneoutWrapper(cell, (p, 0.25))(x, state)
    for old, fresh, found, expected in zip(state, new, zoned, (p, 0.25), strict=True):
        kept = found == old
        assert torch.equal(found, torch.where(kept, old, fresh))
        assert kept.double().mean().item() == pytest.approx(expected, abs=0.015)  # four deviations of 2e4
    assert output is zoned[0]


def test_eval_is_the_mean():
    cell = LSTMCell(3, 4)
    wrapped = ZoneoutWrapper(cell, (0.1, 0.5)).eval()
    x, (h, c) = torch.randn(2, 3), random_state(cell, 2, torch.float32)
    _, (new_h, new_c) = cell(x, (h, c))
    output, (found_h, found_c) = wrapped(x, (h, c))
    torch.testing.assert_close((found_h, found_c), (0.1 * h + 0.9 * new_h, 0.5 * c + 0.5 * new_c))
    assert output is found_h


def test_without_masks_nothing_is_drawn():
    for wrapped in (ZoneoutWrapper(GRUCell(3, 4), 0.5).eval(), ZoneoutWrapper(GRUCell(3, 4)), DropoutWrapper(GRUCell(3, 4))):
        before = torch.get_rng_state()
        wrapped(torch.ones(2, 3), torch.ones(2, 4))
        assert torch.equal(torch.get_rng_state(), before)


def test_one_number_is_for_every_leaf_but_whole_numbers_stay():
    wrapped = ZoneoutWrapper(Echo(3), 1.0)
    output, state = wrapped(torch.ones(2, 3), echo_state(2, 3))
    assert torch.equal(state["seen"], torch.zeros(2, 3))
    assert torch.equal(state["count"], torch.ones(2, dtype=torch.int64))
    assert torch.equal(output, torch.ones(2, 3))  # no state of this cell is its output


def test_an_output_that_is_no_state_stays():
    cell = ResidualWrapper(GRUCell(3, 3))
    x, h = torch.randn(2, 3), torch.randn(2, 3)
    output, state = ZoneoutWrapper(cell, 1.0)(x, h)
    assert torch.equal(output, cell(x, h)[0])
    assert torch.equal(state, h)


def test_torch_cells():
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    output, state = ZoneoutWrapper(nn.GRUCell(3, 4), 1.0)(x, h)
    assert torch.equal(output, h)
    assert output is state


def test_seeds():
    x, state = torch.randn(4, 3, 5), torch.ones(3, 6)
    cell = GRUCell(5, 6)

    def run(seed=None, rows=(0, 1, 2)):
        rows = list(rows)
        return loop(ZoneoutWrapper(cell, 0.5, seed=seed), x[:, rows], state[rows])[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    torch.manual_seed(3)
    first, second = run(), run()
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(first, run())
    seeds = row_seeds(9, 3)
    for row in range(3):
        torch.testing.assert_close(run(seeds[[row]], [row])[:, 0], run(seeds)[:, row])


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training):
    cell = LSTMCell(2, 3, dtype=torch.float64)
    wrapped = ZoneoutWrapper(cell, (0.3, 0.6), seed=2).train(training)
    assert gradcheck(wrapped, torch.randn(2, 2, dtype=torch.float64), random_state(cell, 2))


@pytest.mark.parametrize(
    ("zoneout", "error", "message"),
    [
        (1.5, ValueError, r"zoneout must be in \[0, 1\], got 1.5"),
        ((0.1, -0.5), ValueError, r"zoneout\[1\] must be in \[0, 1\]"),
        ((0.1, 0.5, 0.5), ValueError, "zoneout: expected a tuple of 2, got one of 3"),
        ({"h": 0.1}, TypeError, "zoneout: expected a tuple"),
        (True, TypeError, "zoneout must be a number, got True"),
    ],
)
def test_refused(zoneout, error, message):
    with pytest.raises(error, match=message):
        ZoneoutWrapper(LSTMCell(2, 3), zoneout)
