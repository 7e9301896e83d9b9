"""What a step keeps for its derivative."""

from __future__ import annotations

import pytest
import torch

import fusedrnn

from .derived import B, D, H, attention, forward_of, lstm, reading


def test_an_lstm_keeps_its_gates_and_its_state():
    ahead, _ = forward_of(*lstm())
    assert ahead.kept.bytes_per_row == 6 * H * 4  # h and c before the step, four gates; tanh(c) is made again
    assert sorted(str(node.target).split(".")[1] for node in ahead.kept.nodes if node.op == "call_function") == [
        "sigmoid", "sigmoid", "sigmoid", "tanh",
    ]  # fmt: skip


def test_all_but_the_state_can_be_made_again():
    ahead, _ = forward_of(*lstm(), again=True)
    assert ahead.kept.again
    assert ahead.kept.bytes_per_row == 2 * H * 4
    assert all(node.op == "placeholder" for node in ahead.kept.nodes)
    assert [choice.bytes_per_row for choice in ahead.choices] == [6 * H * 4, 2 * H * 4]


def test_places_of_a_memory_are_not_kept():
    """The scores of attention are, the sums that their tanh is of are not."""
    ahead, _ = forward_of(*attention())
    assert max(node.meta["val"].ndim for node in ahead.kept.nodes if node.meta["val"].numel() > 1) <= 3
    assert not any(tuple(node.meta["val"].shape[1:]) == (9, 8) for node in ahead.kept.nodes)


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid])
def test_an_activation_is_kept_rather_than_what_it_is_of(function):
    w = torch.randn(3, 3, requires_grad=True)

    class Cell:
        output_size = state_size = 3

        def __call__(self, inputs, state):
            new = function(inputs + state @ w)
            return new, new

    ahead, _ = forward_of(*reading(Cell(), torch.zeros(4, 3)))
    assert function.__name__ in [str(node.target).split(".")[1] for node in ahead.kept.nodes if node.op == "call_function"]


def test_what_was_compared_is_not_compared_again():
    """Of the largest element one gradient is made; the element is found by its value, which another kernel may round otherwise."""
    w = torch.randn(3, 3, requires_grad=True)

    class Cell:
        output_size = state_size = 3

        def __call__(self, inputs, state):
            new = torch.tanh(inputs + state @ w)
            return torch.exp(new).amax(1, keepdim=True) * new, new

    ahead, _ = forward_of(*reading(Cell(), torch.zeros(4, 3)))
    assert torch.bool in [node.meta["val"].dtype for node in ahead.kept.nodes if "eq" in str(node.target)]


def test_what_a_layer_norm_makes_is_kept_once():
    """Normalised gates and the state, four inverse deviations, and the mean and the inverse deviation of c."""
    ahead, _ = forward_of(*reading(fusedrnn.LSTMCell(D, H, layer_norm=True), (torch.zeros(B, H), torch.zeros(B, H))))
    assert ahead.kept.bytes_per_row == (6 * H + 6) * 4
