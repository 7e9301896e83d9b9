"""Every error of the contract: its type, and a message that names the value, the leaf's path and both sides."""

from __future__ import annotations

import re
from collections import namedtuple
from functools import partial

import pytest
import torch

import fusedrnn
from fusedrnn import TensorArray

from .cells import Cell, numbers, zeros
from .inputs import B, D, H

LENGTHS = torch.tensor([5, 2, 3, 1])
Pair = namedtuple("Pair", "h c")
Twin = namedtuple("Twin", "h c")


@pytest.fixture
def raw_rnn(backend):
    """In float64 on every backend: what is wrong is told before a kernel is made, where no other is named."""
    return partial(fusedrnn.raw_rnn, backend=backend)


def tanh_step(x, h):
    h = torch.tanh(h + 0.1 * x[:, :1])
    return h, h


def same(value):
    return (value, value)


def calling(raw_rnn, cell=None, **values):
    """A call of raw_rnn whose loop_fn returns for each name ``(at time 0, later)``; a function gets ``(output, state, loop_state)``."""

    def loop_fn(time, output, state, loop_state):
        def value(name, default):
            first, later = values.get(name, same(default))
            chosen = first if output is None else later
            return chosen(output, state, loop_state) if callable(chosen) and not isinstance(chosen, torch.Tensor) else chosen

        return (
            value("finished", time >= LENGTHS),
            value("next_input", zeros(B, D)),
            value("state", zeros(B, H) if output is None else state),
            value("emit", output),
            value("loop_state", None),
        )

    return raw_rnn(cell or Cell(tanh_step), loop_fn)


def raises(kind, *words):
    """The error, whose message holds these words in this order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(map(re.escape, words)))


# loop_state


@pytest.mark.parametrize(
    ("first", "later", "kind", "words"),
    [
        (None, zeros(2), ValueError, ["loop_state", "None at time 0", "float64[2]", "time 1"]),
        (zeros(2), zeros(3), ValueError, ["loop_state", "shape", "float64[2]", "float64[3]", "time 1"]),
        (zeros(2), zeros(1), ValueError, ["loop_state", "shape", "float64[2]", "float64[1]", "time 1"]),
        (zeros(2), torch.zeros(2), TypeError, ["loop_state", "dtype", "float64[2]", "float32[2]", "time 1"]),
        (torch.tensor(0), 0.5, TypeError, ["loop_state", "dtype", "int64[]", "float32[]", "time 1"]),
        ({"a": (zeros(2), zeros(3))}, {"a": (zeros(2), zeros(4))}, ValueError, ["loop_state['a'][1]", "float64[3]", "float64[4]"]),
        (
            {"a": Pair(zeros(2), zeros(3))},
            {"a": Pair(zeros(2), torch.zeros(3))},
            TypeError,
            ["loop_state['a'].c", "float64[3]", "float32[3]"],
        ),
        (zeros(2), (zeros(2),), ValueError, ["loop_state at time 1", "tensor", "(float64[2],)"]),
        ((zeros(2),), zeros(2), ValueError, ["loop_state at time 1", "a tuple", "float64[2]"]),
        ((zeros(2),), [zeros(2)], TypeError, ["loop_state at time 1", "a tuple", "[float64[2]]"]),
        (Pair(zeros(2), zeros(2)), (zeros(2), zeros(2)), TypeError, ["loop_state at time 1", "a Pair", "(float64[2], float64[2])"]),
        ((zeros(2), zeros(2)), Pair(zeros(2), zeros(2)), TypeError, ["loop_state at time 1", "a tuple", "Pair(float64[2], float64[2])"]),
        ({"a": zeros(2)}, {"b": zeros(2)}, ValueError, ["loop_state at time 1", "{'a'}", "{'b'}"]),
        ({"a": [zeros(2)]}, {"a": [zeros(2), zeros(2)]}, ValueError, ["loop_state at time 1['a']", "list of 1", "2"]),
        (TensorArray(torch.float64), zeros(2), ValueError, ["loop_state", "a TensorArray", "float64[2]", "time 1"]),
        (TensorArray(torch.float64), TensorArray(torch.float32), ValueError, ["loop_state", "TensorArray", "TensorArray", "time 1"]),
        (zeros(2), "text", ValueError, ["loop_state at time 1", "tensor", "type str"]),
        ("text", zeros(2), ValueError, ["loop_state", "time 0", "tensor", "type str"]),
        ({"a": (None,)}, {"a": (None,)}, ValueError, ["loop_state['a'][0]", "time 0", "tensor", "None"]),
    ],
)
def test_loop_state(raw_rnn, first, later, kind, words):
    with raises(kind, *words):
        calling(raw_rnn, loop_state=(first, later))


# finished


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (torch.zeros(1, dtype=torch.bool), ValueError, [f"[{B}]", "[]", "got [1]"]),
        (torch.zeros(B + 1, dtype=torch.bool), ValueError, [f"[{B}]", "[]", f"got [{B + 1}]"]),
        (torch.zeros(B, 1, dtype=torch.bool), ValueError, [f"[{B}]", "[]", f"got [{B}, 1]"]),
        (torch.zeros(B, dtype=torch.int64), TypeError, ["bool", f"int64[{B}]"]),
        (torch.zeros(B), TypeError, ["bool", f"float32[{B}]"]),
        (torch.tensor(0), TypeError, ["bool", "int64[]"]),
        (0, TypeError, ["bool", "0"]),
        (1.0, TypeError, ["bool", "1.0"]),
        ([False] * B, TypeError, ["bool", "[False, "]),
        (None, ValueError, ["bool", "None"]),
    ],
)
def test_finished(raw_rnn, place, value, kind, words):
    with raises(kind, "finished", *words, f"time {place}"):
        calling(raw_rnn, finished=(value, value) if place == 0 else (torch.zeros(B, dtype=torch.bool), value))


# emit_output


def half(output, *_):
    return output[:, :2]


@pytest.mark.parametrize(
    ("first", "later", "kind", "words"),
    [
        (zeros(B, H), lambda output, *_: output, ValueError, ["batch dimension", f"[{H}]", f"[{B}, {H}]"]),
        (zeros(H), half, ValueError, ["emit_output", "shape", f"float64[{B}, {H}]", f"float64[{B}, 2]", "time 1"]),
        (zeros(H), lambda output, *_: output[:, :1], ValueError, ["emit_output", f"float64[{B}, {H}]", f"float64[{B}, 1]", "time 1"]),
        (zeros(H), lambda output, *_: output[0], ValueError, ["emit_output", f"float64[{B}, {H}]", f"float64[{H}]", "time 1"]),
        (zeros(), lambda output, *_: output.sum(), ValueError, ["emit_output", f"float64[{B}]", "float64[]", "time 1"]),
        (zeros(), lambda output, *_: 0.5, TypeError, ["emit_output", f"float64[{B}]", "float32[]", "time 1"]),
        (torch.zeros(H), lambda output, *_: output, TypeError, ["emit_output", f"float32[{B}, {H}]", f"float64[{B}, {H}]", "time 1"]),
        (torch.tensor(0), lambda output, *_: output.argmax(1).int(), TypeError, ["emit_output", f"int64[{B}]", f"int32[{B}]", "time 1"]),
        (None, half, ValueError, ["emit_output", f"float64[{B}, {H}]", f"float64[{B}, 2]", "None at time 0", "cell.output_size"]),
        (zeros(H), None, ValueError, ["emit_output at time 1", "tensor", "None"]),
        (None, None, ValueError, ["emit_output at time 1", "tensor", "None"]),
        ({"a": zeros(H), "b": zeros()}, lambda output, *_: {"a": output, "b": output}, ValueError,
         ["emit_output['b']", f"float64[{B}]", f"float64[{B}, {H}]", "time 1"]),
        ({"a": [zeros(H)]}, lambda output, *_: {"a": [output.float()]}, TypeError,
         ["emit_output['a'][0]", f"float64[{B}, {H}]", f"float32[{B}, {H}]", "time 1"]),
        ({"a": zeros(H)}, lambda output, *_: {"b": output}, ValueError, ["emit_output at time 1", "{'a'}", "{'b'}"]),
        ({"a": zeros(H)}, lambda output, *_: {"a": output, "b": output}, ValueError, ["emit_output at time 1", "{'a'}", "{'a', 'b'}"]),
        ((zeros(H), zeros(H)), lambda output, *_: [output, output], TypeError, ["emit_output at time 1", "a tuple", f"[float64[{B}"]),
        ([zeros(H)], lambda output, *_: (output,), TypeError, ["emit_output at time 1", "a list", f"(float64[{B}, {H}],)"]),
        ((zeros(H), zeros(H)), lambda output, *_: (output,), ValueError, ["emit_output at time 1", "tuple of 2", "1"]),
        ((zeros(H), zeros(H)), lambda output, *_: output, ValueError, ["emit_output at time 1", "a tuple", f"float64[{B}, {H}]"]),
        (zeros(H), lambda output, *_: (output, output), ValueError, ["emit_output", "tensor", f"(float64[{B}, {H}], "]),
        ((), lambda output, *_: output, ValueError, ["emit_output at time 1", "a tuple", f"float64[{B}, {H}]"]),
        (Pair(zeros(H), zeros(H)), lambda output, *_: (output, output), TypeError, ["emit_output at time 1", "a Pair", "(float64"]),
        (Pair(zeros(H), zeros(H)), lambda output, *_: Twin(output, output), TypeError, ["emit_output at time 1", "a Pair", "Twin(float64"]),
        (Pair(zeros(H), zeros(H)), lambda output, *_: Pair(output, half(output)), ValueError,
         ["emit_output.c", f"float64[{B}, {H}]", f"float64[{B}, 2]"]),
        ("text", lambda output, *_: output, ValueError, ["emit_output", "time 0", "tensor", "type str"]),
        (TensorArray(), lambda output, *_: output, ValueError, ["emit_output", "time 0", "TensorArray"]),
    ],
)  # fmt: skip
def test_emit(raw_rnn, first, later, kind, words):
    with raises(kind, *words):
        calling(raw_rnn, emit=(first, later))


def test_output_without_the_structure_of_output_size(raw_rnn):
    with raises(ValueError, "cell's output", "output_size", "tuple of 2", "1"):
        calling(raw_rnn, Cell(lambda x, h: ((h,), h), (H, H)))


def test_output_without_the_shape_of_output_size(raw_rnn):
    with raises(ValueError, "emit_output", f"float64[{B}, 7]", f"float64[{B}, {H}]", "cell.output_size"):
        calling(raw_rnn, Cell(tanh_step, 7))


# arguments


class Typed:
    def __init__(self, **attributes):
        vars(self).update(attributes)


class Callable(Typed):
    def __call__(self, x, h):
        return h, h


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (None, ["cell", "NoneType", "output_size", "state_size", "call"]),
        (torch.tanh, ["cell", "output_size", "state_size"]),
        (Callable(output_size=H), ["cell", "Callable", "lacks state_size"]),
        (Callable(state_size=H), ["cell", "Callable", "lacks output_size"]),
        (Typed(output_size=H, state_size=H), ["cell", "Typed", "lacks a call"]),
        (torch.nn.LSTM(D, H), ["cell", "LSTM", "output_size", "state_size"]),
        (torch.nn.GRUCell, ["cell", "instance"]),
    ],
)
def test_cell(raw_rnn, cell, words):
    with raises(TypeError, *words):
        raw_rnn(cell, None)  # the cell is checked before loop_fn


@pytest.mark.parametrize("loop_fn", [None, 3, "loop_fn", (1, 2)])
def test_loop_fn(raw_rnn, loop_fn):
    with raises(TypeError, "loop_fn", "callable", type(loop_fn).__name__):
        raw_rnn(Cell(tanh_step), loop_fn)


@pytest.mark.parametrize(
    ("value", "words"), [(-1, ["negative", "-1"]), (1.5, ["int", "1.5"]), ("4", ["int", "'4'"]), (True, ["int", "True"])]
)
def test_parallel_iterations(raw_rnn, value, words):
    with raises(TypeError, "parallel_iterations", *words):
        raw_rnn(Cell(tanh_step), lambda *_: None, value)


@pytest.mark.parametrize(
    ("value", "kind", "words"), [(-1, ValueError, ["negative", "-1"]), (2.0, TypeError, ["int", "2.0"]), (True, TypeError, ["True"])]
)
def test_max_steps(raw_rnn, value, kind, words):
    with raises(kind, "max_steps", *words):
        raw_rnn(Cell(tanh_step), lambda *_: None, max_steps=value)


@pytest.mark.parametrize(
    ("returned", "kind", "words"),
    [
        (None, TypeError, ["five values", "(finished, next_input,", "None", "time 0"]),
        (zeros(5), TypeError, ["five values", "float64[5]", "time 0"]),
        ((True, zeros(B, D), zeros(B, H), None), ValueError, ["five values", "got 4", "time 0"]),
        ((True, zeros(B, D), zeros(B, H), None, None, None), ValueError, ["five values", "got 6", "time 0"]),
    ],
)
def test_what_loop_fn_returns(raw_rnn, returned, kind, words):
    with raises(kind, "loop_fn", *words):
        raw_rnn(Cell(tanh_step), lambda *_: returned)


def test_what_loop_fn_returns_later(raw_rnn):
    def loop_fn(time, output, state, loop_state):
        return (False, zeros(B, D), zeros(B, H), None, None) if output is None else (False, zeros(B, D), state)

    with raises(ValueError, "loop_fn", "five values", "got 3", "time 1"):
        raw_rnn(Cell(tanh_step), loop_fn)


# next_input, and the states beside it


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ["next_input", "time 0", "tensor", "None"]),
        ((), ["next_input", "time 0", "tensor", "()"]),
        (1.0, ["next_input", "time 0", "tensor", "1.0"]),
        (zeros(), ["next_input", "time 0", "[B, ...]", "float64[]"]),
        ((zeros(B, D), zeros()), ["next_input", "time 0", "[B, ...]", "float64[]"]),
        ("text", ["next_input", "time 0", "tensor", "type str"]),
        ((zeros(B, D), None), ["next_input[1]", "time 0", "tensor", "None"]),
        ((zeros(B, D), zeros(B + 1, D)), ["next_input[1]", "time 0", f"batch size {B + 1}", f"has {B}"]),
        ({"a": zeros(B, D), "b": [zeros(1, D)]}, ["next_input['b'][0]", "time 0", "batch size 1", f"has {B}"]),
        (zeros(B + 1, D), ["next_cell_state", "time 0", f"batch size {B}", f"has {B + 1}"]),
    ],
)
def test_first_input(raw_rnn, value, words):
    with raises(ValueError, *words):
        calling(raw_rnn, next_input=same(value))


@pytest.mark.parametrize(
    ("later", "kind", "words"),
    [
        (zeros(B + 1, D), ValueError, ["next_input", f"float64[{B}, {D}]", f"float64[{B + 1}, {D}]", "time 1"]),
        (zeros(B, D + 1), ValueError, ["next_input", f"float64[{B}, {D}]", f"float64[{B}, {D + 1}]", "time 1"]),
        (torch.zeros(B, D), TypeError, ["next_input", f"float64[{B}, {D}]", f"float32[{B}, {D}]", "time 1"]),
        (None, ValueError, ["next_input at time 1", "tensor", "None"]),
        ((zeros(B, D),), ValueError, ["next_input at time 1", "tensor", f"(float64[{B}, {D}],)"]),
    ],
)
def test_later_input(raw_rnn, later, kind, words):
    with raises(kind, *words):
        calling(raw_rnn, next_input=(zeros(B, D), later))


def test_later_input_tree(raw_rnn):
    first = {"a": (zeros(B, D), zeros(B))}
    cell = Cell(lambda x, h: tanh_step(x["a"][0], h))
    with raises(ValueError, "next_input['a'][1]", f"float64[{B}]", f"float64[{B}, 1]", "time 1"):
        calling(raw_rnn, cell, next_input=(first, {"a": (zeros(B, D), zeros(B, 1))}))
    with raises(TypeError, "next_input at time 1['a']", "a tuple", f"[float64[{B}, {D}]"):
        calling(raw_rnn, cell, next_input=(first, {"a": [zeros(B, D), zeros(B)]}))


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (None, ["next_cell_state", "None at time 0", "zero_state"]),
        (zeros(B + 1, H), ["next_cell_state", f"batch size {B + 1}", f"has {B}"]),
        ((zeros(B, H), {"c": zeros(2, H)}), ["next_cell_state[1]['c']", "batch size 2", f"has {B}"]),
        ((zeros(B, H), None), ["next_cell_state[1]", "time 0", "tensor", "None"]),
    ],
)
def test_first_state(raw_rnn, first, words):
    with raises(ValueError, *words):
        calling(raw_rnn, state=(first, lambda output, state, *_: state))


@pytest.mark.parametrize(
    ("later", "kind", "words"),
    [
        (None, ValueError, ["next_cell_state at time 1", "tensor", "None"]),
        (half, ValueError, ["next_cell_state", f"float64[{B}, {H}]", f"float64[{B}, 2]", "time 1"]),
        (lambda output, *_: output.float(), TypeError, ["next_cell_state", f"float64[{B}, {H}]", f"float32[{B}, {H}]", "time 1"]),
        (lambda output, *_: (output, output), ValueError, ["next_cell_state at time 1", "tensor", "(float64"]),
    ],
)
def test_later_state(raw_rnn, later, kind, words):
    with raises(kind, *words):
        calling(raw_rnn, state=(zeros(B, H), later))


def test_later_state_tree(raw_rnn):
    cell = Cell(lambda x, state: (state[0], (state[0] + 1, state[1])), H, (H, H))
    first = (zeros(B, H), zeros(B, H))
    with raises(TypeError, "next_cell_state at time 1", "a tuple", f"[float64[{B}, {H}]"):
        calling(raw_rnn, cell, state=(first, lambda output, state, *_: list(state)))
    with raises(ValueError, "next_cell_state[1]", f"float64[{B}, {H}]", f"float64[{B}, 1]", "time 1"):
        calling(raw_rnn, cell, state=(first, lambda output, state, *_: (state[0], state[1][:, :1])))
    named = Cell(lambda x, state: (state.h, tuple(state)), H, Pair(H, H))
    with raises(TypeError, "next_cell_state at time 1", "a Pair", f"(float64[{B}, {H}]"):
        calling(raw_rnn, named, state=(Pair(*first), lambda output, state, *_: state))


# reads


def reading(raw_rnn, x, lengths, read, size=B):
    def loop_fn(time, output, state, loop_state):
        return time >= lengths, read(x, time), zeros(size, H) if output is None else state, output, None

    return raw_rnn(Cell(tanh_step), loop_fn)


@pytest.mark.parametrize(
    "read",
    [
        lambda x, time: x[time],
        lambda x, time: x[time, :],
        lambda x, time: x.select(0, time),
        lambda x, time: x.transpose(0, 1)[:, time],
        lambda x, time: TensorArray(x.dtype).unstack(x).read(time),
        lambda x, time: x[2 * time - time],
    ],
)
@numbers(torch.float32)
def test_read_past_the_end(raw_rnn, read):
    """x has 4 steps; row 0 wants 5, so at time 4 it reads beyond."""
    x = zeros(4, B, D)
    reading(raw_rnn, x, LENGTHS.clamp(max=4), read)
    with raises(IndexError, "time 4", "index 4", "past its end", "not finished: [0]"):
        reading(raw_rnn, x, LENGTHS, read)


@pytest.mark.parametrize("read", [lambda x, time: x[-1 - time], lambda x, time: TensorArray(x.dtype).unstack(x).read(3 - time)])
@numbers(torch.float32)
def test_read_before_the_front(raw_rnn, read):
    """As past the end: nobody looks at what a finished row reads."""
    x = torch.arange(4.0).reshape(4, 1, 1).expand(4, B, D)
    reading(raw_rnn, x, LENGTHS.clamp(max=4), read)
    with raises(IndexError, "time 4", "before its front", "not finished: [0]"):
        reading(raw_rnn, x, LENGTHS, read)


@numbers(torch.float32)
def test_pointers_past_the_end(raw_rnn):
    x, rows = zeros(4, B, D), torch.arange(B)
    step = torch.tensor([1, 2, 1, 3])
    read = lambda x, time: x[time * step, rows]  # noqa: E731
    reading(raw_rnn, x, torch.tensor([4, 2, 0, 2]), read)
    with raises(IndexError, "time 2", "index 6", "past its end", "not finished: [3]"):
        reading(raw_rnn, x, torch.tensor([4, 2, 0, 3]), read)


def test_read_of_nothing(raw_rnn):
    with raises(IndexError, "time 0", "index 0", f"[0, {B}, {D}]", "not finished: [0, 1]"):
        reading(raw_rnn, zeros(0, B, D), torch.tensor([2, 1, 0, 0]), lambda x, time: x[time])


# An error of the user's own code arrives as it is.


@pytest.mark.parametrize("place", [0, 1])
def test_the_users_own_error(raw_rnn, place):
    def fail(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        calling(raw_rnn, emit=(fail, fail) if place == 0 else (None, fail))
