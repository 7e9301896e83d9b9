"""The zoneout wrapper. In: a cell; out: the cell whose state keeps some of its old values."""

from __future__ import annotations

from typing import Any

import torch

from .. import trees
from ..trees import Tree
from . import checks
from .row_masks import has_rows, row_masks
from .wrapper import CellWrapper


class ZoneoutWrapper(CellWrapper):
    """Zoneout (Krueger et al. 2017): in training mode each element of the state keeps its old value with probability p; in eval mode it
    is the mean of that, ``p * old + (1 - p) * new``.

    Where the cell's output is one of its new state's tensors (an LSTM's h is, by identity), the output is the zoned-out one.

    Args:
        cell: any cell.
        zoneout: p in [0, 1] for each float leaf ``[B, ...]`` of the state, or a tree of such numbers like the state: ``(0.1, 0.5)`` for
            an LSTM's (h, c). Other leaves are never zoned out.
        seed: as in `DropoutWrapper`.

    Raises:
        TypeError, ValueError: a probability outside [0, 1], a tree unlike the state, a seed that is none.
    """

    def __init__(self, cell: Any, zoneout: Tree = 0.0, *, seed: int | torch.Tensor | None = None) -> None:
        super().__init__(cell)
        self.zoneout = zoneout
        self._zoneout = checks.probabilities("zoneout", zoneout, self.state_size, one=True)
        self.seed = checks.seed(seed)

    def forward(self, inputs: Tree, state: Tree) -> tuple[Tree, Tree]:
        with row_masks(self.seed) as mask:
            output, new_state = self._step(inputs, state)
            new, structure = trees.flatten(new_state)
            old = trees.match(structure, state, "state")
            zoned = []
            for before, after, p in zip(old, new, self._zoneout, strict=True):
                if not p or not has_rows(after):
                    zoned.append(after)
                elif self.training:
                    zoned.append(torch.where(mask(after, p), before, after))
                else:
                    zoned.append(p * before + (1 - p) * after)
        place = {id(leaf): i for i, leaf in enumerate(new)}
        output = trees.map_leaves(lambda leaf: zoned[place[id(leaf)]] if id(leaf) in place else leaf, output)
        return output, trees.unflatten(structure, zoned)

    def extra_repr(self) -> str:
        return f"zoneout={self.zoneout}"
