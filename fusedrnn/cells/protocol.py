"""What a cell is: the RNNCell base class, and the check that turns torch's cells and foreign ones into something a loop can call."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .. import trees
from ..trees import Tree


class RNNCell(nn.Module):
    """A recurrent cell: one step of a recurrence.

    A subclass sets two attributes and defines ``forward``; `raw_rnn` accepts any callable object that has the two.

    Attributes:
        output_size: a tree of int or ``torch.Size``: the shape of the output without its batch dimension. An int ``n`` stands for
            ``torch.Size([n])``; ``torch.Size(())`` is one number a row.
        state_size: the same of the state. In the state itself ``torch.Size(())`` is a leaf ``[B]``.

    Calling it as ``cell(inputs, state)`` with leaves ``[B, ...]`` returns ``(output, new_state)``.
    """

    output_size: Tree
    state_size: Tree

    def forward(self, inputs: Tree, state: Tree) -> tuple[Tree, Tree]:
        raise NotImplementedError(f"{type(self).__name__} must define forward(inputs, state) -> (output, new_state)")

    def zero_state(self, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tree:
        """The state of zeros: a leaf ``[batch_size, *size]`` for each leaf of ``state_size``.

        Args:
            batch_size: number of rows.
            dtype: None takes that of the cell's first parameter, of a cell without parameters torch's default.
            device: None takes that of the cell's first parameter, of a cell without parameters the CPU.
        """
        return _zeros(self, batch_size, dtype, device)


class _TorchCell:
    """``torch.nn.LSTMCell``, ``GRUCell`` or ``RNNCell``, called with the signature of `RNNCell`. An LSTM's state is ``(h, c)``."""

    def __init__(self, module: nn.RNNCellBase) -> None:
        self.module = module
        self.output_size = module.hidden_size
        self.state_size = (module.hidden_size, module.hidden_size) if isinstance(module, nn.LSTMCell) else module.hidden_size
        self._lstm = isinstance(module, nn.LSTMCell)

    def __call__(self, inputs: torch.Tensor, state: Tree) -> tuple[torch.Tensor, Tree]:
        new = self.module(inputs, state)
        return (new[0], new) if self._lstm else (new, new)

    def parameters(self) -> Any:
        return self.module.parameters()


_TORCH_CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def as_cell(cell: Any, name: str = "cell") -> Any:
    """The cell as a loop calls it.

    Raises:
        TypeError: it has no ``output_size``, no ``state_size`` or cannot be called; the message names what is missing.
    """
    if type(cell) in _TORCH_CELLS and "output_size" not in cell.__dict__:
        return _TorchCell(cell)
    missing = [attribute for attribute in ("output_size", "state_size") if not hasattr(cell, attribute)]
    if missing and isinstance(cell, _TORCH_CELLS):  # a subclass may follow the protocol itself
        return _TorchCell(cell)
    if not callable(cell):
        missing.append("a call (inputs, state) -> (output, new_state)")
    if not missing and not isinstance(cell, type):
        return cell
    if isinstance(cell, type):
        found = f"{cell.__name__} is a class: pass an instance, {cell.__name__}(...)"
    else:
        found = f"{type(cell).__name__} lacks {', '.join(missing)}"
    if isinstance(cell, nn.RNNBase):
        found += f"; it runs whole sequences: use torch.nn.{type(cell).__name__}Cell"
    elif inspect.isroutine(cell):
        found += "; are cell and loop_fn swapped?"
    raise TypeError(f"{name} must be an RNNCell, a torch.nn.LSTMCell, GRUCell or RNNCell, or an object like them; {found}")


def parameters(cell: Any) -> Iterable[torch.Tensor]:
    """The parameters of a cell, none where it does not tell them."""
    return cell.parameters() if callable(getattr(cell, "parameters", None)) else ()


def size_shape(size: Any, name: str = "size") -> tuple[int, ...]:
    """The shape that one leaf of ``output_size`` or ``state_size`` stands for."""
    if isinstance(size, torch.Size):
        return tuple(size)
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return (size,)
    raise TypeError(f"{name} must be an int or a torch.Size, got {size!r}")


def zero_state(cell: Any, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tree:
    """The zero state of any cell: by its own ``zero_state`` where it has one, else as `RNNCell.zero_state`.

    A foreign cell's method may be TensorFlow's, ``zero_state(batch_size, dtype)``.
    """
    method = getattr(cell, "zero_state", None)
    if callable(method):
        try:
            inspect.signature(method).bind(batch_size, dtype, device)
        except TypeError:
            return method(batch_size, dtype)
        return method(batch_size, dtype, device)
    return _zeros(cell, batch_size, dtype, device)


def _zeros(cell: Any, batch_size: int, dtype: torch.dtype | None, device: torch.device | str | None) -> Tree:
    first = next(iter(parameters(cell)), None)
    dtype = dtype or (torch.get_default_dtype() if first is None else first.dtype)
    device = device or (None if first is None else first.device)
    cell = as_cell(cell)
    return trees.map_leaves(
        lambda size: torch.zeros((batch_size, *size_shape(size, "state_size")), dtype=dtype, device=device), cell.state_size
    )
