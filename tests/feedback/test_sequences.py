"""sequence and fixed_steps."""

import pytest
import torch

from fusedrnn import raw_rnn
from fusedrnn.feedback import fixed_steps, greedy, sequence

T, B, D, H = 5, 3, 2, 4


@pytest.mark.parametrize("lengths", [None, [5, 2, 0], [9, -1, 3]])
def test_sequence_reads_each_row_to_its_length(lengths):
    cell, x, h = torch.nn.GRUCell(D, H), torch.randn(T, B, D), torch.randn(B, H)
    emits, state, _ = raw_rnn(cell, sequence(x, None if lengths is None else torch.tensor(lengths), h))
    bounded = [min(max(n, 0), T) for n in lengths or [T] * B]
    assert emits.lengths.tolist() == bounded
    for row, length in enumerate(bounded):
        own = h[row : row + 1]
        for t in range(length):
            own = cell(x[t, row : row + 1], own)
            assert torch.allclose(emits.stack()[t, row], own[0], atol=1e-6)
        assert torch.allclose(state[row], own[0], atol=1e-6)
        assert not emits.stack()[length:, row].any()


def test_sequence_reads_trees():
    class Cell:
        output_size = state_size = D

        def __call__(self, inputs, state):
            return inputs["a"] + inputs["b"], state

    x, y = torch.randn(T, B, D), torch.randn(T, B, 1)
    assert torch.equal(raw_rnn(Cell(), sequence({"a": x, "b": y}, None, torch.zeros(B, D)))[0].stack(), x + y)


def test_fixed_steps_stops_any_loop_fn():
    cell, x = torch.nn.GRUCell(D, H), torch.randn(T, B, D)
    emits, _, _ = raw_rnn(cell, fixed_steps(sequence(x, torch.tensor([5, 1, 0]), torch.zeros(B, H)), 3))
    assert emits.lengths.tolist() == [3, 1, 0]
    endless = greedy(torch.nn.Embedding(6, D), torch.nn.Linear(H, 6), 0, 99, torch.zeros(B, H))
    assert raw_rnn(cell, fixed_steps(endless, 4))[0].size() == 4
    assert raw_rnn(cell, fixed_steps(lambda t, o, s, ls: (False, x[0], torch.zeros(B, H), o, None), 2))[0].size() == 2


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda h: sequence(torch.zeros(T), None, h), ValueError, r"inputs must be \[T, B, ...\], got shape \[5\]"),
        (lambda h: sequence({"a": 3}, None, h), TypeError, r"inputs\['a'\] must be a tensor \[T, B, ...\], got 3"),
        (lambda h: sequence(torch.zeros(T, B, D), torch.zeros(B), h), TypeError, "lengths must hold integers, got torch.float32"),
        (lambda h: sequence(torch.zeros(T, B, D), torch.ones(B).bool(), h), TypeError, "lengths must hold integers, got torch.bool"),
        (lambda h: sequence(torch.zeros(T, B, D), torch.tensor([1]), h), ValueError, r"\[B\] with B = 3 rows, got shape \[1\]"),
        (lambda h: fixed_steps(sequence(torch.zeros(T, B, D), None, h), -1), ValueError, "steps must not be negative, got -1"),
    ],
)
def test_bad_arguments(make, kind, words):
    with pytest.raises(kind, match=words):
        make(torch.zeros(B, H))
