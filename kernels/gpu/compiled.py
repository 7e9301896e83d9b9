"""Compiles a kernel with no GPU present. In: a kernel, types, constants, a compute capability; out: the binary, and its numbers."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .ttgir import loads_in_step_loop

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel.

    Attributes:
        binary: Triton's; ``binary.asm`` holds the text of every stage and the cubin.
        arguments: names of the kernel's parameters that are not constants, in order.
        arch: compute capability, 90 for sm_90.
    """

    binary: Any
    arguments: tuple[str, ...]
    arch: int


@dataclass(frozen=True)
class Statistics:
    """What a kernel asks of a device, and what stands in its step loop (its longest loop).

    Attributes:
        registers: a thread.
        spill_bytes: that a thread's spill stores write, each counted once.
        stack: bytes a thread.
        shared_bytes: a block.
        in_loop_weight_loads: loads from weights in the step loop; a load in a loop within counts once.
        cta_barriers: ``BAR`` instructions in the step loop.
        instructions: in the step loop.
        wgmma: warpgroup products in the step loop (``HGMMA`` and its kin; ``UTC*MMA`` on sm_100).
        mma: warp products in the step loop (``HMMA`` and its kin).
        in_loop_spills: spill stores and loads in the step loop.
    """

    registers: int
    spill_bytes: int
    stack: int
    shared_bytes: int
    in_loop_weight_loads: int
    cta_barriers: int
    instructions: int
    wgmma: int
    mma: int
    in_loop_spills: int


def compile_kernel(
    kernel: Any, types: dict[str, str], constants: dict[str, object], arch: int, *, warps: int, stages: int, maxnreg: int | None = None
) -> Compiled:
    """Compiles for a compute capability.

    Args:
        kernel: a function under ``@triton.jit``.
        types: of every parameter that is not a constant, as Triton spells them: ``*bf16``, ``*i32``, ``i32``, ``fp32``; ``:16`` after one
            promises that the pointer is aligned to 16 bytes, or the integer divisible by 16.
        constants: values of the ``tl.constexpr`` parameters.
        arch: 80, 90, 100.
        warps, stages: of a block; of pipelined loads.
        maxnreg: the most registers a thread may have.

    Raises:
        RuntimeError: this process interprets, so there is nothing to compile.
        TypeError: a parameter has neither a type nor a value, or both.
    """
    if not isinstance(kernel, triton.runtime.jit.JITFunction):
        raise RuntimeError(
            "this process interprets Triton (TRITON_INTERPRET=1, which FUSEDRNN_EMULATE=1 sets), so kernels cannot be compiled in it"
        )
    names = list(kernel.arg_names)
    known = [*types, *constants]
    if sorted(names) != sorted(known):
        wrong = sorted(set(names).symmetric_difference(known) | {name for name in known if known.count(name) > 1})
        raise TypeError(f"{kernel.__name__}: every parameter needs a type or a value, and only parameters may have one: {wrong}")
    signature = {name: types[name].partition(":")[0] if name in types else "constexpr" for name in names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if types.get(name, "").endswith(":16")}
    options = {
        "num_warps": warps,
        "num_stages": stages,
        "maxnreg": maxnreg,
        "launch_cooperative_grid": True,
        "enable_fp_fusion": True,  # Triton 3.9 warns where this is left open
    }
    source = ASTSource(kernel, signature, constexprs=dict(constants), attrs=aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return Compiled(binary, tuple(name for name in names if name in types), arch)


def statistics(compiled: Compiled, weights: Sequence[str]) -> Statistics:
    """Measures a compiled kernel; ``weights`` names the arguments whose loads in the step loop are counted.

    Raises:
        ValueError: a name in ``weights`` is not an argument.
        RuntimeError: ``cuobjdump``, which Triton carries, failed.
    """
    if unknown := sorted(set(weights) - set(compiled.arguments)):
        raise ValueError(f"weights {unknown} are not among the arguments {list(compiled.arguments)}")
    usage, text = _dump(compiled.binary.asm["cubin"], "-res-usage"), _dump(compiled.binary.asm["cubin"], "-sass")
    code = _instructions(text)
    step = _longest_loop(code)
    read = loads_in_step_loop(compiled.binary.asm["ttgir"], compiled.arguments)
    return Statistics(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        spill_bytes=sum(_width(line) for _, line in code if _is(line, "STL")),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        shared_bytes=compiled.binary.metadata.shared,
        in_loop_weight_loads=sum(any(name in weights for name in origin.split("|")) for origin in read),
        cta_barriers=sum(_is(line, "BAR") for line in step),
        instructions=len(step),
        wgmma=sum(_is(line, "[A-Z]GMMA|UTC[A-Z]*MMA") for line in step),
        mma=sum(_is(line, "[HIDQO]MMA") for line in step),
        in_loop_spills=sum(_is(line, "STL|LDL") for line in step),
    )


def _dump(cubin: bytes, what: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(cubin)
        done = subprocess.run([str(_TOOLS / "cuobjdump"), what, path], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cuobjdump {what}: {done.stderr.strip()}")
    return done.stdout


def _instructions(text: str) -> list[tuple[int, str]]:
    """Address and text of every instruction."""
    return [(int(address, 16), line) for address, line in re.findall(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(.*?);", text, re.MULTILINE)]


def _longest_loop(code: list[tuple[int, str]]) -> list[str]:
    """The instructions from the target of the backward branch that spans most, to that branch."""
    first = last = 0
    for address, line in code:
        target = re.search(r"\bBRA\S*\s.*?0x([0-9a-f]+)", line)
        if target and int(target[1], 16) < address and address - int(target[1], 16) > last - first:
            first, last = int(target[1], 16), address
    return [line for address, line in code if first <= address <= last] if last else []


def _is(line: str, operation: str) -> bool:
    return re.match(rf"(?:@!?U?P[T0-9]+\s+)?(?:{operation})\b", line) is not None


def _width(line: str) -> int:
    """Bytes that a store writes for a thread."""
    match = re.search(r"\.(8|16|64|128)\b", line.split()[0] if not line.startswith("@") else line.split()[1])
    return int(match[1]) // 8 if match else 4
