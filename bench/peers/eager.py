"""torch as it is: nn.LSTM and nn.GRU, and Python loops over a step, eager or under torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..case import Run
from ..loops import Greedy, Reads, stepped


def layer(reads: Reads) -> Run:
    """nn.LSTM or nn.GRU; over sequences of their own lengths, packed."""
    kind: Any = {nn.LSTMCell: nn.LSTM, nn.GRUCell: nn.GRU}[type(reads.cell)]
    module = kind(reads.cell.input_size, reads.cell.hidden_size).to(reads.x.dtype)
    module.load_state_dict({f"{name}_l0": value for name, value in reads.cell.state_dict().items()})
    if reads.lengths is None:
        return Run(lambda: module(reads.x)[0], lambda: [module(reads.x)[0]])

    def packed() -> torch.Tensor:
        sequence = nn.utils.rnn.pack_padded_sequence(reads.x, reads.lengths, enforce_sorted=False)
        found, _ = nn.utils.rnn.pad_packed_sequence(module(sequence)[0], total_length=len(reads.x))
        return found

    return Run(packed, lambda: [packed()])


def loop(reads: Reads) -> Run:
    """A Python loop over the cell; with lengths, under a mask."""
    return _looped(reads, stepped(reads.cell))


def compiled_step(reads: Reads) -> Run:
    """The same loop over ``torch.compile(step)``."""
    return _looped(reads, torch.compile(stepped(reads.cell), dynamic=False))


def _looped(reads: Reads, step: Any) -> Run:
    lengths = None if reads.lengths is None else reads.lengths[:, None]

    def run() -> torch.Tensor:
        state, outputs = reads.state, []
        for time, x in enumerate(reads.x):
            output, new = step(x, state)
            if lengths is not None:
                live = time < lengths
                output = torch.where(live, output, 0)
                new = tuple(torch.where(live, one, old) for one, old in zip(new, state, strict=True))
            state = new
            outputs.append(output)
        return torch.stack(outputs)

    return Run(run, lambda: [run()])


def greedy_loop(greedy: Greedy) -> Run:
    """A Python loop: cell, projection, argmax, embedding, until every row has ended."""
    return _decoded(greedy, _greedy_step(greedy))


def greedy_compiled_step(greedy: Greedy) -> Run:
    """The same loop over ``torch.compile(step)``."""
    return _decoded(greedy, torch.compile(_greedy_step(greedy), dynamic=False))


def _greedy_step(greedy: Greedy) -> Any:
    step = stepped(greedy.cell)

    def one(token: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        output, state = step(greedy.embedding(token), state)
        return greedy.project(output).argmax(-1), state

    return one


def _decoded(greedy: Greedy, step: Any) -> Run:
    def run() -> torch.Tensor:
        token, state = torch.full((greedy.rows,), greedy.start), greedy.state
        done, tokens = torch.zeros(greedy.rows, dtype=torch.bool), []
        for _ in range(greedy.steps):
            token, state = step(token, state)
            tokens.append(token)
            done |= token == greedy.end
            if done.all():
                break
        return torch.stack(tokens)

    return Run(run, lambda: [run()])
