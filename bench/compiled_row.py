"""One kernel, compiled with no GPU. In: a configuration and a compute capability; out: a row of what it asks of the device."""

from __future__ import annotations

import time
from typing import Any

import torch

from fusedrnn.plan.choice import chosen
from fusedrnn.plan.measured import measured
from fusedrnn.plan.planner import planned

from .configurations import Configuration
from .programs import program


def row(configuration: Configuration, arch: int) -> dict[str, Any]:
    """The configuration as it is shipped for that device, which `fusedrnn.plan.choice.chosen` decides, and its numbers.

    Raises:
        Unlowered, NotCapturable: it has no kernel.
    """
    from fusedrnn.kernels.gpu import limits  # they import Triton
    from fusedrnn.kernels.gpu.ttgir import loads_in_step_loop

    began = time.perf_counter()
    torch.manual_seed(0)
    device, precision = limits.of_arch(arch), configuration.precision if configuration.dtype == "float32" else "tf32"
    made, sizes = program(configuration)
    candidates = planned(made, configuration.B, device, precision, sizes)
    choice = chosen(candidates, lambda plan: measured(plan, configuration.B, arch), device.shared_bytes)
    plan, numbers, text, compiled = choice.plan, choice.measured.statistics, choice.measured.source, choice.measured.binary
    resident = {name for tile, name in text.weights if tile.resident}
    loads = loads_in_step_loop(compiled.binary.asm["ttgir"], compiled.arguments)
    launches = -(-configuration.B // (plan.batch_tile * plan.groups(configuration.B)))
    return identity(configuration, arch) | {
        "registers": numbers.registers,
        "spill_bytes": numbers.spill_bytes,
        "shared_bytes": numbers.shared_bytes,
        "resident": plan.resident,
        "in_loop_weight_loads": numbers.in_loop_weight_loads,
        "barriers_per_step": barriers(text.text),
        "resident_weight_loads": sum(bool(resident & set(origin.split("|"))) for origin in loads),
        "planned_barriers": 0 if plan.programs == 1 else len(plan.schedule.barriers),
        "shared_limit": device.shared_bytes,
        "tiles": [{"rows": tile.rows, "inner": tile.inner, "bytes": tile.bytes, "resident": tile.resident} for tile in plan.schedule.tiles],
        "programs": plan.programs,
        "groups": plan.groups(configuration.B),
        "launches": launches,
        "batch_tile": plan.batch_tile,
        "warps": plan.options.warps,
        "maxnreg": plan.options.maxnreg,
        "cta_barriers": numbers.cta_barriers,
        "instructions": numbers.instructions,
        "wgmma": numbers.wgmma,
        "mma": numbers.mma,
        "in_loop_spills": numbers.in_loop_spills,
        "microseconds": round(plan.microseconds * launches, 3),
        "choice": choice.place,
        "passed_over": [*choice.passed_over],
        "seconds": round(time.perf_counter() - began, 1),
    }


def identity(configuration: Configuration, arch: int) -> dict[str, Any]:
    """What a row is of."""
    named = {name: getattr(configuration, name) for name in ("cell", "H", "B", "dtype", "V", "feedback", "part")}
    return named | {"precision": configuration.precision if configuration.dtype == "float32" else None, "arch": arch}


def barriers(text: str) -> int:
    """The barriers of a group that stand in the step loop of a kernel's source."""
    loop = text[text.index("    while (t < T)") :]
    body = loop.splitlines()[1:]
    end = next((at for at, line in enumerate(body) if not line.startswith("        ")), len(body))
    return sum("wait(counter" in line for line in body[:end])
