"""The derivative of a loop as a loop."""

from __future__ import annotations

import pytest
import torch

import fusedrnn
from fusedrnn.derivative.backward import backward
from fusedrnn.lowering.pipeline import optimised

from .derived import B, D, H, T, attention, forward_of, lstm, reading


def derived(loop):
    ahead, needed = forward_of(*loop)
    return backward(ahead, needed, frozenset(ahead.joint.given))


def targets(module):
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def test_weight_gradients_are_products_behind_the_loop():
    made = derived(lstm())
    aten = torch.ops.aten
    assert targets(made.program.module).count(aten.mm.default) == 1  # of the gates' gradients with the recurrent weights
    assert not made.totals.added
    assert len(made.totals.lines) == 2
    assert [tuple(node.meta["val"].shape[1:]) for node in made.emitted] == [(4 * H,)]


@pytest.mark.parametrize("layer_norm", [False, True])
def test_of_a_single_row_too(layer_norm):
    made = derived(reading(fusedrnn.LSTMCell(D, H, layer_norm=layer_norm), (torch.zeros(1, H), torch.zeros(1, H)), (6,)))
    assert not made.totals.added
    assert sum("product" in line for line in made.totals.lines) == 2


def test_a_gradient_of_a_layer_norm_is_added_up_over_rows_behind_the_loop():
    made = derived(reading(fusedrnn.LSTMCell(D, H, layer_norm=True), (torch.zeros(B, H), torch.zeros(B, H))))
    assert not made.totals.added


def test_the_memory_of_attention_is_all_that_is_added_up_in_the_loop():
    made = derived(attention())
    assert [node.meta["val"].ndim for node in made.totals.added] == [3]  # of the keys [B, S, U]


def test_rows_stay_apart():
    for loop in (lstm(), attention()):
        program = derived(loop).program
        assert optimised(program, program.batch).retires


def test_only_what_is_needed_is_made():
    ahead, needed = forward_of(*lstm())
    weights = frozenset(source for source in needed if source.place == 1)  # weight_hh
    made = backward(ahead, weights, frozenset(ahead.joint.given))
    assert sum(gradient is not None for source, gradient in made.wanted.items() if isinstance(source, int)) == 1
    assert len(made.totals.lines) == 1


def test_emits_without_a_gradient_are_not_read():
    ahead, needed = forward_of(*lstm())
    with_emits, without = (backward(ahead, needed, frozenset(given)) for given in (ahead.joint.given, ()))
    assert len(without.given) == len(with_emits.given) - 1 == 0
    assert len(without.program.tensors) == len(with_emits.program.tensors) - 1


def test_what_is_otherwise_at_the_first_step_is_made_once():
    """Of all steps, and the first one written over it."""
    x, h = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True), torch.randn(B, H, dtype=torch.float64)
    first, cell = torch.randn(B, D, dtype=torch.float64, requires_grad=True), torch.nn.GRUCell(D, H).double()

    def loop_fn(time, output, state, _):
        return time >= T, first if output is None else x[time], h if output is None else state, output, None

    found, wanted = (
        torch.autograd.grad(fusedrnn.raw_rnn(cell, loop_fn, backend=backend).emit_ta.stack().square().sum(), [x, first, *cell.parameters()])
        for backend in ("native", "reference")
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
