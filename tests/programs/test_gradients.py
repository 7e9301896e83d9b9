"""Gradients that need no recording: what they are by construction, and those of second order."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from .cells import Cell, real, sequence, tanh_cell, zeros
from .golden import given
from .inputs import RAGGED, B, D, H, T


def tolerance():
    return 1e-9 if real() == torch.float64 else 1e-5


def leaves(**shapes):
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, dtype=real(), generator=generator, requires_grad=True) for name, shape in shapes.items()}


def test_frozen_rows_hand_the_state_gradient_on(raw_rnn):
    p = given("initial_state")
    _, state, _ = raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time], state0=p.h0))
    upstream = torch.randn(B, H, dtype=real(), generator=torch.Generator().manual_seed(0))
    to_start, to_inputs = torch.autograd.grad(state, (p.h0, p.x), upstream)
    assert torch.equal(to_start[2], upstream[2])  # length 0
    for row, length in enumerate(RAGGED):
        assert not to_inputs[length:, row].any()
        assert to_inputs[:length, row].abs().sum(1).all()


def test_emits_of_finished_rows_have_no_gradient(raw_rnn):
    p = given("initial_state")
    emit, _, _ = raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time], state0=p.h0))
    after = torch.arange(T)[:, None] >= p.lengths
    gradients = torch.autograd.grad(emit.stack()[after].sum(), (p.x, p.h0, p.w, p.u, p.b))
    assert not any(gradient.any() for gradient in gradients)


def test_loop_state_has_the_gradients_of_finished_rows(raw_rnn):
    p = given("running_sum")

    def loop_fn(time, output, state, total):
        return (
            time >= p.lengths,
            p.x[time],
            zeros(B, H) if output is None else state,
            output,
            zeros(B) if output is None else total + output[:, 0],
        )

    total = raw_rnn(tanh_cell(p), loop_fn)[2]
    (to_inputs,) = torch.autograd.grad(total.sum(), p.x)
    assert to_inputs.abs().sum(2).all()


@pytest.mark.parametrize("lengths", [[0, 0, 0, 0], []])
def test_backward_of_a_loop_without_steps(raw_rnn, lengths):
    p = given("no_rows" if not lengths else "all_finished")
    h0 = torch.randn(len(lengths), H, dtype=real(), requires_grad=True)
    emit, state, _ = raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time], state0=h0))
    (emit.stack().sum() + state.sum()).backward()
    assert torch.equal(h0.grad, torch.ones_like(h0))
    assert p.x.grad is None or not p.x.grad.any()


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("lengths", [[3, 1], [2, 0]])
def test_second_order(check, lengths):
    """Of a read, an emit, the state and a loop_state at once. Through `reference`, as the contract says."""
    from fusedrnn import raw_rnn

    given = leaves(x=(3, 2, 2), h0=(2, 2), w=(2, 2), u=(2, 2))

    def function(x, h0, w, u):
        def step(x, h):
            h = torch.tanh(x @ w + h @ u)
            return h, h

        def loop_fn(time, output, state, total):
            first = output is None
            total = zeros(2) if first else total + output.sum(1) ** 2
            return time >= torch.tensor(lengths), x[time], h0 if first else state, output, total

        emit, state, total = raw_rnn(Cell(step, 2, 2), loop_fn, backend="reference")
        return emit.stack(), state, total

    assert check(function, tuple(given.values()))


def test_second_order_through_feedback():
    from fusedrnn import raw_rnn

    given = leaves(h0=(2, 2), u=(2, 2), feed=(2, 2))

    def function(h0, u, feed):
        def step(x, h):
            h = torch.tanh(x + h @ u)
            return h, h

        def loop_fn(time, output, state, loop_state):
            if output is None:
                return False, zeros(2, 2), h0, None, None
            return time >= torch.tensor([3, 2]), output @ feed, state, output, None

        emit, state, _ = raw_rnn(Cell(step, 2, 2), loop_fn, backend="reference")
        return emit.stack(), state

    assert gradgradcheck(function, tuple(given.values()))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["input", "state", "both"])
def test_finite_gradients(raw_rnn, poison, where):
    """Rows end, and their input or the state that comes with their end is NaN or Inf: all other gradients are those without it."""

    def gradients(poison):
        given = leaves(x=(T, B, D), w=(D, H), u=(H, H))
        lengths = torch.tensor(RAGGED)

        def step(x, h):
            h = torch.tanh(x @ given["w"] + h @ given["u"])
            return h, h

        def loop_fn(time, output, state, loop_state):
            done = (time >= lengths)[:, None]
            next_input, state = given["x"][time], zeros(B, H) if output is None else state
            if where != "state":
                next_input = torch.where(done, poison, next_input)
            if where != "input":
                state = torch.where(done, poison, state)
            return done[:, 0], next_input, state, output, None

        emit, _, _ = raw_rnn(Cell(step), loop_fn)
        assert emit.stack().isfinite().all()
        return torch.autograd.grad(emit.stack().pow(2).sum(), list(given.values()))

    for found, expected in zip(gradients(poison), gradients(0.0), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance(), atol=tolerance())


def test_loop_fn_may_divide_by_what_a_finished_row_holds(raw_rnn):
    """Row 2 has length 0 and its output is 0: the emit 1 / output is masked, and its gradient reaches no weight."""

    def gradients(row):
        given = leaves(w=(D, H), u=(H, H))
        x = torch.ones(T, B, D, dtype=real())
        x[:, 2] = row
        lengths = torch.tensor(RAGGED)

        def step(x, h):
            h = torch.tanh(x @ given["w"] + h @ given["u"])
            return h, h

        def loop_fn(time, output, state, loop_state):
            first = output is None
            return time >= lengths, x[time], zeros(B, H) if first else state, None if first else 1 / output, None

        emit = raw_rnn(Cell(step), loop_fn)[0].stack()
        assert emit.isfinite().all()
        return torch.autograd.grad(emit.sum(), list(given.values()))

    for found, expected in zip(gradients(0.0), gradients(1.0), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance(), atol=tolerance())
