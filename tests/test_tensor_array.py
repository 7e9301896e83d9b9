"""TensorArray: functional writes, gaps, reads past the end, and every error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn import TensorArray, raw_rnn


def row(value, width=2):
    return torch.full((width,), float(value))


def test_stack_of_writes():
    array = TensorArray(torch.float32)
    for i in range(3):
        array = array.write(i, row(i))
    assert array.size() == len(array) == 3
    assert torch.equal(array.stack(), torch.tensor([[0.0, 0], [1, 1], [2, 2]]))
    assert (array.dtype, array.element_shape) == (torch.float32, (2,))


def test_gaps_are_zeros():
    array = TensorArray().write(2, row(5))
    assert torch.equal(array.stack(), torch.tensor([[0.0, 0], [0, 0], [5, 5]]))
    assert torch.equal(array.read(0), row(0))


def test_size_makes_zeros_from_the_start():
    array = TensorArray(torch.int64, 2, element_shape=(3,))
    assert torch.equal(array.stack(), torch.zeros(2, 3, dtype=torch.int64))
    assert torch.equal(array.write(torch.tensor(1), torch.ones(3, dtype=torch.int64)).read(0), torch.zeros(3, dtype=torch.int64))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), max_size=12), st.data())
def test_every_version_keeps_its_content(writes, data):
    """Against a plain list, with any version written to again."""
    versions = [(TensorArray(torch.float32, element_shape=(2,)), [])]
    for at, value in writes:
        array, plain = data.draw(st.sampled_from(versions))
        grown = plain + [0] * (at + 1 - len(plain))
        versions.append((array.write(at, row(value)), [*grown[:at], value, *grown[at + 1 :]]))
    for array, plain in versions:
        assert array.size() == len(plain)
        assert torch.equal(array.stack(), torch.tensor(plain, dtype=torch.float32).reshape(-1, 1).expand(-1, 2))
        assert [array.read(i)[0].item() for i in range(len(plain))] == plain


def test_unstack_read_gather_and_write_again():
    x = torch.arange(6.0).reshape(3, 2)
    array = TensorArray(torch.float32).unstack(x)
    assert array.stack() is x
    assert torch.equal(array.read(torch.tensor(1, dtype=torch.int32)), x[1])
    assert torch.equal(array.gather([2, 0]), x[[2, 0]])
    assert torch.equal(array.gather(torch.tensor([], dtype=torch.int64)), x[:0])
    assert torch.equal(array.write(3, row(9)).stack()[3], row(9))
    assert array.size() == 3


def test_split_and_concat():
    value = torch.arange(10.0).reshape(5, 2)
    array = TensorArray().split(value, [2, 0, 3])
    assert [tuple(array.read(i).shape) for i in range(3)] == [(2, 2), (0, 2), (3, 2)]
    assert torch.equal(array.concat(), value)
    with pytest.raises(ValueError, match="different shapes; use concat"):
        array.stack()
    assert torch.equal(TensorArray().split(value[:4], [2, 2]).stack(), value[:4].reshape(2, 2, 2))


def test_gradients_flow_through_write_read_and_stack():
    x = torch.randn(3, 2, requires_grad=True)
    array = TensorArray(torch.float32).unstack(x).write(1, x[0] * 2)
    (array.stack().sum() + array.read(2).sum()).backward()
    assert torch.equal(x.grad, torch.tensor([[3.0, 3], [0, 0], [2, 2]]))


@pytest.mark.parametrize(
    ("act", "kind", "words"),
    [
        (lambda a: TensorArray("float32"), TypeError, "dtype must be a torch.dtype or None"),
        (lambda a: TensorArray(torch.float32, 1.5), TypeError, "size must be an int"),
        (lambda a: TensorArray(torch.float32, -1), ValueError, "size must not be negative, got -1"),
        (lambda a: a.write(-1, row(0)), IndexError, "i must not be negative, got -1"),
        (lambda a: a.write(True, row(0)), TypeError, "i must be an int or a 0-d integer tensor"),
        (lambda a: a.write(torch.zeros(()), row(0)), TypeError, "i must be an int or a 0-d integer tensor, got torch.float32"),
        (lambda a: a.write(0, row(0).double()), TypeError, "holds torch.float32, got torch.float64"),
        (lambda a: a.write(0, row(0, 3)), ValueError, r"elements have shape \[2\], got \[3\]"),
        (lambda a: a.read(2), IndexError, "position 2 of an array of 2"),
        (lambda a: a.read(-1), IndexError, "must not be negative"),
        (lambda a: a.gather([0.5]), TypeError, "indices must be a vector of integers"),
        (lambda a: a.gather([2]), IndexError, "position 2"),
        (lambda a: TensorArray(torch.float32).stack(), ValueError, "give TensorArray dtype and element_shape"),
        (lambda a: TensorArray(torch.float32).unstack(torch.zeros(())), ValueError, "rank 1 or more"),
        (lambda a: TensorArray(torch.float32).unstack([1]), TypeError, "expected a tensor, got list"),
        (lambda a: TensorArray(torch.int64).unstack(torch.zeros(2)), TypeError, "holds torch.int64, got torch.float32"),
        (lambda a: TensorArray(torch.float32, element_shape=(3,)).unstack(torch.zeros(2, 2)), ValueError, r"shape \[3\], got \[2\]"),
        (lambda a: a.split(torch.zeros(3), [1, 1]), ValueError, "do not add up"),
        (lambda a: TensorArray().write(0, torch.tensor(1.0)).concat(), ValueError, "use stack"),
    ],
)
def test_bad_use(act, kind, words):
    with pytest.raises(kind, match=words):
        act(TensorArray(torch.float32).unstack(torch.zeros(2, 2)))


def test_emit_arrays_fetch_once_and_late(monkeypatch):
    stacked = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda *a, **k: stacked.append(1) or stack(*a, **k))
    cell = torch.nn.RNNCell(2, 3)
    emits, _, _ = raw_rnn(cell, lambda t, out, s, ls: (t >= 4, torch.ones(2, 2), torch.zeros(2, 3) if s is None else s, out, None))
    assert not stacked
    assert "EmitArray" in repr(emits)
    assert not stacked
    assert emits.stack().shape == (4, 2, 3)
    assert emits.stack() is emits.stack()
    assert len(stacked) == 1
    assert torch.equal(emits.read(2), emits.stack()[2])


def test_gradients_survive_a_look_without_gradients():
    x = torch.randn(3, 2, requires_grad=True)
    unstacked = TensorArray().unstack(x)
    written = TensorArray().write(0, x[0]).write(1, x[1])
    with torch.no_grad():
        assert torch.equal(unstacked.read(1), x[1])
        assert torch.equal(unstacked.write(3, x[0]).read(3), x[0])
        assert not written.stack().requires_grad
    assert torch.equal(torch.autograd.grad(unstacked.read(1).sum(), x)[0], torch.tensor([[0.0, 0], [1, 1], [0, 0]]))
    assert torch.equal(torch.autograd.grad(written.stack().sum(), x)[0], torch.tensor([[1.0, 1], [1, 1], [0, 0]]))
