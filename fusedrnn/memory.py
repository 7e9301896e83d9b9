"""How much memory there is. In: a device; out: bytes."""

from __future__ import annotations

from pathlib import Path

import torch

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
