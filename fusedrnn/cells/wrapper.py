"""What the wrappers of one cell share: the cell, its sizes and its zero state."""

from __future__ import annotations

from typing import Any

import torch

from ..trees import Tree
from .protocol import RNNCell, as_cell, zero_state


class CellWrapper(RNNCell):
    """A cell around a cell, with its sizes. By itself it only passes on; a subclass calls the inner cell as ``self._step``.

    Args:
        cell: an `RNNCell`, ``torch.nn.LSTMCell``, ``GRUCell`` or ``RNNCell``, or an object like them.

    Attributes:
        cell: the cell as it was given.

    Raises:
        TypeError: ``cell`` is no cell.
    """

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell = cell
        self.output_size = self._step.output_size
        self.state_size = self._step.state_size

    @property
    def _step(self) -> Any:
        return as_cell(self.cell)  # on each use: kept as an attribute it would be a second name of the same module

    def forward(self, inputs: Tree, state: Tree) -> tuple[Tree, Tree]:
        return self._step(inputs, state)  # type: ignore[no-any-return]

    def zero_state(self, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tree:
        return zero_state(self._step, batch_size, dtype, device)
