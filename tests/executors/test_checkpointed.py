"""Loops that keep their state every few steps, against the same loops that keep everything."""

from __future__ import annotations

import pytest
import torch

import fusedrnn
from fusedrnn.executors import stepwise

from .test_differentiated import LOOPS, assert_close, gradients, loss_of


@pytest.mark.parametrize("every", [1, 4, 100])
@pytest.mark.parametrize("name", ["lstm", "decoding", "forcing", "bahdanau", "dropout"])
def test_gradients(name, every, monkeypatch):
    loop, before = LOOPS[name](), fusedrnn.fallbacks()
    wanted = gradients(loop, "reference")
    monkeypatch.setattr(stepwise, "steps", None)
    with fusedrnn.checkpointed(every):
        found = gradients(loop, "native")
    assert_close(found, wanted)
    assert fusedrnn.fallbacks() == before


def test_results_are_those_without():
    cell, loop_fn, _ = LOOPS["decoding"]()
    wanted = fusedrnn.raw_rnn(cell, loop_fn, backend="reference", max_steps=3)
    with fusedrnn.checkpointed(2):
        found = fusedrnn.raw_rnn(cell, loop_fn, backend="native", max_steps=3)
    torch.testing.assert_close(found.emit_ta.stack(), wanted.emit_ta.stack())
    torch.testing.assert_close(found.final_state, wanted.final_state)
    assert torch.equal(found.lengths, wanted.lengths)
    assert torch.equal(found.truncated, wanted.truncated)


def test_less_is_kept():
    """The tensors that autograd saves, in bytes: two segments of three steps keep two states, not six gates and states a step."""

    def saved(context):
        cell, loop_fn, _ = LOOPS["lstm"]()
        sizes = []
        with context, torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.numel()) or one, lambda one: one):
            result = fusedrnn.raw_rnn(cell, loop_fn, backend="native")
        loss_of(result).backward()
        return sum(sizes)

    everything, some = saved(torch.enable_grad()), saved(fusedrnn.checkpointed(3))
    assert some < everything - 6 * 4 * 5 * 2


@pytest.mark.parametrize("backend", ["reference", "stepwise"])
def test_executors_that_keep_everything_say_so(backend):
    cell, loop_fn, _ = LOOPS["rnn"]()
    before = sum(fusedrnn.fallbacks().values())
    with fusedrnn.checkpointed(2):
        fusedrnn.raw_rnn(cell, loop_fn, backend=backend)
    assert sum(fusedrnn.fallbacks().values()) == before + 1
    assert any("checkpointed" in reason for reason in fusedrnn.fallbacks())


def test_auto_compiles_for_it(monkeypatch):
    monkeypatch.setenv("FUSEDRNN_BACKEND", "auto")
    cell, loop_fn, _ = LOOPS["rnn"]()
    with fusedrnn.checkpointed(2):
        assert fusedrnn.raw_rnn(cell, loop_fn).executor == "native"


@pytest.mark.parametrize("every", [0, -1])
def test_a_number_of_steps_is_positive(every):
    with pytest.raises(ValueError, match="every must be 1 or more"), fusedrnn.checkpointed(every):
        pass


@pytest.mark.parametrize("every", [2.0, True, None])
def test_a_number_of_steps_is_an_int(every):
    with pytest.raises(TypeError, match="every must be an int"), fusedrnn.checkpointed(every):
        pass
