"""torch.compile of a whole loop: `torch.while_loop`, whose carry holds the outputs, since it collects none."""

from __future__ import annotations

from typing import Any

import torch
from torch._higher_order_ops.while_loop import while_loop
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..case import Missing, Run
from ..loops import Greedy, Reads, stepped


def reads(work: Reads) -> Run:
    """The outputs ``[T, B, H]`` are a buffer in the carry."""
    step, (leaves, spec), x = stepped(work.cell), tree_flatten(work.state), work.x

    def body(time: torch.Tensor, outputs: torch.Tensor, *state: torch.Tensor) -> Any:
        output, new = step(x.index_select(0, time[None]).squeeze(0), tree_unflatten(list(state), spec))
        return time + 1, outputs.index_copy(0, time[None], output[None]), *(leaf.clone() for leaf in tree_flatten(new)[0])

    def run() -> Any:
        carry = (torch.zeros((), dtype=torch.int64), torch.zeros_like(x), *leaves)
        return while_loop(lambda time, *rest: time < len(x), body, carry)[1]

    return _compiled(run)


def greedy(work: Greedy) -> Run:
    """Until the last step, or every row has ended."""
    step, (leaves, spec), rows = stepped(work.cell), tree_flatten(work.state), work.rows

    def body(time: torch.Tensor, done: torch.Tensor, token: torch.Tensor, tokens: torch.Tensor, *state: torch.Tensor) -> Any:
        output, new = step(work.embedding(token), tree_unflatten(list(state), spec))
        token = work.project(output).argmax(-1)
        tokens = tokens.index_copy(0, time[None], token[None])
        return time + 1, done | (token == work.end), token, tokens, *(leaf.clone() for leaf in tree_flatten(new)[0])

    def run() -> Any:
        carry = (
            torch.zeros((), dtype=torch.int64), torch.zeros(rows, dtype=torch.bool), torch.full((rows,), work.start),
            torch.zeros(work.steps, rows, dtype=torch.int64), *leaves,
        )  # fmt: skip
        return while_loop(lambda time, done, *rest: (time < work.steps) & ~done.all(), body, carry)[3]

    return _compiled(run)


def _compiled(run: Any) -> Run:
    compiled = torch.compile(run, dynamic=False, fullgraph=True)
    try:
        compiled()
    except Exception as error:  # torch's compiler has many of its own
        raise Missing(
            f"torch.compile of while_loop fails here: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
        ) from error
    return Run(compiled, lambda: [compiled()])
