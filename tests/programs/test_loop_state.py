"""loop_state: carried beside the state, never frozen."""

from __future__ import annotations

from collections import namedtuple

import torch

from fusedrnn import TensorArray

from .cells import real, tanh_cell, zeros
from .golden import golden
from .inputs import B, H

Best = namedtuple("Best", "value step")


def carrying(p, start, update, *, emit=None, example=None, feed=None):
    """The tanh cell's loop with a loop_state: ``update(time, output, loop_state)``; ``emit`` and ``feed`` see the new one."""

    def loop_fn(time, output, state, carried):
        finished = time >= p.lengths
        if output is None:
            return finished, p.x[time] if feed is None else feed(time, output, start), zeros(B, H), example, start
        carried = update(time, output, carried)
        next_input = p.x[time] if feed is None else feed(time, output, carried)
        return finished, next_input, state, output if emit is None else emit(output, carried), carried

    return loop_fn


@golden("counter")
def test_counter(p, raw_rnn):
    start = torch.tensor(3, dtype=torch.int32)
    return raw_rnn(tanh_cell(p), carrying(p, start, lambda time, output, n: n + 2))


@golden("running_sum")
def test_running_sum(p, raw_rnn):
    """Finished rows still add their raw output, and their gradient flows."""
    return raw_rnn(tanh_cell(p), carrying(p, zeros(B), lambda time, output, total: total + output.sum(1)))


@golden("none_keeps")
def test_none_keeps(p, raw_rnn):
    def loop_fn(time, output, state, carried):
        if output is None:
            return time >= p.lengths, p.x[time], zeros(B, H), zeros(H), p.scale * 2
        return time >= p.lengths, p.x[time], state, output * carried, None

    return raw_rnn(tanh_cell(p), loop_fn)


@golden("nested_loop_state")
def test_nested_loop_state(p, raw_rnn):
    def update(time, output, carried):
        value = output.sum(1)
        total, best = carried["pair"]
        better = value > best.value
        best = Best(torch.where(better, value, best.value), torch.where(better, time, best.step))
        return {"pair": (total + output, best), "n": carried["n"] + 1}

    best = Best(torch.full((B,), -9.0, dtype=real()), torch.zeros(B, dtype=torch.int32))
    start = {"n": torch.tensor(0, dtype=torch.int32), "pair": (zeros(B, H), best)}
    return raw_rnn(tanh_cell(p), carrying(p, start, update))


@golden("array_writes")
def test_array_writes(p, raw_rnn):
    array = TensorArray(real(), element_shape=[B])
    return raw_rnn(tanh_cell(p), carrying(p, array, lambda time, output, array: array.write(time - 1, output[:, 0] * 2)))


@golden("array_reads", not_native=True, not_persistent="a TensorArray that the loop writes and reads")
def test_array_reads(p, raw_rnn):
    """A skip connection: the output of two steps ago joins the input."""

    def feed(time, output, array):
        return p.x[time] if output is None else p.x[time] + array.read((time - 3).clamp(min=0)) @ p.feed

    array = TensorArray(real(), element_shape=[B, H])
    return raw_rnn(tanh_cell(p), carrying(p, array, lambda time, output, array: array.write(time - 1, output), feed=feed))


@golden("average_feedback")
def test_average_feedback(p, raw_rnn):
    def feed(time, output, total):
        return p.x[time] + total @ p.feed / time.clamp(min=1)

    return raw_rnn(tanh_cell(p), carrying(p, zeros(B, H), lambda time, output, total: total + output, feed=feed))


@golden("decaying_scale")
def test_decaying_scale(p, raw_rnn):
    feed = lambda time, output, scale: p.x[time] * (1 + scale)  # noqa: E731
    return raw_rnn(tanh_cell(p), carrying(p, p.scale, lambda time, output, scale: scale * 0.5, feed=feed))


@golden("visited")
def test_visited(p, raw_rnn):
    def update(time, output, seen):
        return seen | (output[:, 1] > 0.5)

    def emit(output, seen):
        return torch.where(seen[:, None], output, -output)

    return raw_rnn(tanh_cell(p), carrying(p, torch.zeros(B, dtype=torch.bool), update, emit=emit, example=zeros(H)))


@golden("latest_output")
def test_latest_output(p, raw_rnn):
    """Rows mix: each is fed the mean output of all, finished ones included."""
    feed = lambda time, output, last: p.x[time] + last.mean(0, keepdim=True) @ p.feed  # noqa: E731
    return raw_rnn(tanh_cell(p), carrying(p, zeros(B, H), lambda time, output, last: output, feed=feed))
