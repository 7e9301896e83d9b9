"""The program that a configuration's kernel runs. In: a configuration; out: its loop as captured, or a loop of its training."""

from __future__ import annotations

import torch

from fusedrnn import branches, contract, frames
from fusedrnn.capture import cache
from fusedrnn.capture.program import Program
from fusedrnn.cells.protocol import as_cell
from fusedrnn.contract import Call, Start
from fusedrnn.derivative.backward import backward
from fusedrnn.derivative.forward import forward
from fusedrnn.executors.differentiated import sources
from fusedrnn.executors.persistent import known_sizes
from fusedrnn.lowering.gpu.step import prepared, sizes_of

from .configurations import Configuration


def program(configuration: Configuration) -> tuple[Program, dict[str, int]]:
    """A configuration's program, and the sizes that its kernel is made for. Of training: gradients of all that may have one.

    Raises:
        Unlowered, NotCapturable: it has no kernel.
    """
    begun, captured, tensors = _captured(configuration)
    if configuration.part == "loop":
        return captured, known_sizes(captured, tensors)
    given = sources(begun, captured, tensors).items()
    needed = frozenset(source for source, leaf in given if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())
    keeping = forward(captured, needed)
    made = keeping.program
    if configuration.part == "backward":
        made = backward(keeping, needed, frozenset(keeping.joint.given)).program
    sizes = {name: tensors[place].shape[dim] for name, (place, dim) in captured.symbols.items()}  # the derivative's have the same names
    return made, {name: sizes[name] for name in sizes_of(prepared(made))}


def _captured(configuration: Configuration) -> tuple[Start, Program, list[torch.Tensor]]:
    """What a loop begins with, its program, captured on the CPU, and the tensors that it closes over."""
    cell, loop_fn = configuration.loop()
    call = Call(as_cell(cell), loop_fn)
    with torch.no_grad(), frames.running() as frame, branches.taken():
        begun = contract.start(call, frame)
        found, tensors = cache.captured(call, frame, begun)
    return begun, found, tensors
