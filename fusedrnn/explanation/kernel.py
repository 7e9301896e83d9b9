"""What the persistent kernel of a loop would be. In: a program and a batch size; out: its plan in facts, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..capture.program import Program
from ..executors.persistent import known_sizes
from ..kernels.gpu import limits
from ..lowering.gpu.rule import Unlowered
from ..lowering.operators import Unlowered as Undecomposed
from ..plan.cost import shared_bytes
from ..plan.planner import planned
from .facts import Kernel, Refusal, line_of_code

_ARCH = 90  # what is planned for where there is no GPU


def kernel(program: Program, batch: int, device: torch.device, tensors: Sequence[torch.Tensor]) -> Kernel | Refusal:
    """The plan that the model finds fastest, for the loop's CUDA device or else for an H100."""
    here = device.type == "cuda"
    known = limits.of_device(device) if here else limits.of_arch(_ARCH)
    try:
        plan = planned(program, batch, known, "hilo", known_sizes(program, tensors))[0]
    except (Unlowered, Undecomposed) as refused:
        return Refusal(refused.reason, None, refused.location, line_of_code(refused.location))
    schedule = plan.schedule
    return Kernel(
        device=known.name, here=here, groups=plan.groups(batch), programs=plan.programs, batch_tile=plan.batch_tile,
        phases=schedule.phases, barriers=len(schedule.barriers) if plan.programs > 1 else 0,
        resident_bytes=sum(tile.bytes for tile in schedule.tiles if tile.resident),
        streamed_bytes=sum(tile.bytes for tile in schedule.tiles if not tile.resident),
        shared_bytes=shared_bytes(schedule, plan.batch_tile, plan.precision == "hilo"),
        microseconds=round(plan.microseconds, 2), lines=plan.lines(batch)[2:],
    )  # fmt: skip
