"""What a loop returns, whichever executor ran it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import torch

from .trees import Tree

Fetch = Callable[[], torch.Tensor]


class _Values(NamedTuple):
    emit_ta: Tree
    final_state: Tree
    final_loop_state: Tree


class Result(_Values):
    """``(emit_ta, final_state, final_loop_state)``, with the rows' lengths beside it: a loop that emits nothing has them too.

    Args:
        lengths, truncated: give the tensors of that name when they are asked for.
        executor: the name of the executor that ran the loop.
    """

    _lengths: Fetch
    _truncated: Fetch
    executor: str

    def __new__(cls, emit_ta: Tree, final_state: Tree, final_loop_state: Tree, lengths: Fetch, truncated: Fetch, executor: str) -> Self:
        result = super().__new__(cls, emit_ta, final_state, final_loop_state)
        result._lengths, result._truncated, result.executor = lengths, truncated, executor
        return result

    @property
    def lengths(self) -> torch.Tensor:
        """``[B]`` int32: the steps until each row finished, that step included."""
        return self._lengths()

    @property
    def truncated(self) -> torch.Tensor:
        """``[B]`` bool: the rows that ``max_steps`` cut off before they finished."""
        return self._truncated()
