"""TensorArray: tensors written one at a time and stacked once; functional, so that it can travel through a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import reads


class TensorArray:
    """A sequence of tensors of one dtype and, unless `split` made it, one shape.

    Every operation leaves its array as it was. Writing the next element of the newest version costs O(1).

    Args:
        dtype: of the elements; None takes it from the first one written.
        size: how many elements exist from the start, as zeros. Writing beyond the end makes the array longer.
        element_shape: shape of an element, None for a dimension that is not known; None takes it from the first one written.

    Raises:
        TypeError: dtype is no torch.dtype, size no int.
        ValueError: size is negative.
    """

    def __init__(self, dtype: torch.dtype | None = None, size: int = 0, *, element_shape: Sequence[int | None] | None = None) -> None:
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype must be a torch.dtype or None, got {dtype!r}")
        count = _integer("size", size)
        if count < 0:
            raise ValueError(f"size must not be negative, got {count}")
        self._dtype = dtype
        self._element_shape = None if element_shape is None else tuple(element_shape)
        self._device: torch.device | None = None
        # Versions share one list; each sees the first _size of it. Only the newest may append to it.
        self._elements: list[torch.Tensor | None] = [None] * count
        self._size = count
        self._whole: torch.Tensor | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """The elements' dtype, None while unknown."""
        return self._dtype

    @property
    def element_shape(self) -> tuple[int | None, ...] | None:
        """The elements' shape, None while unknown."""
        return self._element_shape

    def size(self) -> int:
        """The number of elements."""
        return self._size

    def __len__(self) -> int:
        return self.size()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dtype={self._dtype}, size={self._size}, element_shape={self._element_shape})"

    def write(self, i: int | torch.Tensor, value: torch.Tensor) -> TensorArray:
        """The array with ``value`` at position ``i``; what lies between the old end and ``i`` is zeros.

        Args:
            i: an int or a 0-d integer tensor, not negative.
            value: a tensor of the array's dtype and element shape; a Python number is taken as ``torch.as_tensor`` does.

        Raises:
            IndexError: ``i`` is negative.
            TypeError: ``i`` is no integer, or ``value`` has another dtype.
            ValueError: ``value`` has another shape.
        """
        at = _integer("i", i)
        if at < 0:
            raise IndexError(f"TensorArray.write: i must not be negative, got {at}")
        if not isinstance(value, (torch.Tensor, bool, int, float, complex)):
            raise TypeError(f"TensorArray.write({at}, ...): the value must be a tensor or a number, got {type(value).__name__}")
        value = torch.as_tensor(value)
        self._admit(value, f"TensorArray.write({at}, ...)")
        new = self._copy(value)
        if at == self._size == len(new._elements):
            new._elements.append(value)
        else:
            new._elements = new._elements[: self._size] + [None] * (at + 1 - self._size)
            new._elements[at] = value
        new._size = max(self._size, at + 1)
        return new

    def read(self, i: int | torch.Tensor) -> torch.Tensor:
        """The element at position ``i``.

        Inside a loop_fn a position past the end gives the last element (of an empty array: zeros), and the loop raises IndexError if
        a row that is unfinished after that call did so; so does a negative position. Elsewhere both raise IndexError.
        """
        if isinstance(i, torch.Tensor) and reads.is_traced():
            return reads.traced_element(self._filled("TensorArray.read") if self._whole is None else self._whole, i)
        at = _integer("i", i)
        if not 0 <= at < self.size():
            shape = (self._size, *(-1 if d is None else d for d in self._element_shape or ()))
            if not reads.past_end(at, shape):
                negative = f"TensorArray.read: i must not be negative, got {at}"
                raise IndexError(negative if at < 0 else f"TensorArray.read: position {at} of an array of {self._size}")
            if not self._size:
                return self._zeros("TensorArray.read")
            at = self._size - 1
        if self._whole is not None and self._whole.requires_grad and not torch.is_grad_enabled():
            return self._whole[at]
        element = self._loaded()[at]
        return self._zeros("TensorArray.read") if element is None else element

    def stack(self) -> torch.Tensor:
        """All elements as one tensor ``[size, *element_shape]``.

        Raises:
            ValueError: the elements have different shapes, or there is none and ``element_shape`` was not given.
        """
        if self._whole is None:
            filled = self._filled("TensorArray.stack")
            if self._whole is None:  # fetching may have brought it
                whole = self._stacked(filled)
                if not torch.is_grad_enabled() and any(element.requires_grad for element in filled):
                    return whole  # kept, it would be without gradients for whoever asks next
                self._whole = whole
            self._elements = []  # the whole is enough: do not hold everything twice
        return self._whole

    def unstack(self, tensor: torch.Tensor) -> TensorArray:
        """An array of this dtype whose elements are ``tensor[0]``, ``tensor[1]``, ..."""
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"TensorArray.unstack: expected a tensor, got {type(tensor).__name__}")
        if tensor.ndim == 0:
            raise ValueError("TensorArray.unstack: expected a tensor of rank 1 or more, got a scalar")
        if self._dtype not in (None, tensor.dtype):
            raise TypeError(f"TensorArray.unstack: this array holds {self._dtype}, got {tensor.dtype}; convert one of them")
        new = TensorArray(tensor.dtype, 0, element_shape=tensor.shape[1:])
        if not _compatible(self._element_shape, tensor.shape[1:]):
            raise ValueError(f"TensorArray.unstack: elements have shape {list(self._element_shape or ())}, got {list(tensor.shape[1:])}")
        new._device = tensor.device
        new._size, new._whole = tensor.shape[0], tensor
        return new

    def gather(self, indices: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """The elements at ``indices`` (a vector) as one tensor ``[len(indices), *element_shape]``.

        Raises:
            TypeError: ``indices`` is no vector of integers.
            IndexError: as `read`.
        """
        index = torch.as_tensor(indices)
        if index.numel() == 0 and not isinstance(indices, torch.Tensor):
            index = index.to(torch.int64)
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
            raise TypeError(f"TensorArray.gather: indices must be a vector of integers, got {index.dtype} of shape {list(index.shape)}")
        return torch.stack([self.read(i) for i in index.tolist()]) if len(index) else self.stack()[:0]

    def concat(self) -> torch.Tensor:
        """All elements (rank 1 or more) joined along their first dimension.

        Raises:
            ValueError: the elements are scalars, or there is none and ``element_shape`` was not given.
        """
        elements = self._filled("TensorArray.concat")
        if any(element.ndim == 0 for element in elements):
            raise ValueError("TensorArray.concat: the elements are scalars; use stack()")
        return torch.cat(elements) if elements else self.stack().flatten(0, 1)

    def split(self, value: torch.Tensor, lengths: torch.Tensor | Sequence[int]) -> TensorArray:
        """An array of this dtype whose elements are ``value`` cut along its first dimension into pieces of these lengths.

        Raises:
            ValueError: the lengths do not add up to ``value.shape[0]``.
        """
        if self._dtype not in (None, value.dtype):
            raise TypeError(f"TensorArray.split: this array holds {self._dtype}, got {value.dtype}; convert one of them")
        sizes = torch.as_tensor(lengths).tolist()
        if value.ndim == 0 or sum(sizes) != value.shape[0]:
            raise ValueError(f"TensorArray.split: lengths {sizes} do not add up to the first dimension of shape {list(value.shape)}")
        pieces = torch.split(value, sizes)
        first = sizes[0] if len(set(sizes)) == 1 else None
        new = TensorArray(value.dtype, 0, element_shape=(first, *value.shape[1:]))
        for piece in pieces:
            new._admit(piece, "TensorArray.split")
        new._elements, new._size, new._device = list(pieces), len(pieces), value.device
        return new

    def _copy(self, value: torch.Tensor) -> TensorArray:
        """A version that shares the elements, with what is still unknown taken from ``value``."""
        elements = self._loaded()
        known = self._element_shape
        new = TensorArray(self._dtype or value.dtype, 0, element_shape=tuple(value.shape) if known is None else known)
        new._elements, new._device = elements, self._device or value.device
        return new

    def _admit(self, value: torch.Tensor, where: str) -> None:
        if self._dtype not in (None, value.dtype):
            raise TypeError(f"{where}: the array holds {self._dtype}, got {value.dtype}; convert the value")
        if not _compatible(self._element_shape, value.shape):
            raise ValueError(f"{where}: elements have shape {list(self._element_shape or ())}, got {list(value.shape)}")

    def _loaded(self) -> list[torch.Tensor | None]:
        """The elements; taken apart first where only the whole is known (one unbind: its backward is one stack)."""
        if len(self._elements) < self._size and self._whole is not None:
            elements: list[torch.Tensor | None] = list(self._whole.unbind(0))
            if self._whole.requires_grad and not torch.is_grad_enabled():
                return elements  # kept, they would be without gradients for whoever asks next
            self._elements = elements
        return self._elements

    def _filled(self, where: str) -> list[torch.Tensor]:
        elements = self._loaded()[: self._size]
        return [self._zeros(where) if element is None else element for element in elements]

    def _stacked(self, elements: list[torch.Tensor]) -> torch.Tensor:
        if not elements:
            zeros = self._zeros("TensorArray.stack")
            return zeros.new_empty((0, *zeros.shape))
        if any(element.shape != elements[0].shape for element in elements):
            raise ValueError("TensorArray.stack: the elements have different shapes; use concat()")
        return torch.stack(elements)

    def _zeros(self, where: str) -> torch.Tensor:
        if self._dtype is None or self._element_shape is None or None in self._element_shape:
            raise ValueError(f"{where}: an element that was never written has no shape; give TensorArray dtype and element_shape")
        return torch.zeros([d or 0 for d in self._element_shape], dtype=self._dtype, device=self._device)


class EmitArray(TensorArray):
    """What a loop emitted: a TensorArray whose content and length are fetched at the first `stack`, `size`, `read` or ``len``.

    Args:
        fetch: gives the steps' tensors, each ``[B, ...]``, or all of them as one ``[T_run, B, ...]``.
        lengths: gives the ``lengths``.
        truncated: gives the ``truncated``.
        dtype: of the emit.
        element_shape: ``[B, ...]`` of one step.
        device: where the zeros of a loop without steps are made.
    """

    def __init__(
        self,
        fetch: Callable[[], list[torch.Tensor] | torch.Tensor],
        lengths: Callable[[], torch.Tensor],
        truncated: Callable[[], torch.Tensor],
        *,
        dtype: torch.dtype | None,
        element_shape: Sequence[int] | None,
        device: torch.device,
    ) -> None:
        super().__init__(dtype, 0, element_shape=element_shape)
        self._device = device
        self._fetch: Callable[[], list[torch.Tensor] | torch.Tensor] | None = fetch
        self._get_lengths, self._get_truncated = lengths, truncated

    @property
    def lengths(self) -> torch.Tensor:
        """``[B]`` int32: the steps until each row finished, that step included."""
        return self._get_lengths()

    @property
    def truncated(self) -> torch.Tensor:
        """``[B]`` bool: the rows that ``max_steps`` cut off before they finished."""
        return self._get_truncated()

    def size(self) -> int:
        """The number of steps that ran."""
        self._bring()
        return self._size

    def stack(self) -> torch.Tensor:
        self._bring()  # all steps may come as one tensor: it is not taken apart
        return super().stack()

    def __repr__(self) -> str:
        return f"EmitArray(dtype={self._dtype}, element_shape={self._element_shape})"  # no size: asking would wait for the device

    def _bring(self) -> None:
        if self._fetch is not None:
            steps, self._fetch = self._fetch(), None
            self._size = steps.shape[0] if isinstance(steps, torch.Tensor) else len(steps)  # a symbol while it is traced
            if isinstance(steps, torch.Tensor):
                self._whole = steps
            else:
                self._elements = list(steps)

    def _loaded(self) -> list[torch.Tensor | None]:
        self._bring()
        return super()._loaded()


def _integer(name: str, value: Any) -> int:
    if isinstance(value, torch.Tensor):
        if value.ndim or value.is_floating_point() or value.dtype == torch.bool:
            raise TypeError(f"{name} must be an int or a 0-d integer tensor, got {value.dtype} of shape {list(value.shape)}")
        return int(value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int or a 0-d integer tensor, got {value!r}")
    return int(value.__index__())


def _compatible(known: tuple[int | None, ...] | None, shape: Sequence[int]) -> bool:
    return known is None or (len(known) == len(shape) and all(k in (None, s) for k, s in zip(known, shape, strict=True)))
