"""Loops that parts run on any backend. In: sizes and a dtype; out: a cell with its data, in that dtype or another, and what runs give."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import fusedrnn
from fusedrnn import feedback

from . import Row

CELLS: dict[str, Any] = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "gru before": lambda inputs, hidden: fusedrnn.GRUCell(inputs, hidden, reset_after=False),
    "rnn": nn.RNNCell,
}


@dataclass
class Reads:
    """A cell over a sequence ``x`` ``[T, B, H]``; the state at its start is zeros, or is given."""

    cell: Any
    x: torch.Tensor
    lengths: torch.Tensor | None
    state: Any

    @classmethod
    def made(cls, cell: str, size: int, rows: int, steps: int, dtype: torch.dtype, lengths: torch.Tensor | None = None) -> Reads:
        return cls(CELLS[cell](size, size).to(dtype), torch.randn(steps, rows, size).to(dtype), lengths, zeros(cell, size, rows, dtype))

    def to(self, dtype: torch.dtype) -> Reads:
        """The same numbers in another dtype."""
        return Reads(copy.deepcopy(self.cell).to(dtype), self.x.to(dtype), self.lengths, _cast(self.state, dtype))

    def row(self, row: int) -> Reads:
        """One row alone."""
        lengths = None if self.lengths is None else self.lengths[row : row + 1]
        return Reads(self.cell, self.x[:, row : row + 1].contiguous(), lengths, _row(self.state, row))

    def loop(self, backend: str) -> fusedrnn.Loop:
        return fusedrnn.compile(self.cell, feedback.sequence(self.x, self.lengths, self.state), backend=backend)


@dataclass
class Greedy:
    """A cell, an embedding and a projection that decode at most ``steps`` tokens; an ``end`` past the vocabulary never comes."""

    cell: Any
    embedding: nn.Embedding
    project: nn.Linear
    start: int
    end: int
    state: Any
    steps: int

    @classmethod
    def made(cls, cell: str, size: int, words: int, rows: int, steps: int, dtype: torch.dtype) -> Greedy:
        made = CELLS[cell](size, size).to(dtype)
        state = tuple(torch.randn(rows, size).tanh().to(dtype) for _ in range(2 if cell == "lstm" else 1))
        return cls(
            made, nn.Embedding(words, size).to(dtype), nn.Linear(size, words).to(dtype), 0, words,
            state if cell == "lstm" else state[0], steps,
        )  # fmt: skip

    def to(self, dtype: torch.dtype) -> Greedy:
        parts = [copy.deepcopy(part).to(dtype) for part in (self.cell, self.embedding, self.project)]
        return Greedy(*parts, self.start, self.end, _cast(self.state, dtype), self.steps)  # type: ignore[arg-type]

    def row(self, row: int) -> Greedy:
        return Greedy(self.cell, self.embedding, self.project, self.start, self.end, _row(self.state, row), self.steps)

    def loop(self, backend: str) -> fusedrnn.Loop:
        loop_fn = feedback.greedy(self.embedding, self.project, self.start, self.end, self.state, self.steps)
        return fusedrnn.compile(self.cell, loop_fn, backend=backend)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """What is projected ``[T, B, V]`` when these tokens are fed, whatever the argmax says."""
        state, found = self.state, []
        before = torch.full_like(tokens[0], self.start)
        for token in tokens:
            state = self.cell(self.embedding(before), state)
            found.append(self.project(state[0] if isinstance(state, tuple) else state))
            before = token
        return torch.stack(found)


def zeros(cell: str, size: int, rows: int, dtype: torch.dtype) -> Any:
    state = torch.zeros(rows, size, dtype=dtype)
    return (state, torch.zeros_like(state)) if cell == "lstm" else state


def _cast(state: Any, dtype: torch.dtype) -> Any:
    return tuple(part.to(dtype) for part in state) if isinstance(state, tuple) else state.to(dtype)


def _row(state: Any, row: int) -> Any:
    return tuple(part[row : row + 1].contiguous() for part in state) if isinstance(state, tuple) else state[row : row + 1].contiguous()


def plan_of(loop: fusedrnn.Loop) -> Row:
    """How the loop is laid out, and the microseconds of a step by the planner's model."""
    kernel = loop.explain().facts.step.kernel
    return {
        "programs": kernel.programs, "groups": kernel.groups, "batch_tile": kernel.batch_tile, "barriers": kernel.barriers,
        "streamed_bytes": kernel.streamed_bytes, "model_us": kernel.microseconds,
    }  # fmt: skip
