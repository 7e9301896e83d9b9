"""Operators of a step as `torch.vmap` takes them. In: what a step calls; out: functions that do the same for all steps at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..capture import ops
from .graph import aten


def _read(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """``x.select(dim, index)``, past the end the last element, without looking at the index."""
    size = x.shape[dim]
    index = torch.where(index < 0, index + size, index).clamp(0, size - 1)
    return torch.index_select(x, dim, index.reshape(1).to(torch.int64)).squeeze(dim)


def _size(x: torch.Tensor, dim: int) -> int:
    """The operator is not taken apart."""
    return x.shape[dim]


def _slice_scatter(
    x: torch.Tensor, source: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> torch.Tensor:
    """`torch.vmap` takes a begin before the end and an end behind it for places."""
    begin, end, step = slice(start, end, step).indices(x.shape[dim])
    made: torch.Tensor = aten.slice_scatter.default(x, source, dim, begin, end, step)
    return made


VECTORISED: dict[Any, Callable[..., Any]] = {ops.read: _read, aten.sym_size.int: _size, aten.slice_scatter.default: _slice_scatter}
