"""compile: what a compiled loop sees anew in every call, and what it is when it cannot be compiled."""

import threading

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import Loop, PlanError, contract, feedback, raw_rnn
from fusedrnn.kernels import gpu

T, B, D, H = 6, 4, 3, 5

pytestmark = pytest.mark.usefixtures("auto")


class Setting:
    """A loop over tensors that tests change."""

    def __init__(self, backend="auto", max_steps=None):
        torch.manual_seed(0)
        self.cell = nn.GRUCell(D, H)
        self.x, self.lengths, self.h = torch.randn(T, B, D), torch.tensor([6, 2, 0, 4]), torch.randn(B, H)
        self.scale = 1.0

        def loop_fn(time, output, state, _):
            if output is None:
                return time >= self.lengths, self.x[time], self.h * 0.5, None, None
            return time >= self.lengths, self.x[time], state, output * self.scale, None

        self.loop_fn = loop_fn
        self.loop = fusedrnn.compile(self.cell, loop_fn, backend=backend, max_steps=max_steps)
        self.max_steps = max_steps

    def check(self, executor="native"):
        result = self.loop()
        expected = raw_rnn(self.cell, self.loop_fn, backend="reference", max_steps=self.max_steps)
        assert result.executor == executor
        torch.testing.assert_close(result[0].stack(), expected[0].stack())
        torch.testing.assert_close(result[1], expected[1])
        assert result.lengths.equal(expected.lengths)
        assert result.truncated.equal(expected.truncated)


@pytest.fixture(params=["native", "persistent"])
def backend(request):
    if request.param == "persistent" and not gpu.EMULATED:
        pytest.skip("no kernel is emulated")
    return request.param


@torch.no_grad()
def test_every_call_looks_at_its_tensors_anew(backend):
    s = Setting(backend)
    for _ in range(3):
        s.check(backend)
    s.x.copy_(torch.randn(T, B, D))  # in place
    s.check(backend)
    s.x, s.h = torch.randn(T, B, D), torch.randn(B, H)  # other tensors
    s.check(backend)
    s.lengths = torch.tensor([1, 6, 6, 3])
    s.check(backend)
    s.h = torch.randn(8, 8)[:B, :H]  # another view of one memory
    s.check(backend)
    s.h = s.h._base.T[:B, :H]
    s.check(backend)
    s.cell.weight_hh.mul_(0.3)
    s.check(backend)
    s.cell.load_state_dict(nn.GRUCell(D, H).state_dict())
    s.check(backend)


@torch.no_grad()
def test_what_changes_more_than_tensors():
    s = Setting().loop.warmup() and Setting()
    s.check()
    s.scale = 2.0  # a Python number: captured anew
    s.check()
    s.x, s.lengths, s.h = torch.randn(T + 9, B + 3, D), torch.arange(B + 3) + 4, torch.randn(B + 3, H)  # other sizes
    s.check()
    s.check()
    s.lengths = torch.zeros(B + 3, dtype=torch.int64)  # no step at all
    s.check("reference")
    s.lengths = torch.arange(B + 3)
    s.check()


@torch.no_grad()
def test_a_warm_call_runs_no_python_of_the_loop(backend, monkeypatch):
    s = Setting(backend)
    s.loop.warmup()
    with monkeypatch.context() as patch:
        patch.setattr(contract, "asked", None)  # who calls loop_fn
        found = [s.loop() for _ in range(3)]
    expected = raw_rnn(s.cell, s.loop_fn, backend="reference")[0].stack()
    for result in found:
        assert result.executor == backend
        torch.testing.assert_close(result[0].stack(), expected)


@torch.no_grad()
def test_max_steps():
    Setting(max_steps=3).check()


def test_gradients_flow_through_compiled_loops():
    s = Setting()
    with torch.no_grad():
        s.check()
    result = s.loop()
    assert result.executor == "native"
    result[0].stack().sum().backward()
    assert s.cell.weight_hh.grad.abs().sum() > 0
    named = Setting("native")
    mine, theirs = (
        torch.autograd.grad(run()[0].stack().square().sum(), list(named.cell.parameters()))
        for run in (named.loop, lambda: raw_rnn(named.cell, named.loop_fn, backend="reference"))
    )
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_draws_differ_from_call_to_call_and_follow_the_seed():
    embedding, project, h = nn.Embedding(9, D), nn.Linear(H, 9), torch.randn(B, H)
    loop = fusedrnn.compile(nn.GRUCell(D, H), feedback.sample(embedding, project, 0, None, h, 12)).warmup()
    torch.manual_seed(1)
    first, second = loop()[0].stack(), loop()[0].stack()
    assert not first.equal(second)
    torch.manual_seed(1)
    assert loop()[0].stack().equal(first)
    torch.manual_seed(1)
    assert raw_rnn(loop.cell, loop.loop_fn, backend="reference")[0].stack().equal(first)


def test_what_cannot_be_compiled(caplog, monkeypatch):
    def loop_fn(time, output, state, _):
        if output is not None and output.sum() > 1e9:
            output = output * 0
        return time >= T, torch.zeros(B, D), torch.zeros(B, H) if output is None else state, output, None

    cell = nn.GRUCell(D, H)
    loop = fusedrnn.compile(cell, loop_fn).warmup()
    with torch.no_grad():
        assert loop().executor == "reference"
    with pytest.raises(PlanError, match="decides in Python on a tensor's value"):
        fusedrnn.compile(cell, loop_fn, backend="native").warmup()
    monkeypatch.setattr(gpu, "EMULATED", False)
    with pytest.raises(PlanError, match="there is no CUDA device"):
        fusedrnn.compile(cell, loop_fn, backend="persistent")
    with pytest.raises(TypeError, match="loop_fn must be callable, got int"):
        fusedrnn.compile(cell, 3)
    with pytest.raises(ValueError, match="max_steps must not be negative"):
        fusedrnn.compile(cell, loop_fn, max_steps=-1)
    with pytest.raises(TypeError, match="cell must be an RNNCell"):
        fusedrnn.compile(nn.GRU(D, H), loop_fn)


@torch.no_grad()
def test_calls_from_several_threads():
    s = Setting()
    s.loop.warmup()
    expected = raw_rnn(s.cell, s.loop_fn, backend="reference")[0].stack()
    wrong = []

    def run():
        with torch.no_grad():
            wrong.extend(1 for _ in range(50) if not torch.allclose(s.loop()[0].stack(), expected, atol=1e-6))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_representation():
    s = Setting()
    assert isinstance(s.loop, Loop)
    assert repr(s.loop).startswith("Loop(GRUCell, Setting.__init__.<locals>.loop_fn, backend='auto')")
    with torch.no_grad():
        s.loop.warmup()
        assert s.loop.explain().executor == "native"
