"""Calls after many: what raw_rnn gives once it runs a known loop without the user's Python."""

import sys

import pytest
import torch
from torch import nn

from fusedrnn import contract, feedback, raw_rnn
from fusedrnn.capture import cache
from fusedrnn.executors import warm
from fusedrnn.kernels.cpu import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
CALLS = []  # of any loop_fn
BACKEND = ""


def reading(cell, x, lengths, scale=1.0):
    state = torch.zeros(x.shape[1], cell.hidden_size)

    def loop_fn(time, output, cell_state, loop_state):
        next_state = state if cell_state is None else cell_state
        return time >= lengths, x[time] * scale, next_state, output, None

    return loop_fn


def sampling(cell, table, state):
    def loop_fn(time, output, cell_state, loop_state):
        if output is None:
            return False, table[torch.randint(5, (len(state),))], state, torch.zeros((), dtype=torch.int64), None
        token = (output[:, :5] + torch.rand(5)).argmax(-1)
        return (token == 0) | (time >= 9), table[token], cell_state, token, None

    return loop_fn


SLOW = (
    "test_new_values_and_sizes_count",
    "test_several_batch_sizes",
    "test_tokens",
    "test_settings_of_torch",
    "test_gradients",
    "test_draws",
    "test_a_loop_within_a_loop",
    "test_rows_without_steps",
)  # emulated


def pytest_generate_tests(metafunc):
    marks = [pytest.mark.slow] if metafunc.function.__name__ in SLOW else []
    metafunc.parametrize("backend", ["native", pytest.param("persistent", marks=marks)], indirect=True)


@pytest.fixture(autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "BACKEND", request.param)
    return request.param


@pytest.fixture
def cell():
    torch.manual_seed(0)
    return nn.GRUCell(3, 6).requires_grad_(False)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(warm, "_WORTH_CAPTURING", 3)
    cache.clear()
    CALLS.clear()
    asked = contract.asked
    monkeypatch.setattr(contract, "asked", lambda *given: (CALLS.append(1), asked(*given))[1])


def inputs(batch=4, steps=7):
    lengths = torch.randint(1, steps + 1, (batch,))
    return torch.randn(steps, batch, 3), lengths


def same(cell, loop_fn, executor=None, **options):
    """A call's result against the reference's; the calls of loop_fn that it took."""
    CALLS.clear()
    torch.manual_seed(7)
    found = raw_rnn(cell, loop_fn, backend=BACKEND, **options)
    called = len(CALLS)
    torch.manual_seed(7)
    expected = raw_rnn(cell, loop_fn, backend="reference", **options)
    assert found.executor == (executor or BACKEND)
    torch.testing.assert_close(found.emit_ta.stack(), expected.emit_ta.stack(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.final_state, expected.final_state, rtol=1e-5, atol=1e-6)
    assert found.lengths.tolist() == expected.lengths.tolist()
    assert found.truncated.tolist() == expected.truncated.tolist()
    return called


def test_loop_fn_is_no_longer_called(cell):
    called = [same(cell, reading(cell, *inputs())) for _ in range(8)]
    assert max(called) <= 3
    assert called[-3:] == [0, 0, 0]


def test_new_values_and_sizes_count(cell):
    for _ in range(6):
        same(cell, reading(cell, *inputs()))
    cell.weight_hh.mul_(0.5)
    assert same(cell, reading(cell, *inputs())) == 0
    cell.weight_hh = nn.Parameter(torch.randn_like(cell.weight_hh), requires_grad=False)
    assert same(cell, reading(cell, *inputs())) == 0
    assert same(cell, reading(cell, *inputs(steps=12))) == 0
    for batch in (1, 2, 9):
        same(cell, reading(cell, *inputs(batch)))
    assert same(cell, reading(cell, *inputs(), scale=2.0)) > 0  # another program
    assert same(cell, reading(cell, *inputs())) == 0
    assert same(cell, reading(cell, *inputs()), max_steps=3) == 0
    assert same(cell, reading(cell, *inputs()), max_steps=0, executor="reference") > 0


def test_tokens(cell):
    embedding, project = nn.Embedding(7, 3).requires_grad_(False), nn.Linear(6, 7).requires_grad_(False)
    called = [same(cell, feedback.greedy(embedding, project, 2, 1, torch.randn(4, 6), 9)) for _ in range(8)]
    assert called[-3:] == [0, 0, 0]


@pytest.mark.usefixtures("auto")
def test_auto_leaves_a_kernel_for_cpu_tensors_alone(cell, backend):
    for _ in range(6):
        same(cell, reading(cell, *inputs()))
    expected = "native" if backend == "native" else "stepwise"
    assert raw_rnn(cell, reading(cell, *inputs())).executor == expected


def test_several_batch_sizes(cell):
    for _ in range(5):
        for batch in (1, 2, 5):
            same(cell, reading(cell, *inputs(batch)))
    assert [same(cell, reading(cell, *inputs(batch))) for batch in (5, 1, 2)] == [0, 0, 0]


def test_rows_without_steps(cell):
    for _ in range(6):
        same(cell, reading(cell, *inputs()))
    x, lengths = inputs()
    lengths[1] = 0
    assert same(cell, reading(cell, x, lengths)) == 0
    same(cell, reading(cell, x, torch.zeros_like(lengths)), executor="reference")


def test_a_fault_is_explained(cell):
    for _ in range(6):
        same(cell, reading(cell, *inputs()))
    x, lengths = inputs(steps=5)
    with pytest.raises(IndexError, match="past its end"):
        raw_rnn(cell, reading(cell, x, lengths + 5), backend=BACKEND)


def test_gradients(cell):
    for _ in range(6):
        same(cell, reading(cell, *inputs()))
    x, lengths = inputs()
    x.requires_grad_()
    raw_rnn(cell, reading(cell, x, lengths), backend=BACKEND).final_state.sum().backward()
    assert x.grad is not None


def test_draws(cell, backend):
    if backend == "persistent":
        pytest.skip("a kernel draws nothing yet")
    table = torch.randn(5, 3)
    called = [same(cell, sampling(cell, table, torch.randn(4, 6))) for _ in range(8)]
    assert called[-1] == 0
    torch.manual_seed(1)
    first, second = (raw_rnn(cell, sampling(cell, table, torch.zeros(4, 6)), backend=BACKEND).emit_ta.stack() for _ in range(2))
    assert first.shape != second.shape or (first != second).any()


def test_settings_of_torch(cell):
    for _ in range(6):
        same(cell, reading(cell, *inputs()))
    with torch.autocast("cpu", torch.bfloat16):
        CALLS.clear()
        found = raw_rnn(cell, reading(cell, *inputs()), backend=BACKEND)
        assert CALLS
        assert found.executor == BACKEND
    assert same(cell, reading(cell, *inputs())) == 0


def test_a_loop_within_a_loop(cell):
    for _ in range(6):
        same(cell, reading(cell, *inputs()))

    def outer(time, output, cell_state, loop_state):
        inner = raw_rnn(cell, reading(cell, x, lengths), backend="reference" if time >= 2 else "auto").final_state
        return time >= 2, inner[:, :3], inner, output, None

    x, lengths = inputs()
    expected = raw_rnn(cell, reading(cell, x, lengths), backend="reference").final_state
    found = raw_rnn(cell, outer, backend="reference").emit_ta.stack()
    assert found.shape == (2, 4, 6)
    torch.testing.assert_close(found[0], cell(expected[:, :3], expected), rtol=1e-5, atol=1e-6)
