"""TensorArrays that a step carries, while it is traced. In: writes; out: the writes, as index and value, for the program to repeat."""

from __future__ import annotations

from typing import Any

import torch

from ..tensor_array import TensorArray
from .refusal import NotCapturable, here


class TracedArray(TensorArray):
    """Stands for a carried TensorArray; it remembers what the step writes, and knows nothing of what is in it."""

    def __init__(self, original: TensorArray, writes: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()) -> None:
        super().__init__(original.dtype, 0, element_shape=original.element_shape)
        self.original = original
        self.writes = writes

    def write(self, i: int | torch.Tensor, value: Any) -> TracedArray:
        index = i if isinstance(i, torch.Tensor) else torch.tensor(i, dtype=torch.int64)
        if index.ndim or index.is_floating_point() or index.dtype == torch.bool:
            raise TypeError(f"i must be an int or a 0-d integer tensor, got {index.dtype} of shape {list(index.shape)}")
        value = torch.as_tensor(value)
        self._admit(value, "TensorArray.write")
        new = TracedArray(self.original, (*self.writes, (index, value)))
        new._dtype = self._dtype or value.dtype
        new._element_shape = tuple(value.shape) if self._element_shape is None else self._element_shape
        return new

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotCapturable("the loop looks into a TensorArray that it carries: carry what it needs as a tensor in the state", here())

    read = stack = size = unstack = gather = concat = split = _loaded = _refuse  # type: ignore[assignment]
