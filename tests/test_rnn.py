"""dynamic_rnn and bidirectional_dynamic_rnn against torch.nn on packed sequences, and their errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fusedrnn import bidirectional_dynamic_rnn, dynamic_rnn

pytestmark = pytest.mark.usefixtures("float64")
D, H = 3, 4


def cell_like(lstm, suffix=""):
    """An LSTMCell with the weights of one direction of an LSTM."""
    cell = nn.LSTMCell(D, H)
    for name, parameter in cell.named_parameters():
        parameter.data.copy_(getattr(lstm, f"{name}_l0{suffix}").data)
    return cell


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.booleans())
def test_equals_nn_lstm_on_a_packed_sequence(lengths, time_major):
    lstm = nn.LSTM(D, H, bidirectional=True, batch_first=True)
    steps = max(lengths) + 1
    x = torch.randn(len(lengths), steps, D)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    out, (h, c) = lstm(packed)
    out, _ = pad_packed_sequence(out, batch_first=True, total_length=steps)
    inputs = x.transpose(0, 1) if time_major else x
    (fw, bw), ((h_fw, c_fw), (h_bw, c_bw)) = bidirectional_dynamic_rnn(
        cell_like(lstm), cell_like(lstm, "_reverse"), inputs, torch.tensor(lengths), time_major=time_major
    )
    both = torch.cat((fw, bw), -1)
    torch.testing.assert_close(both.transpose(0, 1) if time_major else both, out)
    torch.testing.assert_close(torch.stack((h_fw, h_bw)), h)
    torch.testing.assert_close(torch.stack((c_fw, c_bw)), c)


def test_lengths_out_of_range_count_as_none_and_all():
    cell, x = nn.GRUCell(D, H), torch.randn(3, 5, D)
    out, state = dynamic_rnn(cell, x, torch.tensor([9, 0, -4]))
    whole, last = dynamic_rnn(cell, x)
    assert torch.equal(out[0], whole[0])
    assert torch.equal(state[0], last[0])
    assert not out[1:].any()
    assert not state[1:].any()


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("lengths", [None, [0, 0]])
def test_short_sequences_have_their_shape(steps, lengths):
    x = torch.randn(2, steps, D, requires_grad=True)
    out, state = dynamic_rnn(nn.GRUCell(D, H), x, None if lengths is None else torch.tensor(lengths))
    assert out.shape == (2, steps, H)
    assert state.shape == (2, H)
    (out.sum() + state.sum()).backward()
    assert torch.isfinite(x.grad).all()


def test_outputs_are_padded_to_the_inputs_length():
    out, _ = dynamic_rnn(nn.GRUCell(D, H), torch.randn(2, 7, D), torch.tensor([3, 2]))
    assert out.shape == (2, 7, H)
    assert not out[:, 3:].any()


def test_initial_states_and_dtypes():
    x = torch.randn(2, 4, D)
    cell = nn.GRUCell(D, H)
    h = torch.randn(2, H)
    assert torch.equal(dynamic_rnn(cell, x, torch.tensor([0, 4]), initial_state=h)[1][0], h[0])
    assert dynamic_rnn(cell.float(), x.float())[1].dtype == torch.float32
    assert dynamic_rnn(cell.double(), x, dtype=torch.float64)[1].dtype == torch.float64

    class Sum:
        output_size = state_size = D

        def __call__(self, inputs, state):
            return inputs + state, inputs + state

    assert dynamic_rnn(Sum(), x.half())[1].dtype == torch.float16


@pytest.mark.parametrize("arguments", [2, 3])
def test_a_foreign_cell_may_bring_its_zero_state(arguments):
    class Cell:
        output_size = state_size = D

        def __call__(self, inputs, state):
            return state, state + inputs

    class Short(Cell):
        def zero_state(self, batch_size, dtype):
            return torch.full((batch_size, D), 7.0, dtype=dtype)

    class Long(Cell):
        def zero_state(self, batch_size, dtype=None, device=None):
            return torch.full((batch_size, D), 7.0, dtype=dtype, device=device)

    out, _ = dynamic_rnn(Short() if arguments == 2 else Long(), torch.ones(2, 3, D))
    assert torch.equal(out[:, 0], torch.full((2, D), 7.0))


def test_trees_of_inputs_and_outputs():
    class Cell:
        state_size = (D,)

        def __init__(self):
            self.output_size = {"a": D, "b": torch.Size(())}

        def __call__(self, inputs, state):
            new = state[0] + inputs[0] * inputs[1]
            return {"b": new.sum(-1), "a": new}, (new,)

    x, y = torch.randn(2, 4, D), torch.randn(2, 4, 1)
    out, (state,) = dynamic_rnn(Cell(), (x, y), torch.tensor([4, 2]))
    assert torch.allclose(out["a"][0], (x * y)[0].cumsum(0))
    assert out["b"].shape == (2, 4)
    assert torch.allclose(state[1], (x * y)[1, :2].sum(0))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"inputs": torch.zeros(2, 4)}, ValueError, r"inputs must be \[B, T, ...\] of rank 3 or more, got shape \[2, 4\]"),
        (
            {"inputs": (torch.zeros(2, 4, D), torch.zeros(2, 5, D))},
            ValueError,
            r"inputs\[1\] has \[T, B\] = \[5, 2\], the first leaf has \[4, 2\]",
        ),
        ({"inputs": [1.0]}, TypeError, r"inputs\[0\] must be a tensor, got 1.0"),
        ({"inputs": ()}, ValueError, "inputs must hold at least one tensor"),
        ({"sequence_length": torch.tensor(3)}, ValueError, r"sequence_length must be a vector \[B\] with B = 2 rows, got shape \[\]"),
        ({"sequence_length": torch.tensor([1, 2, 3])}, ValueError, r"sequence_length must be a vector .* got shape \[3\]"),
        ({"sequence_length": torch.tensor([[1], [2]])}, ValueError, r"sequence_length must be a vector .* got shape \[2, 1\]"),
        ({"sequence_length": torch.tensor([1.0, 2.0])}, TypeError, "sequence_length must hold integers, got torch.float"),
        ({"initial_state": torch.zeros(3, H)}, ValueError, r"initial_state has batch size 3 \(shape \[3, 4\]\), the inputs have 2"),
        ({"cell": 3}, TypeError, "cell must be an RNNCell"),
        ({"backend": "fast"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_arguments(change, kind, words):
    with pytest.raises(kind, match=words):
        dynamic_rnn(**{"cell": nn.GRUCell(D, H), "inputs": torch.zeros(2, 4, D), **change})


def test_the_backward_cell_is_named():
    with pytest.raises(TypeError, match="cell_bw must be"):
        bidirectional_dynamic_rnn(nn.GRUCell(D, H), None, torch.zeros(2, 4, D))
