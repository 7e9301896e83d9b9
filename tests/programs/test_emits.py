"""Emits: their structure, dtypes and shapes, and what they depend on."""

from __future__ import annotations

from collections import namedtuple

import torch

from .cells import Cell, sequence, tanh_cell, zeros
from .golden import golden
from .inputs import B, H
from .test_loop_state import carrying

Reading = namedtuple("Reading", "score vector")


def emitting(p, raw_rnn, emit, example):
    return raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time], emit=emit, example=example))


@golden("emit_none_tree")
def test_emit_none_tree(p, raw_rnn):
    """None at time 0 stands for cell.output_size, here a tree with a scalar and a matrix a row."""

    def step(x, h):
        h = torch.tanh(x @ p.w + h @ p.u + p.b)
        return (h, {"outer": h[:, :2, None] * h[:, None, 2:], "sum": h.sum(1)}), h

    cell = Cell(step, (H, {"sum": torch.Size([]), "outer": torch.Size([2, 2])}))
    return raw_rnn(cell, sequence(p, lambda time: p.x[time]))


@golden("emit_tokens")
def test_emit_tokens(p, raw_rnn):
    return emitting(p, raw_rnn, lambda time, output, state: (output @ p.out).argmax(1) + 1, torch.tensor(0))


@golden("emit_mixed")
def test_emit_mixed(p, raw_rnn):
    def emit(time, output, state):
        return {
            "flag": output[:, 2] > -0.5,
            "half": output.float(),
            "whole": (output[:, :2] * 10).int(),
            "grid": output.reshape(B, 2, 2),
        }

    example = {"grid": zeros(2, 2), "flag": torch.tensor(True), "whole": torch.ones(2, dtype=torch.int32), "half": torch.full((H,), 7.0)}
    return emitting(p, raw_rnn, emit, example)


@golden("emit_nested")
def test_emit_nested(p, raw_rnn):
    def emit(time, output, state):
        return (output, [output[:, :1], {"a": (output * 2, state)}])

    return emitting(p, raw_rnn, emit, (zeros(H), [zeros(1), {"a": (zeros(H), zeros(H))}]))


@golden("emit_nothing")
def test_emit_nothing(p, raw_rnn):
    result = emitting(p, raw_rnn, lambda time, output, state: (), ())
    assert result[0] == ()
    return result


@golden("emit_row_scalar")
def test_emit_row_scalar(p, raw_rnn):
    return emitting(p, raw_rnn, lambda time, output, state: output.sum(1), zeros())


@golden("emit_projection")
def test_emit_projection(p, raw_rnn):
    return emitting(p, raw_rnn, lambda time, output, state: output @ p.out, zeros(2))


@golden("emit_loop_state")
def test_emit_loop_state(p, raw_rnn):
    loop_fn = carrying(
        p, zeros(B, H), lambda time, output, total: total + output, emit=lambda output, total: output * total, example=zeros(H)
    )  # fmt: skip
    return raw_rnn(tanh_cell(p), loop_fn)


@golden("emit_time")
def test_emit_time(p, raw_rnn):
    return emitting(
        p, raw_rnn, lambda time, output, state: (time.expand(B), output * time), (torch.tensor(0, dtype=torch.int32), zeros(H))
    )  # fmt: skip


@golden("emit_record")
def test_emit_record(p, raw_rnn):
    def emit(time, output, state):
        return Reading(vector=output, score=output[:, 0] * output[:, 1])

    result = emitting(p, raw_rnn, emit, Reading(zeros(), zeros(H)))
    assert type(result[0]) is Reading
    return result
