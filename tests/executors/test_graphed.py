"""Replayed steps. On the CPU a device stands in whose answers come late; what needs a GPU is marked so."""

import contextlib
import itertools
import logging

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from fusedrnn import GRUCell, PlanError, TensorArray, feedback, raw_rnn
from fusedrnn.capture import cache
from fusedrnn.executors import graphed

B, D, H, T = 3, 4, 5, 21


class Late:
    """A device whose replays do what was captured, and whose looks are ready after so many questions."""

    def __init__(self, delays=(0,)):
        self.delays = itertools.cycle(delays)
        self.captures = self.replays = self.waits = 0

    def active(self):
        return contextlib.nullcontext()

    def refusal(self):
        return None

    def place(self):
        return 0

    def capture(self, step):
        self.captures += 1
        step()
        made, status = step()

        def replay():
            self.replays += 1
            outputs, now = step()
            for static, value in zip([*made, status], [*outputs, now], strict=True):
                static.copy_(value)
            return made, status

        return replay

    def record(self, status):
        return [next(self.delays), status.tolist()]

    def ready(self, look):
        look[0] -= 1
        return look[0] < 0

    def read(self, look):
        self.waits += look[0] >= 0
        return look[1]


@pytest.fixture
def late(monkeypatch):
    """The CPU as a device that replays."""
    cache.clear()  # what other tests captured was captured on their device
    device = Late()
    monkeypatch.setattr(graphed, "device_for", lambda _: device)
    return device


def cell():
    torch.manual_seed(0)
    return GRUCell(D, H).requires_grad_(False)


def reading(lengths, steps=T):
    x, lengths = torch.randn(steps, B, D), torch.tensor(lengths)

    def loop_fn(time, output, state, loop_state):
        return time >= lengths, x[time], torch.zeros(B, H) if state is None else state, output, None

    return loop_fn


def greedy():
    embedding, project = (layer.requires_grad_(False) for layer in (nn.Embedding(9, D), nn.Linear(H, 9)))
    return feedback.greedy(embedding, project, 0, 3, torch.randn(B, H), 20)


def sampling():
    table, state = torch.randn(7, D), torch.randn(B, H)

    def loop_fn(time, output, cell_state, loop_state):
        if output is None:
            return False, table[:B], state, torch.zeros((), dtype=torch.int64), None
        token = (output @ table[:, :H].T if D >= H else output.sum(-1, keepdim=True) * table[:, 0]).add(torch.rand(B, 7)).argmax(-1)
        return (token == 0) | (time >= 30), table[token], cell_state, token, None

    return loop_fn


def counting():
    """loop_state that finished rows go on changing."""
    lengths, x = torch.tensor([2, 9, 5]), torch.randn(T, B, D)

    def loop_fn(time, output, state, loop_state):
        if output is None:
            return lengths <= 0, x[0], torch.zeros(B, H), None, (torch.zeros(B), torch.zeros((), dtype=torch.int64))
        total, steps = loop_state
        return time >= lengths, x[time], state, {"o": output, "t": steps}, (total + output.sum(-1), steps + 1)

    return loop_fn


def counting_emits():
    counted = counting()

    def loop_fn(time, output, state, loop_state):
        finished, inputs, state, emit, loop_state = counted(time, output, state, loop_state)
        return finished, inputs, state, None if emit is None else emit["o"], loop_state

    return loop_fn


def writing():
    x = torch.randn(T, B, D)

    def loop_fn(time, output, state, loop_state):
        if output is None:
            return False, x[0], torch.zeros(B, H), None, TensorArray(torch.float32, T)
        return time >= 10, x[time], state, output, loop_state.write(time - 1, output * 2)

    return loop_fn


def beyond():
    """A row that reads no more than there is, one step after the last of others."""
    x = torch.randn(8, B, D)

    def loop_fn(time, output, state, loop_state):
        return time >= 8, x[time], torch.zeros(B, H) if state is None else state, output, None

    return loop_fn


def infinite():
    x = torch.randn(12, B, D)
    x[4:, 1] = torch.inf
    lengths = torch.tensor([12, 4, 11])

    def loop_fn(time, output, state, loop_state):
        return time >= lengths, x[time], torch.zeros(B, H) if state is None else state, output, None

    return loop_fn


LOOPS = {
    "one step": lambda: reading([1, 1, 1]),
    "eight steps": lambda: reading([8, 2, 0]),
    "nine steps": lambda: reading([9, 9, 1]),
    "many steps": lambda: reading([T, 3, 17]),
    "greedy": greedy,
    "drawn": sampling,
    "loop_state": counting_emits,
    "writes": writing,
    "the last element": beyond,
    "infinite inputs": infinite,
}


def equal(found, expected):
    assert type(found.final_loop_state) is type(expected.final_loop_state)
    for mine, theirs in (
        (found.emit_ta.stack(), expected.emit_ta.stack()),
        (found.final_state, expected.final_state),
        (found.lengths, expected.lengths),
        (found.truncated, expected.truncated),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    if isinstance(found.final_loop_state, TensorArray):
        torch.testing.assert_close(found.final_loop_state.stack(), expected.final_loop_state.stack())
    elif found.final_loop_state is not None:
        torch.testing.assert_close(found.final_loop_state, expected.final_loop_state)


def both(loop_fn, **options):
    torch.manual_seed(3)
    found = raw_rnn(cell(), loop_fn, backend="stepwise", **options)
    assert found.executor == "stepwise"
    torch.manual_seed(3)
    return found, raw_rnn(cell(), loop_fn, backend="reference", **options)


@pytest.mark.parametrize("name", LOOPS)
@hypothesis.given(delays=st.lists(st.integers(0, 5), min_size=1, max_size=4))
@hypothesis.settings(max_examples=5, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_results_do_not_depend_on_when_the_flags_arrive(late, name, delays):
    late.delays = itertools.cycle(delays)
    before = late.replays
    equal(*both(LOOPS[name]()))
    assert late.replays > before


@pytest.mark.parametrize("most", [8, 9, 16, 20])
def test_max_steps(late, most):
    equal(*both(reading([T, 12, 9]), max_steps=most))
    assert late.replays >= most


def test_little_is_launched_in_vain(late):
    late.delays = itertools.repeat(1000)  # never ready by itself
    found, expected = both(reading([9, 9, 9]))
    equal(found, expected)
    assert late.replays <= 9 + graphed.EVERY * (graphed.AHEAD + 1)
    assert late.waits


def test_the_second_call_replays(late):
    weights = cell()
    for lengths in ([4, 5, 6], [9, 0, 12], [1, 1, 2]):
        loop_fn = reading(lengths)
        equal(raw_rnn(weights, loop_fn, backend="stepwise"), raw_rnn(weights, loop_fn, backend="reference"))
    assert late.captures <= 2  # once where the inputs lie, once with copies of what moves
    captures = late.captures
    weights.weight_hh.mul_(0.5) if hasattr(weights, "weight_hh") else next(iter(weights.parameters())).mul_(0.5)
    loop_fn = reading([7, 2, 3])
    equal(raw_rnn(weights, loop_fn, backend="stepwise"), raw_rnn(weights, loop_fn, backend="reference"))
    assert late.captures == captures


def test_a_read_past_the_end(late):
    with pytest.raises(IndexError, match="past its end"):
        raw_rnn(cell(), reading([9, 12, 3], steps=10), backend="stepwise")
    assert late.replays


def test_gradients_are_not_replayed(late, caplog):
    caplog.set_level(logging.DEBUG, "fusedrnn")
    weights = cell().requires_grad_()
    raw_rnn(weights, reading([9, 9, 2]), backend="stepwise").final_state.sum().backward()
    assert not late.replays
    assert "gradients are needed" in caplog.text


def test_a_capture_that_fails(late, monkeypatch, caplog):
    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(late, "capture", refuse)
    caplog.set_level(logging.DEBUG, "fusedrnn")
    equal(*both(reading([9, 9, 2])))
    assert "operation not permitted" in caplog.text


def test_few_steps_are_not_captured(late):
    equal(*both(reading([9, 9, 2]), max_steps=graphed.FEWEST - 1))
    assert not late.replays


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", LOOPS)
def test_on_a_gpu(name):
    torch.set_default_device("cuda")
    try:
        equal(*both(LOOPS[name]()))
    finally:
        torch.set_default_device(None)


def test_a_program_that_cannot_be_captured_says_so(late):
    def loop_fn(time, output, state, loop_state):
        if output is not None and output.sum() > 0:
            output = output * 2
        return time >= 3, torch.zeros(B, D), torch.zeros(B, H) if state is None else state, output, None

    with pytest.raises(PlanError):
        raw_rnn(cell(), loop_fn, backend="stepwise")
    assert not late.captures
