"""The native executor: the whole loop as one call of compiled C++. In: a call and its program; out: a `Result`."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial

import torch

from ..capture.program import Program
from ..capture.refusal import NotCapturable
from ..contract import Call, Start
from ..fallback import log
from ..frames import Frame
from ..kernels.cpu import build
from ..lowering.operators import Unlowered
from ..lowering.source import loop_source
from ..result import Result
from . import differentiated, reference
from .native_call import Bound, Native, Sizes, packed
from .outcome import of_end
from .prologue import Prologue

_PATIENCE = 2.0  # seconds of compiling before a line says so


def compiled(program: Program) -> Native:
    """The program's compiled loop, made when first asked for.

    Raises:
        NotCapturable: an operator that the lowering does not know, or no compiler.
    """
    made = program.plans.get("native")
    if made is None:
        try:
            made = _compile(program)
        except Unlowered as unlowered:
            made = NotCapturable(f"{unlowered.reason}; use backend='stepwise' or 'auto'", unlowered.location)
        except build.CompileError as error:
            made = NotCapturable(str(error))
        except Exception as error:  # a fault of the lowering must not be one of the loop
            log.exception("lowering a loop to C++ failed; this is a bug of fusedrnn")
            made = NotCapturable(f"lowering failed: {type(error).__name__}: {error}")
        program.plans["native"] = made
    if isinstance(made, NotCapturable):
        raise NotCapturable(made.reason, made.location)
    native: Native = made
    return native


def _compile(program: Program) -> Native:
    source = loop_source(program, program.batch)
    began = time.perf_counter()
    done = threading.Event()

    def tell() -> None:
        if not done.wait(_PATIENCE):
            print("fusedrnn: compiling a loop (kept on disk for the next time) ...", file=sys.stderr, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        library = build.load(source.text, name="loop")
    finally:
        done.set()
    library.run.argtypes, library.run.restype = [ctypes.c_void_p], ctypes.c_int64
    slots = {name: place for place, name in enumerate(source.slots)}
    sizes = Sizes(program, source, slots)
    before, weights = ({node: slots[name] for node, name in entries.items()} for entries in (source.before, source.weights))
    prologue = Prologue(source.module, source.program.sources, before, weights, partial(packed, library))
    return Native(source, library, prologue, time.perf_counter() - began, slots, sizes)


def run(call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> Result:
    """Run the loop in C++, and its backward too.

    Raises:
        NotCapturable: it cannot be compiled.
    """
    if differentiated.needs_gradients(begun, program, tensors):
        ended = differentiated.ended(for_call, call, frame, begun, program, tensors)
    else:
        ended = Bound(compiled(program), program, call, begun, tensors, frame.seed if program.draws else None).run()  # type: ignore[arg-type]
    if ended is None:
        return reference.explain_fault(call, frame, begun, "native")
    return of_end(call, begun, program.emits(begun.batch), ended, "native")


def for_call(program: Program, begun: Start, tensors: Sequence[torch.Tensor]) -> Native:
    """The program's compiled loop for the tensors of a call: its sizes are free.

    Raises:
        NotCapturable: as `compiled`.
    """
    return compiled(program)
