"""What a step asks autograd while it is captured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn.feedback import sequence

T, B, H = 3, 2, 4


class Asking(nn.Module):
    """A cell that does something with what it has made."""

    output_size = state_size = H

    def __init__(self, ask):
        super().__init__()
        torch.manual_seed(0)
        self.w, self.ask = nn.Parameter(torch.randn(H, H)), ask

    def forward(self, x, h):
        new = torch.tanh(x + h @ self.w)
        return self.ask(self, new), new


def doubled(cell, new):
    if new.requires_grad:
        new.register_hook(lambda gradient: 2 * gradient)
    return new


def of_a_leaf(cell, new):
    return new if new.is_leaf else 2 * new


def with_history(cell, new):
    return new if new.grad_fn is None else 2 * new


def of_a_weight(cell, new):
    return 2 * new if cell.w.requires_grad and cell.w.is_leaf else new


def gradient(ask, backend):
    cell = Asking(ask)
    x = torch.randn(T, B, H, generator=torch.Generator().manual_seed(1))
    result = fusedrnn.raw_rnn(cell, sequence(x, None, torch.zeros(B, H)), backend=backend)
    return torch.autograd.grad(result.emit_ta.stack().sum(), cell.w)[0]


@pytest.mark.parametrize(("ask", "what"), [(doubled, "requires_grad"), (of_a_leaf, "is_leaf"), (with_history, "grad_fn")])
def test_a_question_about_what_the_step_makes(ask, what, monkeypatch):
    """A graph cannot tell: such a loop is not captured."""
    for backend in ("stepwise", "native"):
        with pytest.raises(fusedrnn.PlanError, match=f"the cell looks at {what}"):
            gradient(ask, backend)
    monkeypatch.setenv("FUSEDRNN_BACKEND", "auto")
    assert torch.equal(gradient(ask, "auto"), gradient(ask, "reference"))


@pytest.mark.parametrize("backend", ["stepwise", "native"])
def test_a_question_about_a_closed_over_tensor(backend):
    torch.testing.assert_close(gradient(of_a_weight, backend), gradient(of_a_weight, "reference"))
