"""Loops as the persistent lowering meets them. In: a cell and a loop_fn; out: the captured program, its step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fusedrnn
from fusedrnn import branches, contract, feedback, frames
from fusedrnn.capture import cache
from fusedrnn.capture.program import Program
from fusedrnn.cells.protocol import as_cell
from fusedrnn.contract import Call
from fusedrnn.executors.persistent import known_sizes
from fusedrnn.lowering.gpu.step import Step, prepared, step_of

CELLS = {
    "lstm": fusedrnn.LSTMCell,
    "gru": nn.GRUCell,
    "tf gru": lambda inputs, size: fusedrnn.GRUCell(inputs, size, reset_after=False),
    "rnn": nn.RNNCell,
}


def captured_of(cell: Any, loop_fn: Any) -> tuple[Program, list[torch.Tensor]]:
    """The captured program, and the closed-over tensors."""
    call = Call(as_cell(cell), loop_fn)
    with torch.no_grad(), frames.running() as frame, branches.taken():
        program, tensors = cache.captured(call, frame, contract.start(call, frame))
    return program, tensors


def program_of(cell: Any, loop_fn: Any) -> Program:
    """The captured program."""
    return captured_of(cell, loop_fn)[0]


def step(cell: Any, loop_fn: Any) -> Step:
    """The step as the persistent executor has it."""
    program, tensors = captured_of(cell, loop_fn)
    return step_of(prepared(program), known_sizes(program, tensors))


def start_of(kind: str, batch: int, size: int, dtype: torch.dtype = torch.float32) -> Any:
    h = torch.zeros(batch, size, dtype=dtype)
    return (h, h) if kind == "lstm" else h


def reading(kind: str, inputs: int = 6, size: int = 20, batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A loop that reads a sequence."""
    x, lengths, start = torch.zeros(4, batch, inputs, dtype=dtype), torch.full((batch,), 4), start_of(kind, batch, size, dtype)

    def loop_fn(time: Any, output: Any, state: Any, loop_state: Any) -> Any:
        return time >= lengths, x[time], start if output is None else state, output, None

    return CELLS[kind](inputs, size).to(dtype), loop_fn


def several(count: int, size: int = 16, batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A loop in which so many vectors of this step are multiplied, and their products added up."""
    torch.manual_seed(1)
    weights = [(torch.randn(size, size) / size).to(dtype) for _ in range(count)]
    x, lengths, start = torch.randn(5, batch, size).to(dtype), torch.arange(batch) % 6, torch.zeros(batch, size, dtype=dtype)

    class Cell:
        output_size = state_size = size

        def __call__(self, inputs: Any, state: Any) -> Any:
            parts = [torch.tanh(inputs * (place + 1) + state) for place in range(count)]
            new = sum(part @ weight for part, weight in zip(parts, weights, strict=True)) + parts[0]
            return new, new

    def loop_fn(time: Any, output: Any, state: Any, loop_state: Any) -> Any:
        return time >= lengths, x[time], start if output is None else state, output, None

    return Cell(), loop_fn


def greedy(kind: str, inputs: int = 6, size: int = 20, words: int = 12, batch: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    """A loop that feeds its best token back."""
    table, project = nn.Embedding(words, inputs).to(dtype), nn.Linear(size, words).to(dtype)
    return CELLS[kind](inputs, size).to(dtype), feedback.greedy(table, project, 0, 3, start_of(kind, batch, size, dtype), 9)
