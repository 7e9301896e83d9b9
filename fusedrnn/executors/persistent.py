"""The persistent executor: the whole loop as one launch of a Triton kernel. In: a call and its program; out: a `Result`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..capture.program import Program
from ..capture.refusal import NotCapturable
from ..contract import Call, Start
from ..fallback import log
from ..frames import Frame
from ..kernels import gpu
from ..lowering.gpu.rule import Unlowered
from ..lowering.gpu.source import kernel_source
from ..lowering.operators import Unlowered as Undecomposed
from ..result import Result
from . import native, reference
from .outcome import of_end

if TYPE_CHECKING:
    from .persistent_call import Kernel


def refusal(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> NotCapturable | None:
    """Why the tensors of a call cannot go to a kernel; None where they can."""
    device = begun.device
    if device.type != "cuda" and not (gpu.EMULATED and device.type == "cpu"):
        return NotCapturable(f"persistent kernels run on a CUDA device, this loop is on {device}: move its tensors there")
    leaves = [*begun.inputs, *begun.state, *(begun.loop_state or ()), *(tensors[place] for place in program.tensors)]
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor) and leaf.device != device and not (leaf.device.type == "cpu" and leaf.ndim == 0):
            return NotCapturable(f"the loop is on {device}, but it reads a tensor {[*leaf.shape]} on {leaf.device}: move that there")
    return None


def kernel(program: Program, batch: int, device: torch.device) -> Kernel:
    """The program's kernel for a batch size, made when first asked for.

    Raises:
        NotCapturable: the kernel cannot hold the program, or nothing fits the device.
    """
    precision = _precision(device)
    key = f"persistent {device} {min(max(batch - 1, 0).bit_length(), 8)} {precision}"
    made = program.plans.get(key)
    if made is None:
        try:
            made = _kernel(program, batch, device, precision)
        except (Unlowered, Undecomposed) as unlowered:
            made = NotCapturable(f"{unlowered.reason}; use backend='stepwise', 'native' or 'auto'", unlowered.location)
        except Exception as error:  # a fault of the lowering must not be one of the loop
            log.exception("lowering a loop to a persistent kernel failed; this is a bug of fusedrnn")
            made = NotCapturable(f"lowering failed: {type(error).__name__}: {error}")
        program.plans[key] = made
    if isinstance(made, NotCapturable):
        raise NotCapturable(made.reason, made.location)
    found: Kernel = made
    return found


def prepared(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> Kernel | NotCapturable:
    """The kernel of a loop that is to be run, or why there is none."""
    refused = refusal(begun, program, tensors)
    if refused is not None:
        return refused
    try:
        return kernel(program, begun.batch, begun.device)
    except NotCapturable as error:
        return error


def _kernel(program: Program, batch: int, device: torch.device, precision: str) -> Kernel:
    from ..kernels.gpu import limits, source  # they import Triton
    from ..plan.choice import chosen
    from ..plan.measured import measured
    from ..plan.planner import EMULATED, planned
    from .persistent_call import Kernel

    if device.type == "cpu":
        plan = planned(program, batch, EMULATED, precision)[0]
        text = kernel_source(plan.schedule, plan.batch_tile, plan.lines(batch))
        return Kernel(program, plan, text, source.load(text.text, "persistent").loop)
    known = limits.of_device(device)
    choice = chosen(planned(program, batch, known, precision), lambda plan: measured(plan, batch, known.arch), known.shared_bytes)
    for reason in choice.passed_over:
        log.debug("a layout was passed over: %s", reason)
    return Kernel(program, choice.plan, choice.measured.source, choice.measured.function)


def _precision(device: torch.device) -> str:
    """How float32 is multiplied: in full, unless torch's own products are allowed to use tf32."""
    if device.type == "cpu":
        return "ieee"
    return "hilo" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def run(call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> Result:
    """Run the loop as one launch, or as a few where no bound on its steps is known. Its backward runs it once more, step by step.

    Raises:
        NotCapturable: it cannot be lowered, or its tensors are not where a kernel can read them.
    """
    from .persistent_call import Bound

    refused = refusal(begun, program, tensors)
    if refused is not None:
        raise refused
    bound = Bound(kernel(program, begun.batch, begun.device), call, begun, tensors, frame.seed if program.draws else None)  # type: ignore[arg-type]
    if begun.device.type == "cpu" or native.needs_gradients(begun, program, tensors):
        ended = native.ended_with_gradients(bound.run, call, frame, begun, program, tensors)
        if ended is None:
            return reference.explain_fault(call, frame, begun, "persistent")
        return of_end(call, begun, program.emits(begun.batch), ended, "persistent")
    return bound.launch().result(call, frame, program.emits(begun.batch))
