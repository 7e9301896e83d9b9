"""The C++ of a loop."""

from __future__ import annotations

import re

import torch

import fusedrnn
from fusedrnn.kernels.cpu.build import FLAGS_LINE
from fusedrnn.lowering.source import loop_source

from .gpu.loops import program_of

B, D, H = 4, 3, 8


def source_of(cell, state):
    x, ends = torch.zeros(6, B, D), torch.tensor([6, 2, 0, 3])

    def loop_fn(time, output, old, loop_state):
        return time >= ends, x[time], state if output is None else old, output, None

    program = program_of(cell, loop_fn)
    return loop_source(program, program.batch).text


def test_a_layer_norm_is_compiled_as_everything_else_is():
    """Its loops over gates are nested: GCC's fault is in those that choose."""
    zeros = torch.zeros(B, H)
    text = source_of(fusedrnn.LSTMCell(D, H, layer_norm=True), (zeros, zeros))
    assert not text.startswith(FLAGS_LINE)


def test_what_many_loops_read_is_made_once():
    """c, which a layer norm reads three times."""
    zeros = torch.zeros(B, H)
    text = source_of(fusedrnn.LSTMCell(D, H, layer_norm=True), (zeros, zeros))
    assert len(re.findall(r"frnn::sigmoid\(", text)) == 3
    assert len(re.findall(r"frnn::tanh\(", text)) == 2


def test_nested_choices_are_compiled_with_care():
    class Cell:
        output_size = state_size = H

        def __call__(self, inputs, state):
            halves = state.view(-1, 2, H // 2)
            chosen = torch.where(halves > 0, halves.cumsum(1), -halves).view(-1, H)
            return chosen, chosen + inputs.sum(1, keepdim=True)

    assert source_of(Cell(), torch.zeros(B, H)).startswith(FLAGS_LINE)
