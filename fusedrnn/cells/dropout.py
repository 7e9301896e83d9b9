"""The dropout wrapper. In: a cell; out: the cell with dropout on its inputs, output and state while it trains."""

from __future__ import annotations

from typing import Any

import torch

from .. import trees
from ..trees import Tree
from . import checks
from .row_masks import Mask, has_rows, row_masks
from .wrapper import CellWrapper


class DropoutWrapper(CellWrapper):
    """Dropout in training mode: an element is zeroed with probability p, else scaled by 1 / (1 - p). In eval mode it is the cell.

    The probabilities are those of dropping; TensorFlow's ``DropoutWrapper`` takes those of keeping. Order as there: the inputs, then the
    cell, then its new state and, independently, its output. Where a mask comes from: `fusedrnn.random`, so that a row draws the same
    alone, in any batch and in every executor.

    Args:
        cell: any cell.
        input_dropout: in [0, 1), on each float leaf of the inputs.
        output_dropout: in [0, 1), on each float leaf of the output.
        state_dropout: in [0, 1), on each float leaf ``[B, ...]`` of the new state; or a tree of such numbers like the state. TensorFlow
            spares an LSTM's c: that is ``(p, 0.0)`` here.
        variational: one mask for all steps of a loop (Gal and Ghahramani 2016) instead of a new one each step.
        seed: an int, or int64 ``[B]`` with a seed for each row. None takes one from torch's generator for each loop, and outside of a
            loop for each call.

    Raises:
        TypeError, ValueError: a probability outside [0, 1), a state_dropout unlike the state, a seed that is none.
    """

    def __init__(
        self,
        cell: Any,
        *,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        state_dropout: Tree = 0.0,
        variational: bool = False,
        seed: int | torch.Tensor | None = None,
    ) -> None:
        super().__init__(cell)
        self.input_dropout = checks.probability("input_dropout", input_dropout, one=False)
        self.output_dropout = checks.probability("output_dropout", output_dropout, one=False)
        self.state_dropout = state_dropout
        self._state_dropout = checks.probabilities("state_dropout", state_dropout, self.state_size, one=False)
        self.variational = variational
        self.seed = checks.seed(seed)

    def forward(self, inputs: Tree, state: Tree) -> tuple[Tree, Tree]:
        if not self.training:
            return super().forward(inputs, state)
        with row_masks(self.seed, every_step=not self.variational) as mask:
            inputs = trees.map_leaves(lambda leaf: _dropped(leaf, self.input_dropout, mask), inputs)
            output, new_state = self._step(inputs, state)
            leaves, structure = trees.flatten(new_state)
            kept = [_dropped(leaf, p, mask) for leaf, p in zip(leaves, self._state_dropout, strict=True)]
            output = trees.map_leaves(lambda leaf: _dropped(leaf, self.output_dropout, mask), output)
        return output, trees.unflatten(structure, kept)

    def extra_repr(self) -> str:
        return (
            f"input_dropout={self.input_dropout}, output_dropout={self.output_dropout}, state_dropout={self.state_dropout}, "
            f"variational={self.variational}"
        )


def _dropped(leaf: Any, p: float, mask: Mask) -> Any:
    if not p or not has_rows(leaf):
        return leaf
    return torch.where(mask(leaf, 1 - p), leaf / (1 - p), 0.0)
