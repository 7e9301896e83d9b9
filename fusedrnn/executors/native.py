"""The native executor: the whole loop as one call of compiled C++. In: a call and its program; out: a `Result`."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..capture.program import Program, Source
from ..capture.refusal import NotCapturable
from ..contract import Call, Start
from ..frames import Frame
from ..kernels.cpu import build
from ..lowering.operators import Unlowered
from ..lowering.source import LoopSource, loop_source
from ..optimise.graph import value
from ..result import Result
from ..tensor_array import TensorArray
from . import native_autograd, reference, stepwise
from .outcome import outcome
from .prologue import Prologue

_FIRST_ROOM = 64  # steps of emits to make room for where no bound is known; then twice as many, and so on
_ROWS_EACH = 8  # rows that a thread of its own is worth having for
_MOST_GROUPS = 64  # as many as the C++ has room for
_ENDLESS = 2**31 - 2  # times are int32
_ROWS_AHEAD = 96  # from about so many rows on a product runs at full speed
_PATIENCE = 2.0  # seconds of compiling before a line says so


@dataclass
class Native:
    """A program, compiled.

    Attributes:
        source: the C++.
        seconds: that compiling took, 0 where it was found on disk.
    """

    source: LoopSource
    library: ctypes.CDLL
    prologue: Prologue
    seconds: float
    slot: dict[str, int]


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
    return Native(source, library, Prologue(source.module, source.program.sources), time.perf_counter() - began, slots)


def run(call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> Result:
    """Run the loop in C++. Its backward runs it once more, step by step, and differentiates that.

    Raises:
        NotCapturable: it cannot be compiled.
    """
    native = compiled(program)
    loop = _Loop(call, frame, begun, program, tensors)
    sources = loop.differentiable()
    if not torch.is_grad_enabled() or not any(source.requires_grad for source in sources):
        ended = loop.run(native)
    else:
        ended = loop.run_with_gradients(native, sources)
    if ended is None:
        return reference.run(call, frame, begun)  # which says who looked where
    return outcome(
        call, begun, program.emits(begun.batch), lambda place: ended.made["emit", place], lambda: ended.lengths, ended.finished,
        ended.tree("state"), None if begun.loop_state is None else ended.tree("loop_state"),
    )  # fmt: skip


@dataclass
class _End:
    """What a loop leaves.

    Attributes:
        made: by target: all steps of each emit and write.
        leaves: the final leaves of the state and of loop_state, arrays as they were at the start.
        writes: the program's writes.
    """

    steps: int
    made: dict[tuple[str, int], torch.Tensor]
    leaves: dict[str, list[Any]]
    writes: Sequence[Any]
    lengths: torch.Tensor
    finished: torch.Tensor

    def tensors(self) -> list[torch.Tensor]:
        return [*self.made.values(), *[leaf for tree in self.leaves.values() for leaf in tree if isinstance(leaf, torch.Tensor)]]

    def replaced(self, tensors: Sequence[torch.Tensor]) -> _End:
        """The same with other tensors, in the order of `tensors`."""
        given = iter(tensors)
        made = {key: next(given) for key in self.made}
        leaves = {kind: [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in tree] for kind, tree in self.leaves.items()}
        return _End(self.steps, made, leaves, self.writes, self.lengths, self.finished)

    def tree(self, kind: str) -> list[Any]:
        """The final leaves of a tree, with what was written to its arrays."""
        leaves = list(self.leaves[kind])
        for place, write in enumerate(self.writes):
            if write.kind == kind:
                leaves[write.place] = _written(leaves[write.place], self.made["index", place], self.made["value", place])
        return leaves


class _Loop:
    """One call: its tensors on their way into C++ and back."""

    def __init__(self, call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> None:
        self.call, self.frame, self.begun, self.program, self.tensors = call, frame, begun, program, tensors

    def differentiable(self) -> list[torch.Tensor]:
        """All tensors that a result may depend on."""
        begun = self.begun
        carried = [*begun.inputs, *begun.state, *(begun.loop_state or [])]
        used = [self.tensors[place] for place in self.program.tensors]
        return [leaf for leaf in (*carried, *used) if isinstance(leaf, torch.Tensor)]

    def run_with_gradients(self, native: Native, sources: list[torch.Tensor]) -> _End | None:
        ended: list[_End | None] = []

        def forward() -> list[torch.Tensor]:
            ended.append(self.run(native))
            return [] if ended[0] is None else ended[0].tensors()

        results = native_autograd.differentiable(sources, forward, self._again)
        return None if ended[0] is None else ended[0].replaced(results)

    def _again(self, sources: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results once more with autograd, from other sources."""
        given = iter(sources)
        begun = self.begun
        trees = {
            name: [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves or []]
            for name, leaves in (("inputs", begun.inputs), ("state", begun.state), ("loop_state", begun.loop_state))
        }
        tensors = list(self.tensors)
        for place in self.program.tensors:
            tensors[place] = next(given)
        begun = replace(begun, inputs=trees["inputs"], state=trees["state"], loop_state=trees["loop_state"] or begun.loop_state)
        steps = stepwise.steps(self.call, self.frame, begun, self.program, tensors)
        made = {}
        for place, target in enumerate(self.program.targets):
            if target.kind in ("emit", "index", "value"):
                made[target.kind, target.place] = torch.stack([outputs[place] for outputs in steps.outputs])
        ordered = [made[key] for key in self._made_keys()]
        leaves = [leaf for kind in ("state", "loop_state") for leaf in steps.trees[kind] if isinstance(leaf, torch.Tensor)]
        return [*ordered, *leaves]

    def _made_keys(self) -> list[tuple[str, int]]:
        native: Native = self.program.plans["native"]
        return [(target.kind, target.place) for target, _ in native.source.emits]

    def run(self, native: Native) -> _End | None:
        """The loop; None where a row looked where there is nothing."""
        call, begun, program, tensors = self.call, self.begun, self.program, self.tensors
        source, slot = native.source, native.slot
        entries = (ctypes.c_int64 * len(slot))()
        alive: list[torch.Tensor] = []  # what the entries point to

        def point(name: str, tensor: torch.Tensor) -> torch.Tensor:
            tensor = tensor.detach().contiguous()
            alive.append(tensor)
            entries[slot[name]] = tensor.data_ptr()
            return tensor

        leaves: dict[str, Any] = {
            "finished": [begun.finished], "inputs": begun.inputs, "state": begun.state, "loop_state": begun.loop_state or [],
            "token": {place: self._first_tokens(size) for place, size in source.moved.tables.items()},
        }  # fmt: skip
        with torch.no_grad():
            given = self._given(leaves)
            for node, entry in source.before.items():
                point(entry, native.prologue.bound(node, tensors, given))
            for node, entry in source.weights.items():
                point(entry, native.prologue.bound(node, tensors, given, partial(_packed, native.library)))
        for name in source.symbols:
            place = program.symbols.get(name)
            entries[slot[name]] = begun.batch if place is None else tensors[place[0]].shape[place[1]]

        final: dict[tuple[str, int], torch.Tensor] = {}
        for carried, init, last in source.carried:
            leaf = point(init, leaves[carried.kind][carried.place])
            final[carried.kind, carried.place] = point(last, torch.empty_like(leaf))
        finished = point("finished", torch.empty(begun.batch, dtype=torch.bool))
        lengths = point("lengths", torch.empty(begun.batch, dtype=torch.int32))
        point("init_fin", begun.finished)

        limit = _ENDLESS if call.max_steps is None else call.max_steps
        bound = min(limit, _bound_of_steps(program, source, tensors, limit))
        room = bound if bound < _ENDLESS else _FIRST_ROOM
        threads = torch.get_num_threads()
        groups = min(threads, _MOST_GROUPS, begun.batch // _ROWS_EACH) if source.retires else 1
        entries[slot["B"]], entries[slot["limit"]] = begun.batch, limit
        entries[slot["threads"]], entries[slot["groups"]] = threads, max(groups, 1)
        entries[slot["rows_ahead"]] = self._rows_ahead(source, max(groups, 1))

        pieces: list[list[torch.Tensor]] = []
        base = 0
        while True:
            entries[slot["base"]], entries[slot["capacity"]] = base, room
            pieces.append([self._room(source, target, room) for target, _ in source.emits])
            for (_, name), piece in zip(source.emits, pieces[-1], strict=True):
                entries[slot[name]] = piece.data_ptr()
            status = native.library.run(ctypes.addressof(entries))
            if status != 1:
                break
            base += room
            room = min(2 * room, limit - base)
        if status == 2:
            return None
        steps = entries[slot["steps"]]
        made = {
            (target.kind, target.place): (torch.cat([piece[place] for piece in pieces]) if len(pieces) > 1 else pieces[0][place])[:steps]
            for place, (target, _) in enumerate(source.emits)
        }
        trees = {kind: [final.get((kind, place), leaf) for place, leaf in enumerate(leaves[kind])] for kind in ("state", "loop_state")}
        return _End(steps, made, trees, program.writes, lengths, finished)

    def _rows_ahead(self, source: LoopSource, groups: int) -> int:
        """For how many rows of a group, over several steps, a product that waits for nothing is made at once."""
        rows = 1 if source.locality is None else -(-self.begun.batch // groups)
        if self.call.parallel_iterations is not None:
            return rows * self.call.parallel_iterations
        of_row = self.begun.batch if source.locality is None else 1
        return max(_ROWS_AHEAD // of_row, rows)

    def _first_tokens(self, size: Any) -> torch.Tensor:
        """What stands for the inputs of the first step: the rows behind a table of that size."""
        first = _number(size, self.program, self.begun.batch, self.tensors)
        return torch.arange(first, first + self.begun.batch)

    def _given(self, leaves: dict[str, Any]) -> dict[Source, torch.Tensor]:
        """What the part before the loop may read besides the closed-over tensors."""
        given = {Source("initial inputs", place): leaf.detach() for place, leaf in enumerate(self.begun.inputs)}
        given |= {Source("initial token", place): leaf for place, leaf in leaves["token"].items()}
        if self.program.draws:
            given[Source("seed")] = torch.tensor(self.frame.seed, dtype=torch.int64)
        return given

    def _room(self, source: LoopSource, target: Any, steps: int) -> torch.Tensor:
        """Memory for so many steps of an emit or a write."""
        made = value(dict(zip(source.program.targets, _outputs(source), strict=True))[target])
        shape = [_number(size, self.program, self.begun.batch, self.tensors) for size in made.shape]
        return torch.empty((steps, *shape), dtype=torch.int64 if target.kind == "index" else made.dtype)


def _packed(library: ctypes.CDLL, weight: torch.Tensor) -> torch.Tensor:
    if weight.dtype in (torch.bfloat16, torch.float16):
        weight = weight.float()
    kind = "double" if weight.dtype == torch.float64 else "float"
    inner, columns = weight.shape
    size = getattr(library, f"packed_size_{kind}")
    size.argtypes, size.restype = [ctypes.c_int64] * 2, ctypes.c_int64
    pack = getattr(library, f"pack_{kind}")
    pack.argtypes, pack.restype = [ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_void_p], None
    made = torch.empty(size(inner, columns), dtype=weight.dtype)  # torch's memory is 64-byte aligned
    pack(weight.data_ptr(), *weight.stride(), inner, columns, made.data_ptr())
    return made


def _outputs(source: LoopSource) -> list[Any]:
    return list(next(node for node in reversed(source.module.graph.nodes) if node.op == "output").args[0])


def _number(size: Any, program: Program, batch: int, tensors: Sequence[torch.Tensor]) -> int:
    if isinstance(size, int):
        return size
    expr = size.node.expr
    values = {}
    for symbol in expr.free_symbols:
        place = program.symbols.get(str(symbol))
        values[symbol] = batch if place is None else tensors[place[0]].shape[place[1]]
    return int(expr.xreplace(values))


def _bound_of_steps(program: Program, source: LoopSource, tensors: Sequence[torch.Tensor], limit: int) -> int:
    return limit


def _written(array: TensorArray, indices: torch.Tensor, elements: torch.Tensor) -> TensorArray:
    """The array with every step's write."""
    for index, element in zip(indices.tolist(), elements.unbind(0), strict=True):
        array = array.write(index, element)
    return array
