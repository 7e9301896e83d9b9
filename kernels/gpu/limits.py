"""What a persistent kernel has to fit into. In: a CUDA device or a compute capability; out: its limits as numbers.

The numbers of `of_arch` are of one product of each compute capability, so that kernels can be planned and compiled without one. Sources:
CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability" (registers, threads, shared memory), and NVIDIA's
whitepapers and data sheets of the A100 SXM4 80 GB, H100 SXM5 and B200 (multiprocessors, level-2 cache, memory bandwidth).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import device as _device

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one device gives.

    Attributes:
        name: of the device.
        arch: compute capability, 90 for sm_90.
        sms: streaming multiprocessors.
        shared_bytes: that one block may use, after opting in.
        registers: 32-bit registers of a multiprocessor.
        registers_per_thread: the most.
        threads: the most of a block.
        l2_bytes: of the level-2 cache.
        bandwidth: of the device's memory, bytes a second.
    """

    name: str
    arch: int
    sms: int
    shared_bytes: int
    registers: int
    registers_per_thread: int
    threads: int
    l2_bytes: int
    bandwidth: float


_KNOWN = {
    80: Limits("A100", 80, 108, 163 * KIB, 65536, 255, 1024, 40 * MIB, 2.039e12),
    90: Limits("H100", 90, 132, 227 * KIB, 65536, 255, 1024, 50 * MIB, 3.35e12),
    100: Limits("B200", 100, 148, 227 * KIB, 65536, 255, 1024, 126 * MIB, 8.0e12),
}


def of_arch(arch: int) -> Limits:
    """The limits of the A100 (80), the H100 (90; the H200 differs in its bandwidth alone) or the B200 (100).

    Raises:
        ValueError: another compute capability.
    """
    if arch not in _KNOWN:
        raise ValueError(f"no limits are known for compute capability {arch}: known are {sorted(_KNOWN)}")
    return _KNOWN[arch]


def of_device(device: torch.device) -> Limits:
    """The limits of a CUDA device of this machine, as its driver gives them.

    Raises:
        ValueError: not a CUDA device.
    """
    if device.type != "cuda":
        raise ValueError(f"limits are of CUDA devices, got {device}")
    found = _device.device(torch.cuda.current_device() if device.index is None else device.index)
    arch = found.capability[0] * 10 + found.capability[1]
    near = _KNOWN[max((known for known in _KNOWN if known <= arch), default=80)]  # for what torch does not tell
    return Limits(
        name=found.name,
        arch=arch,
        sms=found.sms,
        shared_bytes=found.shared_memory_per_block,
        registers=found.registers_per_sm,
        registers_per_thread=near.registers_per_thread,
        threads=near.threads,
        l2_bytes=found.l2_bytes,
        bandwidth=near.bandwidth,
    )
