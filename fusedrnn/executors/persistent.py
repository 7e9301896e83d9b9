"""The persistent executor: the whole loop as one launch of a Triton kernel. In: a call and its program; out: a `Result`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..capture.program import Program
from ..capture.refusal import NotCapturable
from ..contract import Call, Start
from ..fallback import log
from ..frames import Frame
from ..kernels import gpu
from ..kernels.device import is_recording
from ..lowering.gpu.rule import Unlowered
from ..lowering.gpu.source import kernel_source
from ..lowering.operators import Unlowered as Undecomposed
from ..result import Result
from . import differentiated, reference
from .outcome import of_end

if TYPE_CHECKING:
    from ..lowering.gpu.source import KernelSource
    from ..plan.plan import Plan
    from .persistent_call import Bound, Kernel


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


def kernel(program: Program, batch: int, device: torch.device, tensors: Sequence[torch.Tensor]) -> Kernel:
    """The program's kernel for a batch size and the sizes of these closed-over tensors, made when first asked for.

    Raises:
        NotCapturable: the kernel cannot hold the program, or nothing fits the device.
    """
    try:
        sizes = known_sizes(program, tensors)
    except Exception:  # lowering meets it again, and says below what stands in the way
        sizes = {}
    key = _key(batch, device, sizes)
    made = program.plans.get(key)
    if made is None:
        try:
            made = _kernel(program, batch, device, sizes)
        except Unlowered as unlowered:
            made = NotCapturable(f"{unlowered.reason}; use backend='stepwise', 'native' or 'auto'", unlowered.location)
        except Undecomposed as unlowered:  # the native executor has none either
            reason = unlowered.reason.replace("the native executor", "the persistent kernel")
            made = NotCapturable(f"{reason}; use backend='stepwise' or 'auto'", unlowered.location)
        except Exception as error:  # a fault of the lowering must not be one of the loop
            log.exception("lowering a loop to a persistent kernel failed; this is a bug of fusedrnn")
            made = NotCapturable(f"lowering failed: {type(error).__name__}: {error}")
        program.plans[key] = made
    if isinstance(made, NotCapturable):
        raise NotCapturable(made.reason, made.location)
    found: Kernel = made
    return found


def prepared(
    begun: Start, program: Program, tensors: Sequence[torch.Tensor], call: Call | None = None
) -> Kernel | NotCapturable:  # fmt: skip
    """The kernel of a loop that is to be run, or why there is none.

    Args:
        call: with it, on a GPU, the loop is run with a few layouts, the first time; the fastest is kept, also for later processes.
    """
    refused = refusal(begun, program, tensors)
    if refused is not None:
        return refused
    try:
        made = kernel(program, begun.batch, begun.device, tensors)
    except NotCapturable as error:
        return error
    if call is not None and begun.device.type == "cuda" and not is_recording(begun.device):
        return tuned(call, begun, program, tensors, made)
    return made


def tuned(call: Call, begun: Start, program: Program, tensors: Sequence[torch.Tensor], made: Kernel) -> Kernel:
    """The kernel of the layout that is the fastest by the clock, of those that the model finds about as good as its best one."""
    from ..plan import tuned as layouts
    from .persistent_call import Bound, Kernel

    seed: Any = 0 if program.draws else None
    plans = _plans(program, begun.batch, begun.device, made.sizes_made_for)
    at = _tuning_key(plans, begun.batch, begun.device)
    if layouts.known(plans, at) is not None:  # it was chosen by that
        _microseconds(Bound(made, call, begun, tensors, seed), begun.device)  # Triton compiles what it launches
        return made
    kernels = {id(made.plan): made}
    for plan in plans:
        if len(kernels) == layouts.MOST or plan.microseconds > layouts.WORTH * plans[0].microseconds:
            break
        if layouts.name(plan) not in [layouts.name(kernel.plan) for kernel in kernels.values()]:
            found = _compiled(plan, begun.batch, begun.device)
            if found is not None:
                kernels[id(plan)] = Kernel(program, plan, *found, made.sizes_made_for)

    def run(plan: Plan) -> float:
        return _microseconds(Bound(kernels[id(plan)], call, begun, tensors, seed), begun.device)

    best = kernels[id(layouts.fastest([kernel.plan for kernel in kernels.values()], run, at))]
    program.plans[_key(begun.batch, begun.device, made.sizes_made_for)] = best
    return best


def _microseconds(bound: Bound, device: torch.device) -> float:
    """Of one run of a loop; infinite where it does not run."""
    if device.type != "cuda":
        began = time.perf_counter()
        bound.run()
        return (time.perf_counter() - began) * 1e6
    from ..kernels.gpu import launch

    begin, end = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    begin.record()
    try:
        launched = bound.launch()
    except launch.Refused:
        return math.inf
    end.record()
    end.synchronize()
    return math.inf if launched.waited_in_vain() else float(begin.elapsed_time(end)) * 1e3


def known_sizes(program: Program, tensors: Sequence[torch.Tensor]) -> dict[str, int]:
    """The sizes that a kernel is made for, by their symbols: those of rows, such as how many places a memory has.

    Raises:
        Unlowered: as `planned`.
    """
    names = program.plans.get("sizes of rows")
    if names is None:
        from ..lowering.gpu.step import prepared, sizes_of

        names = sizes_of(prepared(program)) if program.symbols else []
        program.plans["sizes of rows"] = names
    found = {name: program.symbols[name] for name in names if name in program.symbols}
    return {name: tensors[place].shape[dim] for name, (place, dim) in found.items()}


def _plans(program: Program, batch: int, device: torch.device, sizes: Mapping[str, int]) -> list[Plan]:
    """The layouts, the best by the model first."""
    from ..kernels.gpu import limits
    from ..plan.planner import EMULATED, planned

    known = EMULATED if device.type == "cpu" else limits.of_device(device)
    return planned(program, batch, known, _precision(device), sizes)


def _compiled(plan: Plan, batch: int, device: torch.device) -> tuple[KernelSource, Any] | None:
    """The kernel of a layout; None where it spills or does not fit."""
    from ..kernels.gpu import limits, source
    from ..plan.measured import measured

    if device.type == "cpu":
        text = kernel_source(plan.schedule, plan.batch_tile, plan.lines(batch), some=batch < plan.batch_tile, ahead=plan.ahead)
        return text, source.load(text.text, "persistent").loop
    known = limits.of_device(device)
    found = measured(plan, batch, known.arch)
    if isinstance(found, str) or found.spill_bytes or found.shared_bytes > known.shared_bytes:
        return None
    return found.source, found.function


def _tuning_key(plans: Sequence[Plan], batch: int, device: torch.device) -> str:
    import triton

    from ..plan import tuned as layouts

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "emulated"
    return layouts.key(plans, batch, where, f"torch {torch.__version__}, triton {triton.__version__}")


def _key(batch: int, device: torch.device, sizes: Mapping[str, int]) -> str:
    """Of a kernel among a program's plans: batches up to the same power of two share one."""
    made_for = "".join(f" {name}={size}" for name, size in sizes.items())
    return f"persistent {device} {min(max(batch - 1, 0).bit_length(), 8)} {_precision(device)}{made_for}"


def _kernel(program: Program, batch: int, device: torch.device, sizes: Mapping[str, int]) -> Kernel:
    from ..kernels.gpu import limits  # they import Triton
    from ..plan import tuned as layouts
    from ..plan.choice import chosen
    from ..plan.measured import measured
    from .persistent_call import Kernel

    plans = _plans(program, batch, device, sizes)
    if device.type == "cpu":
        found = _compiled(plans[0], batch, device)
        assert found is not None
        return Kernel(program, plans[0], *found, sizes)
    known = limits.of_device(device)
    fastest = layouts.known(plans, _tuning_key(plans, batch, device))
    choice = chosen(plans if fastest is None else [fastest, *plans], lambda plan: measured(plan, batch, known.arch), known.shared_bytes)
    for reason in choice.passed_over:
        log.debug("a layout was passed over: %s", reason)
    return Kernel(program, choice.plan, choice.measured.source, choice.measured.function, sizes)


def _precision(device: torch.device) -> str:
    """How float32 is multiplied: in full, unless torch's own products are allowed to use tf32."""
    if device.type == "cpu":
        return "ieee"
    return "hilo" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def run(call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> Result:
    """Run the loop as one launch, or as a few where no bound on its steps is known, and its backward too.

    Raises:
        NotCapturable: it cannot be lowered, or its tensors are not where a kernel can read them.
    """
    from ..kernels.gpu import launch
    from .persistent_call import Bound

    refused = refusal(begun, program, tensors)
    if refused is not None:
        raise refused
    try:
        if differentiated.needs_gradients(begun, program, tensors):
            ended = differentiated.ended(for_call, call, frame, begun, program, tensors)
            if ended is None:
                return reference.explain_fault(call, frame, begun, "persistent")
            return of_end(call, begun, program.emits(begun.batch), ended, "persistent")
        made = kernel(program, begun.batch, begun.device, tensors)
        bound = Bound(made, call, begun, tensors, frame.seed if program.draws else None)  # type: ignore[arg-type]
        if begun.device.type == "cpu":
            ended = bound.run()
            if ended is None:
                return reference.explain_fault(call, frame, begun, "persistent")
            return of_end(call, begun, program.emits(begun.batch), ended, "persistent")
        return bound.launch().result(call, frame, program.emits(begun.batch))
    except launch.Refused as error:
        refused = NotCapturable(f"{error}; use backend='stepwise' or 'auto'")
        program.plans[_key(begun.batch, begun.device, known_sizes(program, tensors))] = refused
        raise refused from error


def for_call(program: Program, begun: Start, tensors: Sequence[torch.Tensor]) -> Kernel:
    """The program's kernel for the tensors of a call.

    Raises:
        NotCapturable: there is none, or they are not where a kernel can read them.
    """
    refused = refusal(begun, program, tensors)
    if refused is not None:
        raise refused
    numbers = program.loop_state_port is not None and any(leaf.shape == () for leaf in program.loop_state_port.leaves)
    if numbers and not program.inputs_port.leaves:
        raise NotCapturable("a kernel does not carry the gradient of a number")
    return kernel(program, begun.batch, begun.device, tensors)
