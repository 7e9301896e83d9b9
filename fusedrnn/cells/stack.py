"""A stack of cells. In: inputs and a tuple of states; out: the last cell's output and the tuple of new states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .. import trees
from ..trees import Tree
from .protocol import RNNCell, as_cell, zero_state
from .wrapper import CellWrapper


class MultiRNNCell(RNNCell):
    """Cells one above the other: each takes the output of the one below. TensorFlow's ``MultiRNNCell`` with ``state_is_tuple=True``.

    Args:
        cells: at least one `RNNCell`, ``torch.nn.LSTMCell``, ``GRUCell`` or ``RNNCell``, or object like them, the lowest first. One
            that stands there twice shares its weights.

    Attributes:
        cells: an ``nn.ModuleList`` of them.

    Shapes: inputs as the first cell's, output as the last one's; the state is the tuple of the cells' states.

    Raises:
        TypeError: one of them is no cell; when called, a state that is no tuple.
        ValueError: no cells; when called, another number of states.
    """

    def __init__(self, cells: Sequence[Any]) -> None:
        super().__init__()
        if not isinstance(cells, (list, tuple, nn.ModuleList)):
            raise TypeError(f"cells must be a list or tuple of cells, got {type(cells).__name__}")
        if not len(cells):
            raise ValueError("cells must hold at least one cell, got none")
        steps = [as_cell(cell, f"cells[{i}]") for i, cell in enumerate(cells)]
        self.cells = nn.ModuleList(cell if isinstance(cell, nn.Module) else CellWrapper(cell) for cell in cells)
        self.output_size = steps[-1].output_size
        self.state_size = tuple(step.state_size for step in steps)

    def forward(self, inputs: Tree, state: tuple[Tree, ...]) -> tuple[Tree, tuple[Tree, ...]]:
        depth = len(self.cells)
        if type(state) is not tuple:
            raise TypeError(f"state must be a tuple of {depth} states, got {trees.describe(state)}; cell.zero_state makes one")
        if len(state) != depth:
            raise ValueError(f"state must hold {depth} states, one for each cell, got {len(state)}: {trees.describe(state)}")
        output, states = inputs, []
        for cell, below in zip(self.cells, state, strict=True):
            output, new = as_cell(cell)(output, below)
            states.append(new)
        return output, tuple(states)

    def zero_state(self, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tree:
        return tuple(zero_state(as_cell(cell), batch_size, dtype, device) for cell in self.cells)
