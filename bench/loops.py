"""Loops that are run on any backend. In: sizes and a dtype; out: a cell with its data, in that dtype or another, and what runs give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

import fusedrnn
from fusedrnn import feedback

from .case import Run

Step = Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]]


class Coupled(nn.Module):
    """A cell of one's own, which no library has a kernel for: one gate both lets in and forgets, it sees c, and c is normed on its way out.

    ::

        i, g, o = W_ih x + W_hh h + b
        i       = sigmoid(i + w_c * c)
        c       = c + i * (tanh(g) - c)
        h       = sigmoid(o) * c / sqrt(mean(c * c) + 1e-5)
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.output_size, self.state_size = hidden, (hidden, hidden)
        for name, shape in {
            "weight_ih": (3 * hidden, inputs),
            "weight_hh": (3 * hidden, hidden),
            "bias": (3 * hidden,),
            "weight_c": (hidden,),
        }.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-(hidden**-0.5), hidden**-0.5)))

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        h, c = state
        i, g, o = (F.linear(x, self.weight_ih, self.bias) + F.linear(h, self.weight_hh)).chunk(3, 1)
        i = torch.sigmoid(i + self.weight_c * c)
        c = c + i * (torch.tanh(g) - c)
        h = torch.sigmoid(o) * c * torch.rsqrt(c.square().mean(-1, keepdim=True) + 1e-5)
        return h, (h, c)


CELLS: dict[str, Any] = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "gru before": lambda inputs, hidden: fusedrnn.GRUCell(inputs, hidden, reset_after=False),
    "rnn": nn.RNNCell,
    "layer norm lstm": lambda inputs, hidden: fusedrnn.LSTMCell(inputs, hidden, layer_norm=True),
    "coupled": Coupled,
}
PAIR = ("lstm", "layer norm lstm", "coupled")  # whose state is two vectors


def stepped(cell: Any) -> Step:
    """A cell as one would call it without fusedrnn: output and state."""
    if isinstance(cell, fusedrnn.MultiRNNCell):
        steps = [stepped(layer) for layer in cell.cells]

        def stacked(x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
            new = []
            for step, below in zip(steps, state, strict=True):
                x, after = step(x, below)
                new.append(after)
            return x, tuple(new)

        return stacked
    if isinstance(cell, fusedrnn.LSTMCell) and cell.layer_norm:
        return _layer_norm_lstm(cell)
    if isinstance(cell, nn.LSTMCell):

        def lstm(x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
            new = cell(x, state)
            return new[0], new

        return lstm
    if isinstance(cell, nn.GRUCell | nn.RNNCell):
        return lambda x, state: (cell(x, state),) * 2
    return cell  # type: ignore[no-any-return]


def _layer_norm_lstm(cell: Any) -> Step:
    """Without the checks of fusedrnn's cell, whose time would count as the peer's."""

    def step(x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        h, c = state
        gates = (F.linear(x, cell.weight_ih) + F.linear(h, cell.weight_hh)).unflatten(1, (4, -1))
        normed = F.layer_norm(gates, gates.shape[-1:], eps=cell.layer_norm_eps).flatten(1)
        i, f, g, o = torch.addcmul(cell.gate_shift, normed, cell.gate_gain).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        c = F.layer_norm(c, c.shape[-1:], cell.cell_gain, cell.cell_shift, cell.layer_norm_eps)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)

    return step


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

    @property
    def count(self) -> int:
        """Steps."""
        return len(self.x)

    def fused(self) -> Run:
        loop = self.loop("native").warmup()
        return Run(lambda: loop()[0].stack(), lambda: [loop()[0].stack()])

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
    def made(cls, cell: str, size: int, words: int, rows: int, steps: int, dtype: torch.dtype, layers: int = 1) -> Greedy:
        made = CELLS[cell](size, size).to(dtype)
        state = _random(cell, size, rows, dtype)
        if layers > 1:
            made = fusedrnn.MultiRNNCell([made, *(CELLS[cell](size, size).to(dtype) for _ in range(layers - 1))])
            state = (state, *(_random(cell, size, rows, dtype) for _ in range(layers - 1)))
        return cls(made, nn.Embedding(words, size).to(dtype), nn.Linear(size, words).to(dtype), 0, words, state, steps)

    @property
    def rows(self) -> int:
        return len(torch.utils._pytree.tree_leaves(self.state)[0])

    @property
    def count(self) -> int:
        """Tokens: no row ends before the last step, where ``end`` is past the vocabulary."""
        return self.rows * self.steps

    def fused(self) -> Run:
        loop = self.loop("native").warmup()
        return Run(lambda: loop()[0].stack(), lambda: [loop()[0].stack()])

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
        state, found, step = self.state, [], stepped(self.cell)
        before = torch.full_like(tokens[0], self.start)
        for token in tokens:
            output, state = step(self.embedding(before), state)
            found.append(self.project(output))
            before = token
        return torch.stack(found)

    def disagreement(self, tokens: torch.Tensor, others: torch.Tensor) -> str | None:
        """What is wrong between two decodes ``[T, B]``: where they part, both tokens must be as good, to the rounding of a product."""
        if tokens.shape != others.shape:
            return f"tokens have shape {list(tokens.shape)}, the peer's {list(others.shape)}"
        differing = (tokens != others).any(0).nonzero().flatten().tolist()
        for row in differing:
            step = int((tokens[:, row] != others[:, row]).nonzero()[0])
            logits = self.row(row).logits(tokens[: step + 1, row : row + 1])[-1, 0]
            one, other = logits[tokens[step, row]].item(), logits[others[step, row]].item()
            if abs(one - other) > 1e-4 * max(1.0, abs(one)):
                return f"row {row} has token {int(tokens[step, row])} at step {step}, the peer {int(others[step, row])}"
        return None


def zeros(cell: str, size: int, rows: int, dtype: torch.dtype) -> Any:
    state = torch.zeros(rows, size, dtype=dtype)
    return (state, torch.zeros_like(state)) if cell in PAIR else state


def _random(cell: str, size: int, rows: int, dtype: torch.dtype) -> Any:
    state = tuple(torch.randn(rows, size).tanh().to(dtype) for _ in range(2 if cell in PAIR else 1))
    return state if cell in PAIR else state[0]


def _cast(state: Any, dtype: torch.dtype) -> Any:
    return tree_map(lambda part: part.to(dtype), state)


def _row(state: Any, row: int) -> Any:
    return tree_map(lambda part: part[row : row + 1].contiguous(), state)


def plan_of(loop: fusedrnn.Loop) -> dict[str, Any]:
    """How the loop is laid out, and the microseconds of a step by the planner's model."""
    kernel = loop.explain().facts.step.kernel
    return {
        "programs": kernel.programs, "groups": kernel.groups, "batch_tile": kernel.batch_tile, "barriers": kernel.barriers,
        "streamed_bytes": kernel.streamed_bytes, "model_us": kernel.microseconds,
    }  # fmt: skip
