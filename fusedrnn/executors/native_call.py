"""A native loop, bound to the tensors of a call. In: a compiled loop, time 0 and the closed-over tensors; out: what the loop leaves."""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from .. import memory
from ..capture.program import Program, Source
from ..capture.sizes import Size, function_of
from ..contract import Call, Port, Start
from ..lowering.source import LoopSource
from ..optimise.bounds import bounds
from ..optimise.graph import value
from ..result import Result
from ..tensor_array import TensorArray
from .after import After
from .outcome import of_end
from .prologue import Prologue

_FIRST_ROOM = 64  # steps of emits to make room for where no bound is known; then twice as many, and so on
_MOST_ROOM = 1 << 30  # bytes of emits to make room for at once though a bound is known: what is not written takes no memory
_ROWS_EACH = 8  # rows that a thread of its own is worth having for
_ROWS_AHEAD = 96  # from about so many rows on a product runs at full speed
_MOST_LAYOUTS = 64
_like, _CONTIGUOUS = torch.empty_like, torch.contiguous_format  # half the time of torch.empty
_MOST_GROUPS = 64  # as many as the C++ has room for
_WORTH_SHARING = 1 << 18  # multiplications of a product that is worth a second thread, as in loop.h
ENDLESS = 2**31 - 2  # times are int32
Tokens = Mapping[int, torch.Tensor]
NO_TOKENS: Tokens = MappingProxyType({})


@dataclass
class Native:
    """A program, compiled.

    Attributes:
        source: the C++.
        seconds: that compiling took; about 0 where it was found on disk.
        slot: the place of each entry in what the C++ is called with.
        layouts: of calls, by what they depend on.
    """

    source: LoopSource
    library: ctypes.CDLL
    prologue: Prologue
    seconds: float
    slot: dict[str, int]
    sizes: Sizes
    layouts: dict[tuple[int | None, ...], Layout] = field(default_factory=dict)
    executor = "native"

    @property
    def embeddings(self) -> Mapping[int, int]:
        """Of each input that is carried as a token the place of its embedding."""
        return self.source.moved.embeddings

    def fits(self, batch: int, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether it holds for these tensors, as far as the program does: its sizes are free."""
        return True

    def looked_at(self, tokens: frozenset[int]) -> set[int]:
        """The places of the closed-over tensors that others are made of, if the first tokens of these inputs are known."""
        return self.prologue.looked_at(tokens)

    def bound(self, program: Program, call: Call, begun: Start, tensors: Sequence[torch.Tensor], seed: int | None, tokens: Tokens) -> Bound:
        """As `Bound`."""
        return Bound(self, program, call, begun, tensors, seed, tokens)

    def layout(self, call: Call, batch: int) -> Layout:
        """That of a call with so many rows."""
        key = (batch, call.max_steps, call.parallel_iterations, torch.get_num_threads())
        found = self.layouts.get(key)
        if found is None:
            if len(self.layouts) >= _MOST_LAYOUTS:
                self.layouts.clear()
            found = self.layouts[key] = Layout(self, *key)
        return found


class Sizes:
    """The sizes that a call has to know, as functions of the symbols: sympy is too slow for every call.

    Attributes:
        places: of each symbol: where to find it, None for the batch size.
        emits: (target, entry, sizes of a step, dtype) of each emit and write.
        bounds: of the steps.
        tables: of an input carried as a token: the size of its embedding.
        largest_product: multiplications of one row with the largest weight.
    """

    def __init__(self, program: Program, source: LoopSource, slot: Mapping[str, int]) -> None:
        outputs = dict(
            zip(source.program.targets, next(n for n in reversed(source.module.graph.nodes) if n.op == "output").args[0], strict=True)
        )
        self._symbols: set[str] = set(source.symbols)
        self.emits: list[tuple[tuple[str, int], int, list[Size], torch.dtype]] = []
        for target, name in source.emits:
            made = value(outputs[target])
            dtype = torch.int64 if target.kind == "index" else made.dtype
            self.emits.append(((target.kind, target.place), slot[name], [self._size(size) for size in made.shape], dtype))
        self.bounds = [self._size(bound) for bound in bounds(program)]
        self.tables = {place: self._size(size) for place, size in source.moved.tables.items()}
        weights = [value(node).shape for node in source.weights]
        self.largest_product = max(
            [rows * columns for rows, columns in weights if isinstance(rows, int) and isinstance(columns, int)], default=0
        )
        self.places = {name: program.symbols.get(name) for name in self._symbols}

    def _size(self, size: Any) -> Size:
        function, names = function_of(size)
        self._symbols.update(names)
        return function


class Sized(NamedTuple):
    """What depends on the sizes of the closed-over tensors.

    Attributes:
        symbols: (entry, number).
        tables: of an input carried as a token: the size of its embedding.
        bound: of the steps.
        emits: (target, entry, shape of a step, dtype, a tensor of the shape of ``room`` steps without memory of its own).
        room: the steps to make room for: all that there may be, if that is not too much.
    """

    symbols: list[tuple[int, int]]
    tables: dict[int, int]
    bound: int
    emits: list[tuple[tuple[str, int], int, tuple[int, ...], torch.dtype, torch.Tensor]]
    room: int


class Layout:
    """What is the same for all calls with one batch size and the same limits and threads.

    Attributes:
        entries: what the C++ is called with, addresses and sizes aside.
        limit: of the steps.
        carried: (kind, place in its tree, entry of the first value, entry of the last one where it is returned) of each carried leaf.
    """

    def __init__(self, native: Native, batch: int, max_steps: int | None, parallel_iterations: int | None, threads: int) -> None:
        source, slot = native.source, native.slot
        self.batch, self.limit = batch, ENDLESS if max_steps is None else max_steps
        self._slot, self._sizes = slot, native.sizes
        self._symbols = [slot[name] for name in source.symbols], list(source.symbols)
        self._places = [place for place in native.sizes.places.values() if place is not None]
        self._found: dict[tuple[int, ...], Sized] = {}
        self.carried = [
            (source.kind, source.place, slot[first], None if last is None else slot[last]) for source, first, last in source.carried
        ]
        self.init_fin, self.finished, self.lengths = slot["init_fin"], slot["finished"], slot["lengths"]
        self.base, self.capacity, self.steps, self.bound = slot["base"], slot["capacity"], slot["steps"], slot["bound"]
        threads = min(threads, _MOST_GROUPS)
        groups = max(min(threads, batch // _ROWS_EACH) if source.retires else 1, 1)
        rows = 1 if source.locality is None else -(-batch // groups)
        of_row = batch if source.locality is None else 1
        ahead = max(_ROWS_AHEAD // max(of_row, 1), rows) if parallel_iterations is None else rows * parallel_iterations
        if groups == 1 and batch < 16 * threads and batch * native.sizes.largest_product < _WORTH_SHARING:
            threads = 1
        self.entries = array("q", bytes(8 * len(slot)))
        for name, number in (("B", batch), ("limit", self.limit), ("threads", threads), ("groups", groups), ("rows_ahead", ahead)):
            self.entries[slot[name]] = number

    def sized(self, tensors: Sequence[torch.Tensor]) -> Sized:
        """With the sizes of these closed-over tensors."""
        key = tuple([tensors[place].shape[dim] for place, dim in self._places])
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _MOST_LAYOUTS:
                self._found.clear()
            found = self._found[key] = self._computed(tensors)
        return found

    def _computed(self, tensors: Sequence[torch.Tensor]) -> Sized:
        sizes = self._sizes
        values = {name: self.batch if place is None else tensors[place[0]].shape[place[1]] for name, place in sizes.places.items()}
        bound = min([self.limit, *[size(values) for size in sizes.bounds]])
        emits = [(target, entry, tuple([size(values) for size in step]), dtype) for target, entry, step, dtype in sizes.emits]
        bytes_a_step = sum(math.prod(shape) * dtype.itemsize for _, _, shape, dtype in emits)
        room = bound if bound * bytes_a_step <= _MOST_ROOM or bound <= _FIRST_ROOM else _FIRST_ROOM
        return Sized(
            list(zip(self._symbols[0], [values[name] for name in self._symbols[1]], strict=True)),
            {place: size(values) for place, size in sizes.tables.items()},
            bound,
            [(*emit, torch.empty(1, dtype=emit[-1]).expand(room, *emit[2])) for emit in emits],
            room,
        )


@dataclass
class End:
    """What a loop leaves.

    Attributes:
        steps: how many it took.
        room: by target: each emit and write, ``steps`` of them and maybe what there was room for.
        leaves: the final leaves of the state and of loop_state, arrays as they were at the start.
        writes: the program's writes.
        flags: of the rows: whether they finished, and after how many steps; as memory, or as tensors ``[B]`` bool and int32.
    """

    steps: int
    room: dict[tuple[str, int], torch.Tensor]
    leaves: dict[str, list[Any]]
    writes: Sequence[Any]
    flags: tuple[array[int] | torch.Tensor, array[int] | torch.Tensor]

    @cached_property
    def made(self) -> dict[tuple[str, int], torch.Tensor]:
        """By target: all steps of each emit and write."""
        return {target: emit if len(emit) == self.steps else emit[: self.steps] for target, emit in self.room.items()}

    @cached_property
    def finished(self) -> torch.Tensor:
        """``[B]`` bool."""
        flags = self.flags[0]
        return flags if isinstance(flags, torch.Tensor) else torch.frombuffer(flags, dtype=torch.bool)

    @cached_property
    def lengths(self) -> torch.Tensor:
        """``[B]`` int32."""
        lengths = self.flags[1]
        return lengths if isinstance(lengths, torch.Tensor) else torch.frombuffer(lengths, dtype=torch.int32)

    def get_finished(self) -> torch.Tensor:
        """As `finished`."""
        return self.finished

    def get_lengths(self) -> torch.Tensor:
        """As `lengths`."""
        return self.lengths

    def emit(self, place: int) -> torch.Tensor:
        """All steps of an emit."""
        return self.made["emit", place]

    def tensors(self) -> list[torch.Tensor]:
        return [*self.made.values(), *[leaf for tree in self.leaves.values() for leaf in tree if isinstance(leaf, torch.Tensor)]]

    def replaced(self, tensors: Sequence[torch.Tensor]) -> End:
        """The same with other tensors, in the order of `tensors`."""
        given = iter(tensors)
        made = {key: next(given) for key in self.made}
        leaves = {kind: [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in tree] for kind, tree in self.leaves.items()}
        return End(self.steps, made, leaves, self.writes, self.flags)

    def tree(self, kind: str) -> list[Any]:
        """The final leaves of a tree, with what was written to its arrays."""
        leaves = self.leaves[kind]
        if self.writes:
            leaves = list(leaves)
            for place, write in enumerate(self.writes):
                if write.kind == kind:
                    leaves[write.place] = _written(leaves[write.place], self.made["index", place], self.made["value", place])
        return leaves


def _written(array: TensorArray, indices: torch.Tensor, elements: torch.Tensor) -> TensorArray:
    """The array with every step's write."""
    for index, element in zip(indices.tolist(), elements.unbind(0), strict=True):
        array = array.write(index, element)
    return array


class Bound:
    """A native loop and the tensors that it reads. Each `run` makes what it writes, so that runs may overlap.

    Args:
        native, program, call: the loop.
        begun: what time 0 settled; its leaves are only read.
        tensors: the closed-over ones.
        seed: of the loop; None where it draws nothing.
        tokens: of the inputs that are carried as tokens the first, ``[B]`` int64 and rows of their embeddings, where they are known:
            those leaves of ``begun`` are not read then.

    Attributes:
        copies: some entry points to a copy, which does not follow what it was copied from.
    """

    def __init__(
        self,
        native: Native,
        program: Program,
        call: Call,
        begun: Start,
        tensors: Sequence[torch.Tensor],
        seed: int | None,
        tokens: Tokens = NO_TOKENS,
    ) -> None:
        self.native, self.program, self.begun = native, program, begun
        self._layout = layout = native.layout(call, begun.batch)
        self._sized = sized = layout.sized(tensors)
        self._entries = entries = layout.entries[:]
        self._alive: list[Any] = [tensors]  # what the entries point to
        self.copies = False
        entries[layout.bound] = sized.bound
        for entry, number in sized.symbols:
            entries[entry] = number
        for entry, place in native.prologue.direct:
            self._point(entry, tensors[place])
        first: dict[int, torch.Tensor] = {}
        for place, size in sized.tables.items():  # else what stands for the first inputs: the rows behind the table
            token = tokens.get(place)
            first[place] = torch.arange(size, size + begun.batch) if token is None else token

        def given() -> dict[Source, torch.Tensor]:
            found = {Source("initial inputs", place): leaf.detach() for place, leaf in enumerate(begun.inputs) if place not in tokens}
            found |= {Source("initial token", place): leaf for place, leaf in first.items()}
            if seed is not None:
                found[Source("seed")] = torch.tensor(seed, dtype=torch.int64)
            return found

        for entry, tensor in native.prologue.tensors(tensors, frozenset(tokens), given):
            self._point(entry, tensor)
        leaves: dict[str, Any] = {
            "finished": [begun.finished], "inputs": begun.inputs, "state": begun.state, "loop_state": begun.loop_state, "token": first,
        }  # fmt: skip
        self._returned: list[tuple[str, int, int, torch.Tensor]] = []  # with a tensor like the last one
        for kind, place, entry, last in layout.carried:
            leaf = self._point(entry, leaves[kind][place])
            if last is not None:
                self._returned.append((kind, place, last, leaf))
        self._point(layout.init_fin, begun.finished)
        self._after = After(native.source.sunk, tensors)
        self._into: Sequence[torch.Tensor] | None = None

    def _point(self, entry: int, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_contiguous():
            tensor, self.copies = tensor.detach().contiguous(), True
        self._alive.append(tensor)
        self._entries[entry] = tensor.data_ptr()
        return tensor

    def beginning(self, begun: Start, into: Sequence[torch.Tensor] | None = None) -> Bound:
        """The same loop over the same tensors, begun with other flags and another state of the same shapes; it has no other leaves that are
        carried. ``into``: memory for the last state, if one is run at a time."""
        other = copy(self)
        other.begun, other._entries, other._alive, other._returned, other._into = begun, self._entries[:], [self._alive], [], into
        for kind, place, entry, last in self._layout.carried:
            leaf = other._point(entry, begun.finished if kind == "finished" else begun.state[place])
            if last is not None:
                other._returned.append((kind, place, last, leaf))
        other._point(self._layout.init_fin, begun.finished)
        return other

    def result(self, call: Call, emit_port: Port) -> Result | None:
        """What the loop returns; None where it fails or takes no step, which the slower way explains."""
        ended = self.run()
        return None if ended is None or not ended.steps else of_end(call, self.begun, emit_port, ended, "native")

    def run(self, steps: int | None = None) -> End | None:
        """The loop; None where a row looked where there is nothing. That the steps are known does not help it."""
        layout, sized = self._layout, self._sized
        entries = self._entries[:]
        leaves = {"state": list(self.begun.state), "loop_state": list(self.begun.loop_state or ())}
        for kind, place, entry, like in self._returned:
            last = leaves[kind][place] = _like(like) if self._into is None else self._into[place]
            entries[entry] = last.data_ptr()
        flags = array("b", bytes(layout.batch)), array("i", bytes(4 * layout.batch))
        entries[layout.finished], entries[layout.lengths] = flags[0].buffer_info()[0], flags[1].buffer_info()[0]
        room, base = sized.room, 0
        pieces: list[list[torch.Tensor]] = []
        status = 1
        while status == 1:
            entries[layout.base], entries[layout.capacity] = base, room
            piece = []
            for _, entry, shape, dtype, like in sized.emits:
                emit = _like(like, memory_format=_CONTIGUOUS) if base == 0 else torch.empty((room, *shape), dtype=dtype)
                entries[entry] = memory.in_large_pages(emit).data_ptr()
                piece.append(emit)
            pieces.append(piece)
            status = self.native.library.run(entries.buffer_info()[0])
            base += room
            room = min(2 * room, layout.limit - base)
        if status == 2:
            return None
        taken = entries[layout.steps]
        whole = pieces[0] if len(pieces) == 1 else [torch.cat(parts) for parts in zip(*pieces, strict=True)]
        room_for = {emit[0]: piece for emit, piece in zip(sized.emits, whole, strict=True)}
        ended = End(taken, room_for, leaves, self.program.writes, flags)
        for place in self._after.places:
            room_for["emit", place] = self._after.emit(place, room_for.pop(("stored", place))[:taken], ended.lengths)
        return ended


def packed(library: ctypes.CDLL, weight: torch.Tensor) -> torch.Tensor:
    """A matrix as the products read it."""
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
