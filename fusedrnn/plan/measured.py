"""What compiling a plan gives. In: a plan, a batch size, a compute capability; out: the kernel's source, its binary and its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..lowering.gpu.source import KernelSource, kernel_source
from .plan import Plan


@dataclass(frozen=True)
class CompiledPlan:
    """A plan's kernel, compiled; no GPU is needed for that.

    Attributes:
        source: the kernel's.
        function: the kernel.
        binary: `fusedrnn.kernels.gpu.compiled.Compiled`.
        statistics: `fusedrnn.kernels.gpu.compiled.Statistics` of it.
    """

    source: KernelSource
    function: Any
    binary: Any
    statistics: Any

    @property
    def spill_bytes(self) -> int:
        """That a thread writes because its registers do not suffice."""
        return int(self.statistics.spill_bytes)

    @property
    def shared_bytes(self) -> int:
        """Of a program."""
        return int(self.statistics.shared_bytes)


def measured(plan: Plan, batch: int, arch: int) -> CompiledPlan | str:
    """Compile a plan's kernel as a launch with so many rows would; where the compiler refuses it, say why in one line.

    Raises:
        RuntimeError: Triton interprets in this process.
    """
    from ..kernels.gpu import source  # they import Triton
    from ..kernels.gpu.compiled import compile_kernel, statistics

    text = kernel_source(plan.schedule, plan.batch_tile, plan.lines(batch), some=batch < plan.batch_tile, ahead=plan.ahead)
    function = source.load(text.text, "persistent").loop
    types, constants = _arguments(text, batch)
    options = plan.options
    known = {"ASM": True, "PREC": plan.precision, **constants}
    try:
        binary = compile_kernel(function, types, known, arch, warps=options.warps, stages=options.stages, maxnreg=options.maxnreg)
    except Exception as error:  # the compiler's own faults are of many kinds
        return f"the compiler refuses it: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    return CompiledPlan(text, function, binary, statistics(binary, [name for _, name in text.weights]))


def _arguments(text: KernelSource, batch: int) -> tuple[dict[str, str], dict[str, object]]:
    """Types and constants as a launch would make them: Triton takes 1 as a constant and notes what 16 divides.

    Tensors begin where torch allocates them; ``padded`` counts whole batch tiles.
    """
    types = {name: f"*{element}:16" for name, element in text.pointers.items()}
    constants: dict[str, object] = {}
    for name in text.numbers:
        if name == "B" and batch == 1:
            constants[name] = 1
        else:
            types[name] = "i32:16" if name == "padded" or (name == "B" and batch % 16 == 0) else "i32"
    return types, constants
