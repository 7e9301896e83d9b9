"""TensorArrays that a step carries, while it is traced. In: writes and reads; out: the writes, for the program to repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..tensor_array import TensorArray
from . import ops
from .refusal import NotCapturable, here


class TracedArray(TensorArray):
    """Stands for a carried TensorArray and remembers what the step writes.

    Args:
        original: the array itself.
        content: its elements, traced, ``[N, ...]``; None where their shape or dtype is not known yet.
        looked_past: is told which reads look past the end.
        writes: index and value of what this step has written so far.
    """

    def __init__(
        self,
        original: TensorArray,
        content: torch.Tensor | None,
        looked_past: Callable[[torch.Tensor], None],
        writes: tuple[tuple[torch.Tensor, torch.Tensor], ...] = (),
    ) -> None:
        super().__init__(original.dtype, 0, element_shape=None if content is None else tuple(content.shape[1:]))
        self.original = original
        self.content = content
        self.looked_past = looked_past
        self.writes = writes

    def write(self, i: int | torch.Tensor, value: Any) -> TracedArray:
        index, value = _index(i), torch.as_tensor(value)
        self._admit(value, "TensorArray.write")
        new = TracedArray(self.original, self.content, self.looked_past, (*self.writes, (index, value)))
        new._dtype = self._dtype or value.dtype
        new._element_shape = tuple(value.shape) if self._element_shape is None else self._element_shape
        return new

    def read(self, i: int | torch.Tensor) -> torch.Tensor:
        if self.content is None:
            raise NotCapturable("the loop reads a TensorArray of unknown elements: give it dtype and element_shape", here())
        index = _index(i)
        before = torch.full((), self.content.shape[0], dtype=torch.int64)
        size = before
        for at, _ in self.writes:
            size = torch.maximum(size, at + 1)
        index = torch.where(index < 0, size, index)  # there is nothing at a negative position
        self.looked_past(index >= size)
        index = torch.minimum(index, size - 1)
        element = torch.where(index < before, ops.read(self.content, index, 0), 0)
        for at, value in self.writes:
            element = torch.where(index == at, value, element)
        return element

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotCapturable("the loop asks a TensorArray that it carries for more than one element: carry a tensor in the state", here())

    stack = size = unstack = gather = concat = split = _loaded = _refuse


def _index(i: int | torch.Tensor) -> torch.Tensor:
    index = i if isinstance(i, torch.Tensor) else torch.tensor(i, dtype=torch.int64)
    if index.ndim or index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"i must be an int or a 0-d integer tensor, got {index.dtype} of shape {list(index.shape)}")
    return index.to(torch.int64)
