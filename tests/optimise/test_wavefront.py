"""Layers along the diagonal: which steps are spread, and that a spread one does what the step did."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fusedrnn
from fusedrnn.executors import persistent_call
from fusedrnn.lowering.gpu.schedule import schedule
from fusedrnn.lowering.gpu.step import prepared, step_of
from fusedrnn.lowering.gpu.tiles import Sharing
from fusedrnn.lowering.pipeline import spread
from fusedrnn.plan import planner, tuned

from ..executors.loops import both, run
from ..lowering.gpu.loops import program_of

H, T = 6, 5
emulated = pytest.mark.skipif(os.environ["FUSEDRNN_EMULATE"] != "1", reason="no kernel is emulated")


def cell_of(kind):
    return {
        "lstm": lambda: nn.LSTMCell(H, H),
        "gru": lambda: nn.GRUCell(H, H),
        "gru before": lambda: fusedrnn.GRUCell(H, H, reset_after=False),
        "layer norm": lambda: fusedrnn.LSTMCell(H, H, layer_norm=True),
        "rnn": lambda: nn.RNNCell(H, H),
        "residual": lambda: fusedrnn.ResidualWrapper(nn.GRUCell(H, H)),
        "dropout": lambda: fusedrnn.DropoutWrapper(nn.GRUCell(H, H), output_dropout=0.4, input_dropout=0.3, seed=2),
        "zoneout": lambda: fusedrnn.ZoneoutWrapper(nn.GRUCell(H, H), 0.3, seed=3),
    }[kind]()


def stack(*kinds):
    torch.manual_seed(1)
    return fusedrnn.MultiRNNCell([cell_of(kind) for kind in kinds]).requires_grad_(False)


def reading(cell, lengths=(5, 2, 0, 1), *, steps=T, emit=lambda output, state: output, like=None, finished=None):
    x, ends = torch.randn(steps, len(lengths), H, generator=torch.Generator().manual_seed(2)), torch.tensor(lengths)
    start = cell.zero_state(len(lengths), torch.float32)

    def loop_fn(time, output, state, loop_state):
        over = time >= ends if finished is None or output is None else finished(time, state)
        return over, x[time], start if output is None else state, like if output is None else emit(output, state), None

    return cell, loop_fn


def lag_of(pair):
    program = program_of(*pair)
    found = spread(prepared(program), program.batch)
    return 0 if found is None else found.wavefront.lag


def barriers(pair, programs=2):
    program = program_of(*pair)
    made = prepared(program)
    found = spread(made, program.batch)
    return [len(schedule(step_of(step), Sharing(programs)).barriers) for step in (made, found) if step is not None]


@pytest.mark.parametrize("batch", [1, 4])
def test_each_layer_is_a_step_behind_the_one_below(batch):
    lengths = (5, 2, 0, 1)[:batch]
    assert [lag_of(reading(stack(*["lstm"] * layers), lengths)) for layers in (1, 2, 3)] == [0, 1, 2]


def test_a_step_has_one_barrier_however_many_layers():
    assert barriers(reading(stack("lstm", "lstm"))) == [2, 1]
    assert barriers(reading(stack("lstm", "gru", "rnn", "lstm"))) == [4, 1]


def test_what_a_layer_waits_for_in_itself_stays_in_its_step():
    assert lag_of(reading(stack("gru before"))) == 0
    assert barriers(reading(stack("gru before", "gru before"))) == [4, 2]


def test_where_a_layer_is_fed_back_the_step_stays_together():
    pair = fusedrnn.feedback.greedy(nn.Embedding(7, H), nn.Linear(H, 7), 0, 1, stack("lstm", "lstm").zero_state(3, torch.float32), 5)
    assert lag_of((stack("lstm", "lstm"), pair)) == 0


def test_where_the_last_layer_ends_a_row_the_step_stays_together():
    def finished(time, state):
        return (state[1].sum(1) > 0.5) | (time >= 5)

    assert lag_of(reading(stack("gru", "gru"), finished=finished)) == 0


def test_where_loop_state_goes_on_the_step_stays_together():
    cell, loop_fn = reading(stack("gru", "gru"))

    def counted(time, output, state, loop_state):
        *rest, _ = loop_fn(time, output, state, loop_state)
        return *rest, torch.zeros(4, dtype=torch.int64) if output is None else loop_state + 1

    assert lag_of((cell, counted)) == 0


@pytest.fixture
def spread_loops(monkeypatch):
    """The loops that run spread, of those that run on a kernel."""
    found = []
    launch = persistent_call.Bound.launch

    def spy(self):
        found.append(self.kernel.front.lag)
        return launch(self)

    monkeypatch.setattr(persistent_call.Bound, "launch", spy)
    return found


@emulated
@pytest.mark.parametrize(
    "kinds",
    [
        ("lstm", "lstm"),
        ("gru", "lstm", "rnn"),
        ("gru before", "layer norm"),
        ("residual", "residual"),
        ("gru", "dropout", "dropout"),
        ("zoneout", "zoneout"),
    ],
)
def test_a_spread_loop_does_what_the_loop_did(kinds, spread_loops):
    both(reading(stack(*kinds)))
    assert spread_loops == [len(kinds) - 1]


@emulated
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_loop_of_fewer_steps_than_layers(steps, spread_loops):
    both(reading(stack(*["lstm"] * 4), (steps, 1, 0), steps=steps))
    assert spread_loops == [3]


@emulated
@pytest.mark.parametrize("max_steps", [1, 2, 4])
def test_a_loop_that_is_cut_off(max_steps, spread_loops):
    result = both(reading(stack("gru", "gru", "gru")), max_steps=max_steps)
    assert result.truncated.tolist() == [length > max_steps for length in (5, 2, 0, 1)]
    assert spread_loops == [2]


@emulated
def test_one_row(spread_loops):
    both(reading(stack("lstm", "gru"), (4,)))
    assert spread_loops == [1]


@emulated
def test_emits_of_several_layers_and_after_the_loop(spread_loops):
    """Each comes as late as its layer; a product that is only emitted is made after the loop."""
    project = nn.Linear(H, 3).requires_grad_(False)
    like = torch.zeros(H), torch.zeros(H), torch.zeros(3), torch.zeros(H)
    emit = lambda output, state: (state[0] * 2, state[1], project(output), state[0] + state[2])  # noqa: E731
    both(reading(stack("gru", "gru", "gru"), emit=emit, like=like))
    assert spread_loops == [2]


@emulated
def test_a_row_that_the_first_layer_ends(spread_loops):
    def finished(time, state):
        return (state[0].sum(1) > 0.1) | (time >= 4)

    result = both(reading(stack("gru", "gru"), finished=finished))
    assert len(set(result.lengths.tolist())) > 1
    assert spread_loops == [1]


@emulated
def test_a_loop_with_no_bound_goes_on_in_further_launches(spread_loops, monkeypatch):
    """Each launch goes on with what the layers were at, and ends after the last of them."""
    monkeypatch.setattr(persistent_call, "_FIRST_STEPS", 2)
    cell, ends = stack("gru", "gru", "gru"), torch.tensor([9, 3, 0, 4])
    x, start = torch.randn(4, H), cell.zero_state(4, torch.float32)

    def loop_fn(time, output, state, loop_state):
        return time >= ends, x, start if output is None else state, output, None

    both((cell, loop_fn))
    both(reading(stack("lstm", "lstm")), parallel_iterations=2)
    assert spread_loops == [2, 1]


@emulated
def test_a_row_past_the_end_is_told_of_and_a_finished_one_is_not(spread_loops):
    pair = reading(stack("gru", "gru"), (5, 7, 1))
    with pytest.raises(IndexError) as want:
        run(pair, "reference")
    with pytest.raises(IndexError) as got:
        run(pair)
    assert str(got.value) == str(want.value)
    both(reading(stack("gru", "gru"), (5, 5, 1)))


@emulated
def test_what_a_finished_row_reads_stays_its_own(spread_loops):
    """NaN behind a row's end reaches no layer that is still at its last steps."""
    cell, ends = stack("lstm", "lstm", "lstm"), torch.tensor([2, 5, 0])
    x, start = torch.randn(T, 3, H), cell.zero_state(3, torch.float32)
    x[2:, 0], x[:, 2] = float("nan"), float("inf")

    def loop_fn(time, output, state, loop_state):
        return time >= ends, x[time], start if output is None else state, output, None

    result = both((cell, loop_fn))
    assert result.emit_ta.stack().isfinite().all()
    assert spread_loops == [2]


@emulated
def test_the_derivative_of_a_stack_is_spread_too(spread_loops):
    """The upper layer first; its step takes no finished flags."""
    cell, loop_fn = reading(stack("lstm", "gru").requires_grad_())
    gradients = []
    for backend in ("reference", "persistent"):
        emits, _, _ = fusedrnn.raw_rnn(cell, loop_fn, backend=backend)
        gradients.append(torch.autograd.grad(emits.stack().square().sum(), list(cell.parameters())))
    assert spread_loops == [1, 1]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@emulated
@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["lstm", "gru", "gru before", "layer norm", "residual", "dropout", "zoneout"]), min_size=2, max_size=4),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    max_steps=st.none() | st.integers(1, 7),
)
def test_random_stacks(kinds, lengths, max_steps):
    both(reading(stack(*kinds), tuple(lengths), steps=7), max_steps=max_steps)


def test_a_layout_that_is_spread_says_so():
    program = program_of(*reading(stack("lstm", "lstm")))
    best = planner.planned(program, 4, planner.EMULATED, "ieee")[0]
    assert "Layers along the diagonal: the last is 1 step behind the first." in best.lines(4)
    assert "layers along the diagonal" in tuned.name(best)
