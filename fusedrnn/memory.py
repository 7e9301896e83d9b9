"""How much memory there is. In: a device; out: bytes."""

from __future__ import annotations

import os

import torch


def free(device: torch.device) -> int:
    """What is free now, about."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return 1 << 32
