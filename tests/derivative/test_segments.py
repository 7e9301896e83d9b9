"""Loops that are begun at any step."""

from __future__ import annotations

import torch

import fusedrnn
from fusedrnn.capture.program import Source, Target
from fusedrnn.derivative.segments import segment

from .derived import B, D, H, lstm, program_of


def test_a_read_needs_no_more_than_the_time():
    program, tensors = program_of(*lstm())
    made = segment(program, len(tensors))
    assert made.moved == ()
    assert made.program.sources[-1] == Source("tensor", len(tensors))
    assert Source("inputs") not in made.program.sources


def test_inputs_that_are_fed_back_are_carried_in_the_state():
    cell, state = fusedrnn.GRUCell(H, H), torch.zeros(B, H)

    def loop_fn(time, output, old, _):
        return time >= 3, state if output is None else output * 2, state if output is None else old, output, None

    program, tensors = program_of(cell, loop_fn)
    made = segment(program, len(tensors))
    assert made.moved == (Source("inputs", 0),)
    assert Target("state", 1) in made.program.targets


def test_so_are_tokens():
    cell, state, table = fusedrnn.GRUCell(D, H), torch.zeros(B, H), torch.nn.Embedding(7, D)
    project = torch.nn.Linear(H, 7)

    def loop_fn(time, output, old, _):
        tokens = torch.zeros(B, dtype=torch.int64) if output is None else project(output).argmax(-1)
        return time >= 3, table(tokens), state if output is None else old, output, None

    program, tensors = program_of(cell, loop_fn)
    assert segment(program, len(tensors)).moved == (Source("token", 0),)
