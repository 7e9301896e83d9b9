"""What the modules refuse: torch.nn's kind of error for the same mistake, and words that name both sides and the way out."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fusedrnn

from .pairs import KINDS, pair

T, B, D, H = 5, 2, 3, 4


def raised(call):
    """The error of a call."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_size": 0}, "input_size must be greater than zero, got 0"),
        ({"input_size": -2}, "input_size must be greater than zero, got -2"),
        ({"input_size": 3.0}, "input_size should be of type int, got: float (3.0)"),
        ({"hidden_size": 0}, "hidden_size must be greater than zero, got 0"),
        ({"hidden_size": "4"}, "hidden_size should be of type int, got: str ('4')"),
        ({"num_layers": 0}, "num_layers must be greater than zero, got 0"),
        ({"num_layers": 1.5}, "num_layers should be of type int, got: float (1.5)"),
        ({"bias": 1}, "bias should be of type bool, got: int (1); pass True or False"),
        ({"batch_first": "no"}, "batch_first should be of type bool, got: str ('no')"),
        ({"dropout": 1.5}, "dropout should be a number in range [0, 1] representing the probability of an element being zeroed, not kept"),
        ({"dropout": -0.1}, "got -0.1"),
        ({"dropout": True}, "got True"),
        ({"dropout": "much"}, "got 'much'"),
        ({"dropout": None}, "dropout should be a number in range [0, 1], got None"),
        ({"proj_size": -1}, "proj_size"),
        ({"proj_size": 4}, "proj_size"),
        ({"proj_size": 0.5}, "proj_size"),
        ({"dtype": torch.int32}, "floating"),
        ({"nonsense": 1}, "unexpected keyword argument 'nonsense'"),
    ],
)  # fmt: skip
def test_constructors_refuse_what_torch_refuses(kind, change, words):
    arguments = {"input_size": D, "hidden_size": H, **change}
    theirs, ours = (raised(lambda where=where: getattr(where, kind)(**arguments)) for where in (nn, fusedrnn.nn))
    assert type(ours) is type(theirs)
    assert words in str(ours)


def test_projections_are_smaller_than_the_state():
    error = raised(lambda: fusedrnn.nn.LSTM(D, H, proj_size=5))
    assert "proj_size has to be smaller than hidden_size, got proj_size = 5 and hidden_size = 4; 0 does not project" in str(error)
    for kind in ("GRU", "RNN"):
        assert "proj_size argument is only supported for LSTM" in str(
            raised(lambda kind=kind: getattr(fusedrnn.nn, kind)(D, H, proj_size=2))
        )


def test_nonlinearities():
    theirs, ours = (raised(lambda cls=cls: cls(D, H, nonlinearity="sigmoid")) for cls in (nn.RNN, fusedrnn.nn.RNN))
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"layer_norm": 1}, TypeError, "layer_norm should be of type bool, got: int"),
        ({"zoneout": 1.5}, ValueError, r"zoneout must be in \[0, 1\], got 1.5"),
        ({"zoneout": "x"}, ValueError, "zoneout: expected a tuple, got"),
        ({"zoneout": (0.1,)}, ValueError, "zoneout: expected a tuple of 2, got one of 1"),
        ({"backend": "fast"}, ValueError, "backend must be one of 'auto', .* got 'fast'"),
        ({"bidirectional": "both"}, TypeError, "bidirectional should be of type bool, got: str"),
    ],
)
def test_own_options(change, kind, words):
    with pytest.raises(kind, match=words):
        fusedrnn.nn.LSTM(D, H, **change)


x, h = torch.zeros(T, B, D), torch.zeros(1, B, H)
packed = pack_padded_sequence(x, [T, 2])


def state(kind, h, c=None):
    return (h, h if c is None else c) if kind == "LSTM" else h


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda kind: (torch.zeros(D),), r"Expected input to be 2D or 3D, got 1D .*\[3\]: \[T, B, input_size\]"),
        (lambda kind: (torch.zeros(1, T, B, D),), "Expected input to be 2D or 3D, got 4D"),
        (lambda kind: (torch.zeros(T, B, D + 1),), r"input.size\(-1\) must be equal to input_size. Expected 3, got 4 \(shape"),
        (lambda kind: (torch.zeros(T, D + 1),), "Expected 3, got 4"),
        (lambda kind: (torch.zeros(0, B, D),), "Expected sequence length to be larger than 0 in RNN, got T = 0"),
        (lambda kind: (x.double(),), r"RNN input dtype \(torch.float64\) does not match weight dtype \(torch.float32\). Convert input: "),
        (lambda kind: (x.long(),), r"RNN input dtype \(torch.int64\)"),
        (lambda kind: (x, state(kind, torch.zeros(1, B, H + 1))), r"Expected hidden(\[0\])? size \(1, 2, 4\), got \[1, 2, 5\].* leave"),
        (lambda kind: (x, state(kind, torch.zeros(1, B + 1, H))), r"got \[1, 3, 4\]"),
        (lambda kind: (x, state(kind, torch.zeros(2, B, H))), r"got \[2, 2, 4\]"),
        (lambda kind: (x, state(kind, h[0])), r"For batched 3-D input, hx( and cx)? should also be 3-D but got \(?2-D"),
        (lambda kind: (x[:, 0], state(kind, h)), r"For unbatched 2-D input, hx( and cx)? should also be 2-D but got \(?3-D"),
        (lambda kind: (x, state(kind, h.double())), r"Expected hidden(\[0\])? dtype torch.float32 as the input's, got torch.float64"),
        (lambda kind: (x, state(kind, h.to("meta"))), "Input and hidden tensors are not at the same device, found input tensor at cpu"),
        (lambda kind: (x.to("meta"),), "Input and parameter tensors are not at the same device, found input tensor at meta"),
        (lambda kind: (PackedSequence(torch.zeros(2, 2, D), torch.tensor([2])),), "input must have 2 dimensions, got 3"),
        (lambda kind: (pack_padded_sequence(torch.zeros(T, B, D + 1), [T, 2]),), "input.size"),
        (lambda kind: (packed, state(kind, torch.zeros(1, B, H + 1))), "Expected hidden"),
        (lambda kind: (packed, state(kind, torch.zeros(1, B + 1, H))), "Expected hidden"),
    ],
)  # fmt: skip
def test_calls_refuse_what_torch_refuses(kind, arguments, words):
    theirs, ours = (raised(lambda module=module: module(*arguments(kind))) for module in pair(kind, D, H))
    assert type(ours) is type(theirs)
    assert re.search(words, str(ours))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_data_of_another_dtype(kind):  # torch's LSTM does not look, and fails later
    with pytest.raises(ValueError, match="RNN input dtype"):
        pair(kind, D, H)[1](PackedSequence(packed.data.double(), packed.batch_sizes))


def test_the_cell_state_is_checked_too():
    _, lstm = pair("LSTM", D, H)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 2, 4\), got \[1, 3, 4\]"):
        lstm(x, (h, torch.zeros(1, 3, H)))
    with pytest.raises(RuntimeError, match="expects two hidden states"):
        lstm(x, (h, h, h))


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("LSTM", (x, h), r"LSTM: hx must be the two tensors \(h_0, c_0\), got float32\[1, 2, 4\]"),
        ("GRU", (x, (h, h)), "GRU: hx must be the tensor h_0, got"),
        ("RNN", ([1.0],), r"RNN: input must be a tensor or a PackedSequence, got \[1.0\]"),
        ("RNN", (None,), "got None"),
    ],
)
def test_things_that_are_no_tensors(kind, arguments, words):
    with pytest.raises(TypeError, match=words):
        pair(kind, D, H)[1](*arguments)


@pytest.mark.parametrize(
    ("named", "kind", "words"),
    [
        ({"lengths": torch.tensor([1, 2, 3])}, ValueError, r"lengths must be a vector \[B\] with B = 2 rows, got shape \[3\]"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths must hold integers, got torch.float32"),
        ({"lengths": torch.tensor([1, 2], device="meta")}, ValueError, "lengths must be on the input's device or on the CPU"),
        ({"reset": torch.zeros(T, B)}, TypeError, r"reset must be a tensor of bool, got float32\[5, 2\]; flags.bool\(\)"),
        ({"reset": [True]}, TypeError, "reset must be a tensor of bool, got"),
        ({"reset": torch.zeros(B, T, dtype=torch.bool)}, ValueError, r"reset must be \[T, B\] = \[5, 2\] .*, got shape \[2, 5\]"),
    ],
)  # fmt: skip
def test_lengths_and_resets(named, kind, words):
    with pytest.raises(kind, match=words):
        fusedrnn.nn.GRU(D, H)(x, **named)


def test_layouts_of_lengths_and_resets():
    first = fusedrnn.nn.GRU(D, H, batch_first=True)
    with pytest.raises(ValueError, match=r"reset must be \[B, T\] = \[5, 2\]"):
        first(x, reset=torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"reset must be \[T\] = \[5\]"):
        first(x[:, 0], reset=torch.zeros(5, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"lengths must be a 0-d tensor for an unbatched input, got shape \[1\]"):
        first(x[:, 0], lengths=torch.tensor([3]))
    with pytest.raises(ValueError, match="lengths must be None for a PackedSequence"):
        first(packed, lengths=torch.tensor([3, 2]))
