"""The native executor: the whole loop as one call of compiled C++. In: a call and its program; out: a `Result`."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

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
from . import native_autograd, reference, stepwise
from .native_call import Bound, End, Native, Sizes, packed
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
    """Run the loop in C++. Its backward runs it once more, step by step, and differentiates that.

    Raises:
        NotCapturable: it cannot be compiled.
    """
    bound = Bound(compiled(program), program, call, begun, tensors, frame.seed if program.draws else None)  # type: ignore[arg-type]
    ended = ended_with_gradients(bound.run, call, frame, begun, program, tensors)
    if ended is None:
        return reference.explain_fault(call, frame, begun, "native")
    return of_end(call, begun, program.emits(begun.batch), ended, "native")


def ended_with_gradients(
    loop: Callable[[], End | None], call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]
) -> End | None:
    """What ``loop()`` leaves, as a function of all it depends on where gradients are needed: the backward runs it again, step by step."""
    if needs_gradients(begun, program, tensors):
        sources = [leaf for leaf in _sources(begun, program, tensors) if isinstance(leaf, torch.Tensor)]
        return _with_gradients(loop, call, frame, begun, program, tensors, sources)
    return loop()


def needs_gradients(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a result may need a gradient."""
    leaves = _sources(begun, program, tensors)
    return torch.is_grad_enabled() and any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves)


def _sources(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> list[Any]:
    """All that a result may depend on."""
    return [*begun.inputs, *begun.state, *(begun.loop_state or []), *(tensors[place] for place in program.tensors)]


def _with_gradients(
    loop: Callable[[], End | None],
    call: Call,
    frame: Frame,
    begun: Start,
    program: Program,
    tensors: Sequence[torch.Tensor],
    sources: list[torch.Tensor],
) -> End | None:
    ended: list[End | None] = []

    def forward() -> list[torch.Tensor]:
        ended.append(loop())
        return [] if ended[0] is None else ended[0].tensors()

    def again(other: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results once more, with autograd, from other sources."""
        given = iter(other)
        trees = [
            [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves or []]
            for leaves in (begun.inputs, begun.state, begun.loop_state)
        ]
        lifted = list(tensors)
        for place in program.tensors:
            lifted[place] = next(given)
        started = replace(begun, inputs=trees[0], state=trees[1], loop_state=trees[2] or begun.loop_state)
        steps = stepwise.steps(call, frame, started, program, lifted)
        assert steps is not None
        assert ended[0] is not None
        made = {}
        for place, target in enumerate(program.targets):
            if target.kind in ("emit", "index", "value"):
                made[target.kind, target.place] = torch.stack([outputs[place] for outputs in steps.outputs])
        leaves = [leaf for kind in ("state", "loop_state") for leaf in steps.trees[kind] if isinstance(leaf, torch.Tensor)]
        return [*[made[key] for key in ended[0].made], *leaves]

    results = native_autograd.differentiable(sources, forward, again)
    return None if ended[0] is None else ended[0].replaced(results)
