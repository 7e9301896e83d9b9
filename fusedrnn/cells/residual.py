"""The residual wrapper. In: a cell; out: the cell whose output has its inputs added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import trees
from ..trees import Tree
from .wrapper import CellWrapper


class ResidualWrapper(CellWrapper):
    """Adds the inputs to the cell's output (He et al. 2015; Wu et al. 2016). The state is the cell's own.

    Args:
        cell: any cell.
        residual_fn: ``residual_fn(inputs, output) -> output`` instead of the sum.

    Raises:
        TypeError, ValueError: when called without residual_fn, inputs and output whose structures or shapes differ.
    """

    def __init__(self, cell: Any, residual_fn: Callable[[Tree, Tree], Tree] | None = None) -> None:
        super().__init__(cell)
        if residual_fn is not None and not callable(residual_fn):
            raise TypeError(f"residual_fn must be callable or None, got {type(residual_fn).__name__}")
        self.residual_fn = residual_fn

    def forward(self, inputs: Tree, state: Tree) -> tuple[Tree, Tree]:
        output, new_state = self._step(inputs, state)
        return (self.residual_fn or _sum)(inputs, output), new_state


def _sum(inputs: Tree, output: Tree) -> Tree:
    leaves, structure = trees.flatten(output)
    found = trees.match(structure, inputs, "inputs (a residual needs the structure of the cell's output)")
    return trees.unflatten(structure, [_added(x, y) for x, y in zip(found, leaves, strict=True)])


def _added(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.shape != y.shape:
        raise ValueError(
            f"a residual needs inputs and output of one shape, got inputs {trees.describe(x)} and output {trees.describe(y)}; "
            "project one of them, or pass residual_fn"
        )
    return x + y
