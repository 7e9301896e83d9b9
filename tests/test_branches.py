"""torch.cond inside a loop takes its branch; outside of one it stays torch's own."""

import threading

import pytest
import torch

from fusedrnn import branches, frames, raw_rnn

own_cond = torch.cond


def test_cond_is_torchs_own_again_after_the_loop():
    seen = []

    def loop_fn(time, out, state, _):
        seen.append(torch.cond is own_cond)
        value = torch.cond(time > 1, lambda x: x * 2, lambda x: x, (torch.ones(2, 1),))
        return time >= 3, value, torch.zeros(2, 1) if state is None else state, out, None

    emits, _, _ = raw_rnn(torch.nn.RNNCell(1, 1), loop_fn)
    assert seen == [False] * 4
    assert len(emits) == 3
    assert torch.cond is own_cond


def test_cond_is_torchs_own_again_after_an_error():
    def loop_fn(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        raw_rnn(torch.nn.RNNCell(1, 1), loop_fn)
    assert torch.cond is own_cond
    assert frames.current() is None


def test_other_threads_see_torchs_own(monkeypatch):
    calls = []
    monkeypatch.setattr(branches, "_torch_cond", lambda *args: calls.append(args) or "torch's own")
    with branches.taken(), frames.running():
        results = []
        other = threading.Thread(target=lambda: results.append(torch.cond(torch.tensor(True), lambda: "taken", lambda: "left")))
        other.start()
        other.join()
        assert results == ["torch's own"]
        assert torch.cond(torch.tensor(True), lambda: "taken", lambda: "left") == "taken"
        assert torch.cond(torch.tensor([False]), lambda: "taken", lambda: "left") == "left"
    assert len(calls) == 1


@pytest.mark.parametrize("predicate", [torch.tensor(1), torch.tensor([True, False])])
def test_the_predicate_is_one_bool(predicate):
    with branches.taken(), frames.running(), pytest.raises(RuntimeError, match="pred must be one bool"):
        torch.cond(predicate, lambda: 1, lambda: 2)
