"""What a kernel has to fit into. In: nothing; out: this machine's CUDA devices as numbers, and Triton's version."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Device:
    """One CUDA device.

    Attributes:
        index: as in ``cuda:0``.
        name: as the driver gives it.
        capability: compute capability, (major, minor).
        sms: streaming multiprocessors.
        shared_memory_per_block: bytes one block may use after opting in.
        registers_per_sm: 32-bit registers.
        l2_bytes: of the level-2 cache.
        memory_bytes: of the device.
    """

    index: int
    name: str
    capability: tuple[int, int]
    sms: int
    shared_memory_per_block: int
    registers_per_sm: int
    l2_bytes: int
    memory_bytes: int


class Triton(NamedTuple):
    """Triton's version, or None and in one line why it cannot be imported."""

    version: str | None
    reason: str | None


def devices() -> list[Device]:
    """The CUDA devices that torch sees; none without a GPU, a driver or a torch built for CUDA."""
    return [device(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def device(index: int) -> Device:
    """The CUDA device of that index."""
    found: Any = torch.cuda.get_device_properties(index)  # torch's stubs leave some of these out
    return Device(
        index=index,
        name=found.name,
        capability=(found.major, found.minor),
        sms=found.multi_processor_count,
        shared_memory_per_block=found.shared_memory_per_block_optin,
        registers_per_sm=found.regs_per_multiprocessor,
        l2_bytes=found.L2_cache_size,
        memory_bytes=found.total_memory,
    )


def triton() -> Triton:
    """Whether Triton can be imported here."""
    try:
        version = importlib.import_module("triton").__version__
    except Exception as error:  # a broken install raises anything, from ImportError to OSError
        return Triton(None, f"{type(error).__name__}: {error}".splitlines()[0])
    return Triton(str(version), None)


def is_recording(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the device's current stream."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
