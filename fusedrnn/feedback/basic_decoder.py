"""BasicDecoder: a cell and a loop_fn as a decoder for `dynamic_decode`."""

from __future__ import annotations

from typing import Any

import torch

from .. import trees
from ..cells.protocol import as_cell
from ..contract import LoopFn
from ..trees import Tree


class BasicDecoder:
    """Steps a cell and asks a loop_fn what follows.

    Args:
        cell: as for `raw_rnn`.
        loop_fn: without loop_state, and with an example emit at time 0, as the builders of `fusedrnn.feedback` make it;
            ``emit="both"`` gives TensorFlow's ``BasicDecoderOutput(rnn_output, sample_id)``.

    Raises:
        ValueError: the loop_fn uses loop_state or gives no example emit.
    """

    tracks_own_finished = False

    def __init__(self, cell: Any, loop_fn: LoopFn) -> None:
        self.cell = as_cell(cell)
        self.loop_fn = loop_fn
        finished, inputs, state, example, loop_state = loop_fn(torch.zeros((), dtype=torch.int32), None, None, None)
        if loop_state is not None:
            raise ValueError("BasicDecoder takes a loop_fn without loop_state; run this one with raw_rnn")
        if example is None or None in trees.leaves(example):
            raise ValueError("BasicDecoder needs the example emit at time 0 (None stands for the cell's output); give one, or use raw_rnn")
        self._start = (finished, inputs, state)
        self.output_size = trees.map_leaves(lambda leaf: leaf.shape, example)
        self.output_dtype = trees.map_leaves(lambda leaf: leaf.dtype, example)

    def initialize(self) -> tuple[torch.Tensor, Tree, Tree]:
        return self._start

    def step(self, time: torch.Tensor, inputs: Tree, state: Tree) -> tuple[Tree, Tree, Tree, torch.Tensor]:
        output, cell_state = self.cell(inputs, state)
        finished, next_inputs, next_state, emit, _ = self.loop_fn(time + 1, output, cell_state, None)
        return emit, next_state, next_inputs, finished
