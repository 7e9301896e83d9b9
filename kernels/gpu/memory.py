"""Memory that forked programs share. In: CPU tensors; out: addresses of their copies, which all children of this process see.

An anonymous shared mapping, kept from launch to launch: no file, no name to clean up, and pages that are there already.
"""

from __future__ import annotations

import bisect
import mmap
import os
from collections.abc import Iterable

import numpy as np
import torch

_ALIGNMENT = 256  # as CUDA's allocator gives; also the gap at which a run past the end of a tensor is seen
_arenas: dict[int, tuple[mmap.mmap, torch.Tensor]] = {}  # by process: a forked child must not use its parent's


class Ranges:
    """The addresses that a kernel may touch."""

    def __init__(self, ranges: Iterable[tuple[int, int, str]]) -> None:
        """``ranges``: first byte, byte after the last, name of the argument."""
        self._ranges = sorted(ranges)
        ends: list[int] = []
        starts: list[int] = []
        for start, end, _ in self._ranges:  # views of one memory overlap: their union counts
            if ends and start <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            else:
                starts.append(start)
                ends.append(end)
        self._starts, self._ends = starts, ends

    def check(self, addresses: np.ndarray, mask: np.ndarray, size: int, verb: str) -> None:
        """Raises IndexError where an address under the mask, with the size bytes from it on, is not within one range."""
        if not np.all(mask):
            addresses = np.broadcast_to(addresses, np.broadcast_shapes(addresses.shape, mask.shape))[np.broadcast_to(mask, addresses.shape)]
        if not addresses.size:
            return
        low, high = int(addresses.min()), int(addresses.max())
        at = bisect.bisect_right(self._starts, low) - 1
        if at >= 0 and high + size <= self._ends[at]:
            return
        for address in np.unique(addresses).tolist():
            at = bisect.bisect_right(self._starts, address) - 1
            if at < 0 or address + size > self._ends[at]:
                raise IndexError(f"the kernel {verb} {size} bytes {self._place(address)}")

    def _place(self, address: int) -> str:
        if not self._ranges:
            return "though it has no tensors"
        start, end, name = min(self._ranges, key=lambda it: max(it[0] - address, address - it[1], 0))
        return f"at byte {address - start} of {name}, which has {end - start}"


def extent(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    if not tensor.numel():
        return 0
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


def share(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors' copies in shared memory, with the same shapes and strides; views of one memory stay so. Valid until the next call."""
    storages: dict[int, tuple[int, torch.Tensor]] = {}
    size = _ALIGNMENT
    for tensor in tensors.values():
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in storages:
            data = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
            storages[storage.data_ptr()] = size, data
            size += -(-data.numel() // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT
    arena = _arena(size)
    for offset, data in storages.values():
        arena[offset : offset + data.numel()].copy_(data)
    result = {}
    for name, tensor in tensors.items():
        offset = storages[tensor.untyped_storage().data_ptr()][0] if tensor.untyped_storage().nbytes() else 0
        start = offset + tensor.storage_offset() * tensor.element_size()
        typed = arena[start : start + max(extent(tensor), tensor.element_size())].view(tensor.dtype)
        result[name] = typed.as_strided(tensor.shape, tensor.stride())
    return result


def _arena(size: int) -> torch.Tensor:
    mapping, tensor = _arenas.get(os.getpid(), (None, None))
    if mapping is None or tensor is None or len(mapping) < size:
        pages = mmap.mmap(-1, max(1 << 20, 1 << (size - 1).bit_length()))
        # `_arenas` keeps the mapping; of an outgrown one its tensor does, while someone holds it
        tensor = torch.frombuffer(pages, dtype=torch.uint8)
        _arenas.clear()
        _arenas[os.getpid()] = pages, tensor
    return tensor
