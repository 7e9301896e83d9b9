"""DropoutWrapper: statistics, where the draws come from, which leaves it touches, and what it refuses."""

import pytest
import torch

import fusedrnn
from fusedrnn import frames
from fusedrnn.cells import DropoutWrapper, GRUCell, LSTMCell, MultiRNNCell, RNNCell
from fusedrnn.random import row_seeds

from .golden import gradcheck, random_state


class Echo(RNNCell):
    """Its output is its inputs, its state the inputs as well, and a whole number."""

    def __init__(self, size):
        super().__init__()
        self.output_size = size
        self.state_size = {"seen": size, "count": torch.Size(())}

    def forward(self, inputs, state):
        return inputs, {"seen": inputs + 0, "count": state["count"] + 1}


def echo_state(batch, size):
    return {"seen": torch.zeros(batch, size), "count": torch.zeros(batch, dtype=torch.int64)}


def loop(cell, inputs, state, **options):
    """The outputs ``[T, B, ...]`` and last state of raw_rnn over all of ``inputs``."""

    def loop_fn(time, output, cell_state, loop_state):
        return time >= len(inputs), inputs[time], state if cell_state is None else cell_state, output, None

    emit, final, _ = fusedrnn.raw_rnn(cell, loop_fn, **options)
    return emit.stack(), final


@pytest.mark.parametrize("place", ["input_dropout", "output_dropout", "state_dropout"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_statistics(place, p):
    wrapped = DropoutWrapper(Echo(200), **{place: p})
    output, state = wrapped(torch.ones(100, 200), echo_state(100, 200))
    changed = state["seen"] if place == "state_dropout" else output
    assert set(changed.unique().tolist()) == {0.0, torch.tensor(1.0).div(1 - p).item()}
    assert (changed == 0).double().mean().item() == pytest.approx(p, abs=0.015)  # four deviations of 2e4 draws
    untouched = output if place == "state_dropout" else state["seen"]
    if place != "input_dropout":
        assert torch.equal(untouched, torch.ones(100, 200))
    assert torch.equal(state["count"], torch.ones(100, dtype=torch.int64))


def test_eval_mode_and_zero_are_the_cell():
    cell = LSTMCell(3, 4)
    x, state = torch.randn(2, 3), random_state(cell, 2, torch.float32)
    expected = cell(x, state)
    torch.testing.assert_close(DropoutWrapper(cell)(x, state), expected, rtol=0, atol=0)
    wrapped = DropoutWrapper(cell, input_dropout=0.5, output_dropout=0.5, state_dropout=0.5).eval()
    torch.testing.assert_close(wrapped(x, state), expected, rtol=0, atol=0)


def test_the_masks_of_one_call_differ():
    wrapped = DropoutWrapper(
        DropoutWrapper(Echo(64), input_dropout=0.5, seed=3), input_dropout=0.5, output_dropout=0.5, state_dropout=0.5, seed=3
    )
    output, state = wrapped(torch.ones(1, 64), echo_state(1, 64))
    assert output.max() == 8  # some element passed all three masks on its way
    assert not torch.equal(output == 0, state["seen"] == 0)


def test_a_tree_of_state_dropout():
    cell = LSTMCell(3, 50)
    _, (h, c) = DropoutWrapper(cell, state_dropout=(0.5, 0.0))(torch.randn(4, 3), random_state(cell, 4, torch.float32))
    assert (h == 0).any()
    assert not (c == 0).any()


def test_manual_seed_decides():
    wrapped = DropoutWrapper(Echo(20), output_dropout=0.5)
    x = torch.ones(4, 3, 20)

    def draw(seed):
        torch.manual_seed(seed)
        return loop(wrapped, x, echo_state(3, 20))[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert not torch.equal(loop(wrapped, x, echo_state(3, 20))[0], loop(wrapped, x, echo_state(3, 20))[0])
    assert not torch.equal(wrapped(x[0], echo_state(3, 20))[0], wrapped(x[0], echo_state(3, 20))[0])


def test_a_seed_decides():
    x = torch.ones(4, 3, 20)
    first, again, other = (loop(DropoutWrapper(Echo(20), output_dropout=0.5, seed=seed), x, echo_state(3, 20))[0] for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(mask.flatten().tolist()) for step in first for mask in step}) == 12  # steps and rows differ


def test_variational_keeps_its_masks():
    cell = DropoutWrapper(Echo(20), input_dropout=0.4, output_dropout=0.4, variational=True)
    outputs, _ = loop(cell, torch.ones(5, 3, 20), echo_state(3, 20))
    assert all(torch.equal(outputs[0], step) for step in outputs)
    assert not torch.equal(outputs[0, 0], outputs[0, 1])
    again, _ = loop(cell, torch.ones(5, 3, 20), echo_state(3, 20))
    assert not torch.equal(outputs, again)


@pytest.mark.parametrize("variational", [True, False])
def test_a_row_draws_the_same_alone_and_in_a_batch(variational):
    seeds = row_seeds(5, 4)
    x = torch.randn(3, 4, 6)

    def run(rows):
        cell = MultiRNNCell([DropoutWrapper(GRU, input_dropout=0.5, state_dropout=0.3, variational=variational, seed=seeds[rows])])
        return loop(cell, x[:, rows], (torch.zeros(len(rows), 6),))[0]

    together = run([0, 1, 2, 3])
    for row in range(4):
        torch.testing.assert_close(run([row])[:, 0], together[:, row])


GRU = GRUCell(6, 6)


def test_ragged_rows_do_not_disturb_each_other():
    lengths = torch.tensor([0, 2, 4])
    x = torch.randn(4, 3, 6)

    def run(finish):
        cell = DropoutWrapper(GRU, input_dropout=0.5, output_dropout=0.5, seed=1)

        def loop_fn(time, output, state, _):
            return time >= finish, x[time], torch.zeros(3, 6) if state is None else state, output, None

        return fusedrnn.raw_rnn(cell, loop_fn)[0].stack()

    ragged, full = run(lengths), run(torch.tensor([4, 4, 4]))
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(ragged[:length, row], full[:length, row])
        assert not ragged[length:, row].any()


def test_gradcheck():
    cell = LSTMCell(2, 3, dtype=torch.float64)
    wrapped = DropoutWrapper(cell, input_dropout=0.3, output_dropout=0.3, state_dropout=(0.3, 0.2), seed=2)
    assert gradcheck(wrapped, torch.randn(2, 2, dtype=torch.float64), random_state(cell, 2))


def test_nan_of_a_dropped_element_goes_with_it():
    wrapped = DropoutWrapper(Echo(64), output_dropout=0.5, seed=0)
    kept = wrapped(torch.ones(1, 64), echo_state(1, 64))[0] != 0
    x = torch.full((1, 64), torch.nan).masked_fill(kept, 1.0)
    assert wrapped(x, echo_state(1, 64))[0].isfinite().all()


def test_no_frame_is_left_behind():
    DropoutWrapper(Echo(2), output_dropout=0.5)(torch.ones(1, 2), echo_state(1, 2))
    assert frames.current() is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input_dropout": 1.0}, ValueError, r"input_dropout must be in \[0, 1\), got 1.0: it is the probability to drop, not to keep"),
        ({"output_dropout": -0.1}, ValueError, r"output_dropout must be in \[0, 1\)"),
        ({"output_dropout": float("nan")}, ValueError, r"output_dropout must be in \[0, 1\)"),
        ({"input_dropout": "0.5"}, TypeError, "input_dropout must be a number, got '0.5'"),
        ({"state_dropout": (0.5, 1.5)}, ValueError, r"state_dropout\[1\] must be in \[0, 1\)"),
        ({"state_dropout": (0.5,)}, ValueError, "state_dropout: expected a tuple of 2, got one of 1"),
        ({"state_dropout": [0.5, 0.5]}, TypeError, "state_dropout: expected a tuple"),
        ({"seed": 1.5}, TypeError, "seed must be None, an int or an integer tensor"),
        ({"seed": torch.zeros(2)}, ValueError, "seed must be None, an int or an integer tensor"),
    ],
)
def test_refused(options, error, message):
    with pytest.raises(error, match=message):
        DropoutWrapper(LSTMCell(2, 3), **options)


def test_seeds_of_another_batch_are_refused():
    cell = DropoutWrapper(GRUCell(2, 3), input_dropout=0.5, seed=row_seeds(0, 3))
    with pytest.raises(ValueError, match=r"integer tensor \[2\]"):
        cell(torch.zeros(2, 2), torch.zeros(2, 3))


def test_repr():
    assert "output_dropout=0.5" in repr(DropoutWrapper(GRUCell(2, 3), output_dropout=0.5))
