"""Memory: how much there is, and large pages of it. In: a device, or a tensor; out: bytes."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

_PAGE = 1 << 21  # bytes of a large page of x86-64 and, mostly, of arm64
_WORTH = 4 * _PAGE
_ADVICE = 14  # MADV_HUGEPAGE of Linux's <sys/mman.h>
_UNKNOWN = 1 << 33  # bytes, where the system does not tell


def free(device: torch.device) -> int:
    """What is free now, about."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:  # what the system could give, files that it keeps in memory included
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):  # not Linux
        return _UNKNOWN


def in_large_pages(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor on the CPU, not yet written to, in large pages where the system has them: it maps each page when it is first
    written to, which costs more than to write it."""
    advise = _advise()
    size = tensor.nbytes
    if advise is not None and size >= _WORTH:
        begin = -(-tensor.data_ptr() // _PAGE) * _PAGE
        advise(begin, (tensor.data_ptr() + size - begin) // _PAGE * _PAGE, _ADVICE)  # no more than advice: it may fail
    return tensor


@cache
def _advise() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return function
