"""TensorFlow's version of every program in tests/programs. In: their inputs; out: programs.npz beside this file, what TensorFlow computes.

Run by hand, in an environment of its own (TensorFlow is no dependency of fusedrnn):

    python -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu==2.21.0 tf-keras==2.21.0
    /tmp/tf/bin/python tests/golden/record_programs.py

To add a program: its inputs in programs/inputs.py, a function of the same name here, one in tests/programs/test_*.py; run this file.
Recorded for each program: the leaves of emit (stacked), state and loop_state, and for every float input the gradient of the loss that
`loss_weights` describes. TensorFlow runs eagerly, in float64. Under tf.function it computes the same (tried: every program but the two
with cells of TensorFlow itself).
"""

from __future__ import annotations

import os
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

os.environ.update(TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="", TF_ENABLE_ONEDNN_OPTS="0")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import tensorflow as tf
from programs.inputs import PROGRAMS, B, D, H, M, S, T, V, inputs, loss_weights, named_leaves
from tensorflow.python.ops import rnn as tf_rnn

raw_rnn = tf_rnn.raw_rnn
F64 = tf.float64
Scalar = tf.TensorShape([])
RECORDED = {}


def program(function):
    """Record this function of a program's inputs ``p``; it returns what raw_rnn returns."""
    RECORDED[function.__name__] = function
    return function


def record(name):
    """What TensorFlow computes for a program: {path: array}."""
    given = {key: tf.constant(value) for key, value in inputs(name).items()}
    floats = {key: value for key, value in given.items() if value.dtype.is_floating}
    with tf.GradientTape() as tape:
        tape.watch(list(floats.values()))
        emit, state, loop_state = RECORDED[name](SimpleNamespace(**given))
        leaves = {**named_leaves(emit, "emit"), **named_leaves(state, "state"), **named_leaves(loop_state, "loop_state")}
        leaves = {path: leaf.stack() if hasattr(leaf, "stack") else tf.convert_to_tensor(leaf) for path, leaf in leaves.items()}
        loss = tf.zeros([], F64)
        for path, leaf in leaves.items():
            if leaf.dtype.is_floating:
                loss += tf.reduce_sum(tf.cast(leaf, F64) * loss_weights(name, path, tuple(leaf.shape)))
    gradients = tape.gradient(loss, list(floats.values()))
    for key, gradient in zip(floats, gradients, strict=True):
        leaves[f"grad.{key}"] = tf.zeros_like(floats[key]) if gradient is None else tf.convert_to_tensor(gradient)
    return {path: plain(leaf) for path, leaf in leaves.items()}


def plain(leaf):
    """As numpy; numpy has no bfloat16, float32 holds it exactly."""
    return (tf.cast(leaf, tf.float32) if leaf.dtype == tf.bfloat16 else leaf).numpy()


def at(x, time):
    """``x[time]``, the last element past the end, as fusedrnn reads it: TensorFlow refuses such a read."""
    return x[tf.minimum(time, x.shape[0] - 1)]


def zeros(*shape, dtype=F64):
    return tf.zeros(shape, dtype)


class Cell:
    """A cell of a function ``(inputs, state) -> (output, new_state)``."""

    def __init__(self, step, output_size=H, state_size=H):
        self.step, self.output_size, self.state_size = step, output_size, state_size

    def zero_state(self, *_):
        raise NotImplementedError("TensorFlow only asks whether it exists")

    def __call__(self, inputs, state):
        return self.step(inputs, state)


def tanh_cell(p):
    def step(x, h):
        h = tf.tanh(x @ p.w + h @ p.u + p.b)
        return h, h

    return Cell(step)


def weights(p, prefix):
    return (getattr(p, prefix + name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


def lstm_step(p, prefix=""):
    """torch.nn.LSTMCell: gates i f g o."""
    w, u, b, c = weights(p, prefix)

    def step(x, state):
        i, f, g, o = tf.split(x @ tf.transpose(w) + b + state[0] @ tf.transpose(u) + c, 4, 1)
        cell = tf.sigmoid(f) * state[1] + tf.sigmoid(i) * tf.tanh(g)
        h = tf.sigmoid(o) * tf.tanh(cell)
        return h, (h, cell)

    return step


def gru_step(p, prefix=""):
    """torch.nn.GRUCell: gates r z n, reset after the product."""
    w, u, b, c = weights(p, prefix)

    def step(x, h):
        xr, xz, xn = tf.split(x @ tf.transpose(w) + b, 3, 1)
        hr, hz, hn = tf.split(h @ tf.transpose(u) + c, 3, 1)
        z = tf.sigmoid(xz + hz)
        h = (1 - z) * tf.tanh(xn + tf.sigmoid(xr + hr) * hn) + z * h
        return h, h

    return step


def lstm_cell(p):
    return Cell(lstm_step(p), H, (H, H))


def sequence(cell, lengths, state0, read, emit=None, example=None):
    """The plain loop: read, step, emit; ``emit(time, output, state)``."""

    def loop_fn(time, output, state, loop_state):
        first = output is None
        emitted = (output if emit is None else emit(time, output, state)) if not first else example
        return time >= lengths, read(time), state0 if first else state, emitted, None

    return raw_rnn(cell, loop_fn)


def rows_of(p, read=None, **kwargs):
    """`sequence` with the tanh cell from a state of zeros."""
    return sequence(tanh_cell(p), p.lengths, zeros(p.lengths.shape[0], H), read or (lambda time: at(p.x, time)), **kwargs)


# test_reads.py


@program
def lstm_natural(p):
    return sequence(lstm_cell(p), p.lengths, (zeros(B, H), zeros(B, H)), lambda time: at(p.x, time))


@program
def gru_array(p):
    array = tf.TensorArray(F64, size=T, clear_after_read=False).unstack(p.x)
    return sequence(Cell(gru_step(p)), p.lengths, p.h0, lambda time: array.read(tf.minimum(time, T - 1)))


@program
def rnn_full(p):
    w, u, b, c = weights(p, "")

    def step(x, h):
        h = tf.tanh(x @ tf.transpose(w) + b + h @ tf.transpose(u) + c)
        return h, h

    return sequence(Cell(step), p.lengths, zeros(B, H), lambda time: at(p.x, time))


@program
def duck_typed(p):
    def step(x, h):
        h = tf.nn.relu(x @ p.w + h @ p.u + p.b)
        return h, h

    return sequence(Cell(step), p.lengths, zeros(B, H), lambda time: at(p.x, time))


@program
def all_finished(p):
    return sequence(tanh_cell(p), p.lengths, p.h0, lambda time: at(p.x, time))


@program
def no_time(p):
    return sequence(tanh_cell(p), p.lengths, p.h0, lambda time: zeros(B, D))


@program
def one_row(p):
    return rows_of(p)


@program
def no_rows(p):
    return rows_of(p)


@program
def previous_read(p):
    return rows_of(p, lambda time: p.x[tf.maximum(time - 1, 0)])


@program
def reversed_read(p):
    return rows_of(p, lambda time: p.x[T - 1 - time])


@program
def reversed_rows(p):
    return rows_of(p, lambda time: tf.gather_nd(p.x, tf.stack([tf.maximum(p.lengths - 1 - time, 0), tf.range(B)], 1)))


@program
def strided_read(p):
    return rows_of(p, lambda time: at(p.x, 2 * time))


@program
def clamped_read(p):
    return rows_of(p, lambda time: at(p.x, time))


@program
def lookahead_read(p):
    def step(x, h):
        h = tf.tanh(x[0] @ p.w + x[1] @ p.v + h @ p.u + p.b)
        return h, h

    return sequence(Cell(step), p.lengths, zeros(B, H), lambda time: (at(p.x, time), at(p.x, time + 1)))


@program
def two_inputs(p):
    def step(x, h):
        h = tf.tanh(x[0] @ p.w + x[1] @ p.v + h @ p.u + p.b)
        return h, h

    return sequence(Cell(step), p.lengths, zeros(B, H), lambda time: (at(p.x, time), at(p.y, time)))


@program
def dict_inputs(p):
    def step(x, h):
        h = tf.tanh(x["x"] @ p.w + tf.gather(p.table, x["ids"]) + h @ p.u + p.b)
        return h, h

    return sequence(Cell(step), p.lengths, zeros(B, H), lambda time: {"x": at(p.x, time), "ids": at(p.ids, time)})


@program
def column_read(p):
    return rows_of(p, lambda time: p.x[:, tf.minimum(time, T - 1)])


@program
def pointer_read(p):
    def loop_fn(time, output, state, pointer):
        if output is None:
            state, pointer = zeros(B, H), tf.zeros([B], tf.int32)
        else:
            pointer = pointer + tf.where(output[:, 0] > 0, 2, 1)
        next_input = tf.gather_nd(p.x, tf.stack([tf.minimum(pointer, T - 1), tf.range(B)], 1))
        return pointer >= p.lengths, next_input, state, output, pointer

    return raw_rnn(tanh_cell(p), loop_fn)


@program
def gather_read(p):
    def loop_fn(time, output, state, pointer):
        if output is None:
            state, pointer = zeros(B, H), tf.zeros([B], tf.int32)
        else:
            pointer = pointer + tf.where(output[:, 0] > 0, 2, 1)
        next_input = tf.gather_nd(p.x, tf.stack([tf.minimum(pointer, T - 1), tf.range(B)], 1))[:, None]
        return pointer >= p.lengths, next_input, state, output, pointer

    return raw_rnn(tanh_cell(p), loop_fn)


# test_feedback.py


@program
def greedy(p):
    def loop_fn(time, output, state, loop_state):
        if output is None:
            start = tf.zeros([B], tf.int64)
            return tf.zeros([B], tf.bool), tf.gather(p.table, start), p.h0, {"token": tf.zeros([], tf.int64), "logits": zeros(V)}, None
        logits = output @ p.out
        token = tf.argmax(logits, 1)
        return (token == 1) | (time >= 7), tf.gather(p.table, token), state, {"token": token, "logits": logits}, None

    return raw_rnn(tanh_cell(p), loop_fn)


@program
def soft_feedback(p):
    def loop_fn(time, output, state, loop_state):
        if output is None:
            return False, tf.tile(p.table[:1], [B, 1]), p.h0, zeros(V), None
        shares = tf.nn.softmax(output @ p.out * 2.0)
        return time >= 5, shares @ p.table, state, shares, None

    return raw_rnn(tanh_cell(p), loop_fn)


@program
def continuous(p):
    def loop_fn(time, output, state, loop_state):
        if output is None:
            return tf.zeros([B], tf.bool), zeros(B, D), p.h0, None, None
        return time >= [4, 2, 6, 1], output @ p.feed, state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


@program
def scheduled(p):
    def loop_fn(time, output, state, loop_state):
        if output is None:
            return False, p.x[0], p.h0, None, None
        return time >= 7, tf.where(time < 3, at(p.x, time), output @ p.feed), state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


@program
def teacher_mask(p):
    def loop_fn(time, output, state, loop_state):
        fed = zeros(B, D) if output is None else output @ p.feed
        next_input = tf.where(at(p.mask, time)[:, None], at(p.x, time), fed)
        return time >= p.lengths, next_input, p.h0 if output is None else state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


@program
def finish_on_value(p):
    def loop_fn(time, output, state, loop_state):
        if output is None:
            return tf.zeros([B], tf.bool), zeros(B, D), p.h0, None, None
        return (output[:, 1] > 0.7) | (time >= 6), output @ p.feed, state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


# test_loop_state.py


def carrying(p, start, update, *, emit=None, example=None, feed=None):
    """The tanh cell with a loop_state: ``update(time, output, loop_state)``, ``emit`` and ``feed`` (next input) see the new one."""

    def loop_fn(time, output, state, carried):
        first = output is None
        carried = start if first else update(time, output, carried)
        next_input = at(p.x, time) if feed is None else feed(time, output, carried)
        emitted = example if first else output if emit is None else emit(output, carried)
        return time >= p.lengths, next_input, zeros(B, H) if first else state, emitted, carried

    return raw_rnn(tanh_cell(p), loop_fn)


@program
def counter(p):
    return carrying(p, tf.constant(3), lambda time, output, n: n + 2)


@program
def running_sum(p):
    return carrying(p, zeros(B), lambda time, output, total: total + tf.reduce_sum(output, 1))


@program
def none_keeps(p):
    def loop_fn(time, output, state, carried):
        if output is None:
            return time >= p.lengths, at(p.x, time), zeros(B, H), zeros(H), p.scale * 2
        return time >= p.lengths, at(p.x, time), state, output * carried, None

    return raw_rnn(tanh_cell(p), loop_fn)


Best = namedtuple("Best", "value step")


@program
def nested_loop_state(p):
    def update(time, output, carried):
        value = tf.reduce_sum(output, 1)
        best = carried["pair"][1]
        better = value > best.value
        best = Best(tf.where(better, value, best.value), tf.where(better, time, best.step))
        return {"pair": (carried["pair"][0] + output, best), "n": carried["n"] + 1}

    start = {"n": tf.constant(0), "pair": (zeros(B, H), Best(tf.fill([B], tf.constant(-9.0, F64)), tf.zeros([B], tf.int32)))}
    return carrying(p, start, update)


@program
def array_writes(p):
    array = tf.TensorArray(F64, size=0, dynamic_size=True, element_shape=[B], clear_after_read=False)
    return carrying(p, array, lambda time, output, array: array.write(time - 1, output[:, 0] * 2))


@program
def array_reads(p):
    def feed(time, output, array):
        return at(p.x, time) if output is None else at(p.x, time) + array.read(tf.maximum(time - 3, 0)) @ p.feed

    array = tf.TensorArray(F64, size=0, dynamic_size=True, element_shape=[B, H], clear_after_read=False)
    return carrying(p, array, lambda time, output, array: array.write(time - 1, output), feed=feed)


@program
def average_feedback(p):
    def update(time, output, total):
        return total + output

    def feed(time, output, total):
        return at(p.x, time) + total @ p.feed / tf.cast(tf.maximum(time, 1), F64)

    return carrying(p, zeros(B, H), update, feed=feed)


@program
def decaying_scale(p):
    return carrying(p, p.scale, lambda time, output, scale: scale * 0.5, feed=lambda time, output, scale: at(p.x, time) * (1 + scale))


@program
def visited(p):
    def emit(output, seen):
        return tf.where(seen[:, None], output, -output)

    return carrying(p, tf.zeros([B], tf.bool), lambda time, output, seen: seen | (output[:, 1] > 0.5), emit=emit, example=zeros(H))


@program
def latest_output(p):
    def feed(time, output, last):
        return at(p.x, time) + tf.reduce_mean(last, 0, keepdims=True) @ p.feed

    return carrying(p, zeros(B, H), lambda time, output, last: output, feed=feed)


# test_emits.py


@program
def emit_none_tree(p):
    def step(x, h):
        h = tf.tanh(x @ p.w + h @ p.u + p.b)
        return (h, {"sum": tf.reduce_sum(h, 1), "outer": h[:, :2, None] * h[:, None, 2:]}), h

    cell = Cell(step, (H, {"sum": Scalar, "outer": tf.TensorShape([2, 2])}), H)
    return sequence(cell, p.lengths, zeros(B, H), lambda time: at(p.x, time))


@program
def emit_tokens(p):
    return rows_of(p, emit=lambda time, output, state: tf.argmax(output @ p.out, 1) + 1, example=tf.zeros([], tf.int64))


@program
def emit_mixed(p):
    def emit(time, output, state):
        return {
            "flag": output[:, 2] > -0.5,
            "half": tf.cast(output, tf.float32),
            "whole": tf.cast(output[:, :2] * 10, tf.int32),
            "grid": tf.reshape(output, [B, 2, 2]),
        }

    example = {
        "flag": tf.zeros([], tf.bool), "half": zeros(H, dtype=tf.float32), "whole": zeros(2, dtype=tf.int32), "grid": zeros(2, 2),
    }  # fmt: skip
    return rows_of(p, emit=emit, example=example)


@program
def emit_nested(p):
    def emit(time, output, state):
        return (output, [output[:, :1], {"a": (output * 2, state)}])

    return rows_of(p, emit=emit, example=(zeros(H), [zeros(1), {"a": (zeros(H), zeros(H))}]))


@program
def emit_nothing(p):
    return rows_of(p, emit=lambda time, output, state: (), example=())


@program
def emit_row_scalar(p):
    return rows_of(p, emit=lambda time, output, state: tf.reduce_sum(output, 1), example=zeros())


@program
def emit_projection(p):
    return rows_of(p, emit=lambda time, output, state: output @ p.out, example=zeros(2))


@program
def emit_loop_state(p):
    total = lambda time, output, total: total + output  # noqa: E731
    return carrying(p, zeros(B, H), total, emit=lambda output, total: output * total, example=zeros(H))


@program
def emit_time(p):
    def emit(time, output, state):
        return (tf.fill([B], time), output * tf.cast(time, F64))

    return rows_of(p, emit=emit, example=(tf.zeros([], tf.int32), zeros(H)))


Reading = namedtuple("Reading", "score vector")


@program
def emit_record(p):
    def emit(time, output, state):
        return Reading(vector=output, score=output[:, 0] * output[:, 1])

    return rows_of(p, emit=emit, example=Reading(zeros(), zeros(H)))


# test_states.py

Memory = namedtuple("Memory", "h c")


def leaky(p, x, h, c):
    """One step of a cell with two states, for every way to write them down."""
    c = 0.5 * c + tf.tanh(x @ p.w + h @ p.u + p.b)
    return tf.sin(c), c


def states_of(p, structure, pack, unpack):
    def step(x, state):
        h, c = leaky(p, x, *unpack(state))
        return h, pack(h, c)

    return sequence(Cell(step, H, structure), p.lengths, pack(zeros(B, H), zeros(B, H)), lambda time: at(p.x, time))


@program
def state_record(p):
    return states_of(p, Memory(H, H), Memory, tuple)


@program
def state_dict(p):
    return states_of(p, {"h": H, "c": H}, lambda h, c: {"h": h, "c": c}, lambda state: (state["h"], state["c"]))


@program
def state_list(p):
    return states_of(p, [H, H], lambda h, c: [h, c], tuple)


@program
def state_nested(p):
    def pack(h, c):
        return (Memory(h, {"c": [c]}), h[:, 0])

    return states_of(p, (Memory(H, {"c": [H]}), Scalar), pack, lambda state: (state[0].h, state[0].c["c"][0]))


@program
def fast_weights(p):
    def step(x, state):
        h, fast = state
        h = tf.tanh(x @ p.w + h @ p.u + tf.einsum("bij,bj->bi", fast, h) + p.b)
        return h, (h, 0.9 * fast + 0.3 * h[:, :, None] * h[:, None, :])

    return sequence(Cell(step, H, (H, tf.TensorShape([H, H]))), p.lengths, (p.h0, p.fast0), lambda time: at(p.x, time))


@program
def scalar_leaf(p):
    def step(x, state):
        h, age = state
        h = tf.tanh(x @ p.w + h @ p.u + p.b * age)
        return h, (h, age + 0.5 + 0.1 * tf.reduce_sum(h))

    return sequence(Cell(step, H, (H, Scalar)), p.lengths, (zeros(B, H), zeros()), lambda time: at(p.x, time))


@program
def int_leaf(p):
    def step(x, state):
        h, age = state
        h = tf.tanh(x @ p.w + h @ p.u / tf.cast(1 + age, F64)[:, None] + p.b)
        return h, (h, age + 1)

    return sequence(Cell(step, H, (H, Scalar)), p.lengths, (zeros(B, H), tf.zeros([B], tf.int32)), lambda time: at(p.x, time))


def overriding(p, propose):
    """The tanh cell whose proposed state loop_fn replaces by ``propose(time, state)``."""

    def loop_fn(time, output, state, loop_state):
        state = zeros(B, H) if output is None else propose(time, state)
        return time >= p.lengths, at(p.x, time), state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


@program
def reset_on_time(p):
    return overriding(p, lambda time, state: tf.where(time == 2, tf.zeros_like(state), state))


@program
def reset_rows(p):
    return overriding(p, lambda time, state: tf.where(state[:, :1] < -0.73, tf.zeros_like(state), state))


@program
def teacher_state(p):
    return overriding(p, lambda time, state: p.states[time] + 0.1 * state)


@program
def initial_state(p):
    return sequence(tanh_cell(p), p.lengths, p.h0, lambda time: at(p.x, time))


@program
def scalar_finished(p):
    def loop_fn(time, output, state, loop_state):
        return time >= 4, at(p.x, time), zeros(B, H) if output is None else state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


@program
def sticky(p):
    def loop_fn(time, output, state, loop_state):
        return tf.equal(time, p.lengths), at(p.x, time), zeros(B, H) if output is None else state, output, None

    return raw_rnn(tanh_cell(p), loop_fn)


@program
def last_state(p):
    def loop_fn(time, output, state, loop_state):
        finished = time >= p.lengths
        state = zeros(B, H) if output is None else tf.where(finished[:, None], state * 10, state)
        emit = None if output is None else tf.where(finished[:, None], output + 5, output)
        return finished, at(p.x, time), state, emit, None

    return raw_rnn(tanh_cell(p), loop_fn)


# test_attention.py


def masked_softmax(scores, lengths):
    mask = tf.range(S)[None] < lengths[:, None]
    return tf.nn.softmax(tf.where(mask, scores, tf.constant(-1e30, F64)))


def context(shares, memory):
    return tf.einsum("bs,bsm->bm", shares, memory)


@program
def bahdanau(p):
    def loop_fn(time, output, state, loop_state):
        if output is None:
            start = tf.concat([at(p.x, time), zeros(B, M)], 1)
            return time >= p.lengths, start, (zeros(B, H), zeros(B, H)), (zeros(H), zeros(S)), None
        scores = tf.reduce_sum(tf.tanh(p.memory + (output @ p.query)[:, None]) * p.score, 2)
        shares = masked_softmax(scores, p.memory_lengths)
        next_input = tf.concat([at(p.x, time), context(shares, p.memory)], 1)
        return time >= p.lengths, next_input, state, (output, shares), None

    return raw_rnn(lstm_cell(p), loop_fn)


@program
def luong(p):
    gru = gru_step(p)

    def step(x, state):
        h, attended = state
        h, _ = gru(tf.concat([x, attended], 1), h)
        shares = masked_softmax(tf.einsum("bm,bsm->bs", h @ p.query, p.memory), p.memory_lengths)
        attended = tf.tanh(tf.concat([h, context(shares, p.memory)], 1) @ p.mix)
        return attended, (h, attended)

    return sequence(Cell(step, H, (H, H)), p.lengths, (zeros(B, H), zeros(B, H)), lambda time: at(p.x, time))


@program
def coverage(p):
    def loop_fn(time, output, state, covered):
        if output is None:
            return time >= p.lengths, tf.concat([at(p.x, time), zeros(B, M)], 1), zeros(B, H), zeros(S), zeros(B, S)
        keys = p.memory + (output @ p.query)[:, None] + covered[:, :, None] * p.cover
        shares = masked_softmax(tf.reduce_sum(tf.tanh(keys) * p.score, 2), p.memory_lengths)
        next_input = tf.concat([at(p.x, time), context(shares, p.memory)], 1)
        return time >= p.lengths, next_input, state, tf.minimum(shares, covered), covered + shares

    return raw_rnn(tanh_cell(p), loop_fn)


@program
def monotonic(p):
    def loop_fn(time, output, state, place):
        if output is None:
            state, place = zeros(B, H), zeros(B)
        else:
            place = place + tf.exp(tf.linalg.matvec(output, p.move))
        shares = masked_softmax(-((tf.range(S, dtype=F64)[None] - place[:, None]) ** 2), p.memory_lengths)
        next_input = tf.concat([at(p.x, time), context(shares, p.memory)], 1)
        return time >= p.lengths, next_input, state, output, place

    return raw_rnn(tanh_cell(p), loop_fn)


# test_cells.py


@program
def stacked(p):
    lower, upper = lstm_step(p, "a_"), lstm_step(p, "b_")

    def step(x, state):
        middle, first = lower(x, state[0])
        output, second = upper(middle, state[1])
        return output, (first, second)

    zero = (zeros(B, H), zeros(B, H))
    return sequence(Cell(step, H, ((H, H), (H, H))), p.lengths, (zero, zero), lambda time: at(p.x, time))


@program
def residual(p):
    cell = tanh_cell(p)

    def step(x, h):
        output, h = cell(x, h)
        return output + x, h

    return sequence(Cell(step), p.lengths, zeros(B, H), lambda time: at(p.x, time))


@program
def zoneout(p):
    cell = tanh_cell(p)

    def step(x, h):
        output, new = cell(x, h)
        return output, p.keep * h + (1 - p.keep) * new

    return sequence(Cell(step), p.lengths, p.h0, lambda time: at(p.x, time))


@program
def layer_norm(p):
    def step(x, h):
        a = x @ p.w + h @ p.u
        mean, variance = tf.nn.moments(a, [1], keepdims=True)
        h = tf.tanh((a - mean) / tf.sqrt(variance + 1e-5) * p.gain + p.b)
        return h, h

    return sequence(Cell(step), p.lengths, zeros(B, H), lambda time: at(p.x, time))


@program
def projected(p):
    def step(x, state):
        h, c = state
        i, f, g, o = tf.split(x @ tf.transpose(p.weight_ih) + h @ tf.transpose(p.weight_hh) + p.bias, 4, 1)
        c = tf.clip_by_value(tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g), -0.3, 0.3)
        h = (tf.sigmoid(o) * tf.tanh(c)) @ p.proj
        return tf.concat([h, c], 1), (h, c)

    return sequence(Cell(step, 2 + H, (2, H)), p.lengths, (zeros(B, 2), zeros(B, H)), lambda time: at(p.x, time))


@program
def peephole(p):
    w, u, b, c = weights(p, "")

    def step(x, state):
        h, cell = state
        i, f, g, o = tf.split(x @ tf.transpose(w) + b + h @ tf.transpose(u) + c, 4, 1)
        new = tf.sigmoid(f + cell * p.peep[1]) * cell + tf.sigmoid(i + cell * p.peep[0]) * tf.tanh(g)
        h = tf.sigmoid(o + new * p.peep[2]) * tf.tanh(new)
        return h, (h, new)

    return sequence(Cell(step, H, (H, H)), p.lengths, (zeros(B, H), zeros(B, H)), lambda time: at(p.x, time))


def with_variables(cell, input_size, **variables):
    """A cell of TensorFlow's with our tensors for its weights, so that the tape sees them."""
    cell.build(tf.TensorShape([B, input_size]))
    for name, value in variables.items():
        object.__setattr__(cell, name, value)
    return cell


@program
def tf_basic_lstm(p):
    cell = tf.compat.v1.nn.rnn_cell.BasicLSTMCell(H, forget_bias=1.0, state_is_tuple=True, dtype=F64)
    with_variables(cell, D, _kernel=p.kernel, _bias=p.bias)
    state0 = tf.compat.v1.nn.rnn_cell.LSTMStateTuple(zeros(B, H), zeros(B, H))
    return sequence(cell, p.lengths, state0, lambda time: at(p.x, time))


@program
def tf_gru(p):
    cell = tf.compat.v1.nn.rnn_cell.GRUCell(H, dtype=F64)
    with_variables(
        cell, D, _gate_kernel=p.kernel, _gate_bias=p.bias, _candidate_kernel=p.candidate, _candidate_bias=p.candidate_bias
    )  # fmt: skip
    return sequence(cell, p.lengths, zeros(B, H), lambda time: at(p.x, time))


@program
def nested_loop(p):
    inner_w = p.w

    def inner_cell(words, h):
        h = tf.tanh(words @ inner_w + h @ p.iu)
        return h, h

    def step(x, h):
        words, lengths = x

        def loop_fn(time, output, state, loop_state):
            next_input = words[:, tf.minimum(time, 2)]
            return time >= lengths, next_input, h if output is None else state, output, None

        _, encoded, _ = raw_rnn(Cell(inner_cell), loop_fn)
        h = tf.tanh(encoded + h @ p.u + p.b)
        return h, h

    return sequence(Cell(step), p.lengths, zeros(B, H), lambda time: (at(p.x, time), at(p.inner_lengths, time)))


@program
def dynamic_rnn(p):
    state0 = (zeros(B, H), zeros(B, H))
    outputs, state = tf_rnn.dynamic_rnn(lstm_cell(p), p.x, p.lengths, initial_state=state0)
    return tf.transpose(outputs, [1, 0, 2]), state, None


@program
def dynamic_rnn_clipped(p):
    outputs, state = tf_rnn.dynamic_rnn(tanh_cell(p), p.x, p.lengths, initial_state=p.h0, time_major=True)
    return outputs, state, None


@program
def bidirectional(p):
    outputs, states = tf_rnn.bidirectional_dynamic_rnn(
        Cell(gru_step(p, "a_")), Cell(gru_step(p, "b_")), p.x, p.lengths, zeros(B, H), zeros(B, H), time_major=True
    )
    return outputs, states, None


# test_numbers.py


def in_dtype(p, dtype):
    p = SimpleNamespace(**{key: tf.cast(value, dtype) if value.dtype.is_floating else value for key, value in vars(p).items()})
    return sequence(tanh_cell(p), p.lengths, tf.zeros([B, H], dtype), lambda time: at(p.x, time))


@program
def float32(p):
    return in_dtype(p, tf.float32)


@program
def float16(p):
    return in_dtype(p, tf.float16)


@program
def bfloat16(p):
    return in_dtype(p, tf.bfloat16)


@program
def infinite_rows(p):
    def read(time):
        bad = tf.constant([[np.nan], [np.inf], [-np.inf], [np.nan]], F64)
        return tf.where((time >= p.lengths)[:, None], bad, at(p.x, time))

    return sequence(lstm_cell(p), p.lengths, (zeros(B, H), zeros(B, H)), read)


def main():
    missing = set(PROGRAMS) ^ set(RECORDED)
    assert not missing, f"inputs without a program, or the other way round: {sorted(missing)}"
    found = {f"{name}/{path}": leaf for name in PROGRAMS for path, leaf in record(name).items()}
    for path, leaf in found.items():
        bad = leaf.dtype.kind == "f" and not np.isfinite(leaf).all()
        assert not bad or path.startswith("infinite_rows/grad"), f"{path} is not finite"
    # NaN gradients of finished rows are TensorFlow's, not ours to repeat.
    found = {path: leaf for path, leaf in found.items() if not path.startswith("infinite_rows/grad")}
    out = Path(__file__).with_name("programs.npz")
    np.savez_compressed(out, **found)
    print(f"{len(RECORDED)} programs, {len(found)} arrays, {out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
