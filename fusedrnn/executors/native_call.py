"""A native loop, bound to the tensors of a call. In: a compiled loop, time 0 and the closed-over tensors; out: what the loop leaves."""

from __future__ import annotations

import ctypes
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.utils._sympy.printers import PythonPrinter

from ..capture.program import Program, Source
from ..capture.sizes import expression
from ..contract import Call, Start
from ..lowering.source import LoopSource
from ..optimise.bounds import bounds
from ..optimise.graph import value
from ..tensor_array import TensorArray
from .prologue import Prologue

_FIRST_ROOM = 64  # steps of emits to make room for where no bound is known; then twice as many, and so on
_MOST_ROOM = 1 << 26  # bytes of emits to make room for at once though a bound is known
_ROWS_EACH = 8  # rows that a thread of its own is worth having for
_ROWS_AHEAD = 96  # from about so many rows on a product runs at full speed
_MOST_GROUPS = 64  # as many as the C++ has room for
_WORTH_SHARING = 1 << 16  # multiplications of a product that is worth a second thread, as in loop.h
ENDLESS = 2**31 - 2  # times are int32


@dataclass
class Native:
    """A program, compiled.

    Attributes:
        source: the C++.
        seconds: that compiling took; about 0 where it was found on disk.
    """

    source: LoopSource
    library: ctypes.CDLL
    prologue: Prologue
    seconds: float
    slot: dict[str, int]
    sizes: Sizes


Size = Callable[[Mapping[str, int]], int]  # from the values of the symbols


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
        expr = size if isinstance(size, sympy.Expr) else expression(size)
        if expr.is_Integer:
            number = int(expr)
            return lambda _: number
        names = sorted(map(str, expr.free_symbols))
        self._symbols.update(names)
        if expr.is_Symbol:
            return operator.itemgetter(names[0])
        function: Callable[..., int] = eval(f"lambda {', '.join(names)}: {PythonPrinter().doprint(expr)}", {"math": math})
        return lambda values: int(function(*[values[name] for name in names]))


@dataclass
class End:
    """What a loop leaves.

    Attributes:
        steps: how many it took.
        made: by target: all steps of each emit and write.
        leaves: the final leaves of the state and of loop_state, arrays as they were at the start.
        writes: the program's writes.
        lengths, finished: of the rows.
    """

    steps: int
    made: dict[tuple[str, int], torch.Tensor]
    leaves: dict[str, list[Any]]
    writes: Sequence[Any]
    lengths: torch.Tensor
    finished: torch.Tensor

    def tensors(self) -> list[torch.Tensor]:
        return [*self.made.values(), *[leaf for tree in self.leaves.values() for leaf in tree if isinstance(leaf, torch.Tensor)]]

    def replaced(self, tensors: Sequence[torch.Tensor]) -> End:
        """The same with other tensors, in the order of `tensors`."""
        given = iter(tensors)
        made = {key: next(given) for key in self.made}
        leaves = {kind: [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in tree] for kind, tree in self.leaves.items()}
        return End(self.steps, made, leaves, self.writes, self.lengths, self.finished)

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
    """

    def __init__(
        self, native: Native, program: Program, call: Call, begun: Start, tensors: Sequence[torch.Tensor], seed: int | None
    ) -> None:
        self.native, self.program, self.begun = native, program, begun
        source, slot = native.source, native.slot
        self._entries = (ctypes.c_int64 * len(slot))()
        self._alive: list[Any] = [tensors]  # what the entries point to
        sizes = native.sizes
        self._symbols = {name: begun.batch if place is None else tensors[place[0]].shape[place[1]] for name, place in sizes.places.items()}
        leaves: dict[str, Any] = {
            "finished": [begun.finished], "inputs": begun.inputs, "state": begun.state, "loop_state": begun.loop_state or [],
            "token": {place: self._first_tokens(size) for place, size in sizes.tables.items()},
        }  # fmt: skip
        given = {Source("initial inputs", place): leaf.detach() for place, leaf in enumerate(begun.inputs)}
        given |= {Source("initial token", place): leaf for place, leaf in leaves["token"].items()}
        if seed is not None:
            given[Source("seed")] = torch.tensor(seed, dtype=torch.int64)
        for name, place in native.prologue.direct:
            tensor = tensors[place]
            if not tensor.is_contiguous():
                self._alive.append(tensor := tensor.detach().contiguous())
            self._entries[slot[name]] = tensor.data_ptr()
        with torch.no_grad():
            made = native.prologue.tensors(tensors, given)
        self._alive.append(made)
        for name, tensor in made:
            self._entries[slot[name]] = tensor.data_ptr()
        for name in source.symbols:
            self._entries[slot[name]] = self._symbols[name]
        self._returned: list[tuple[str, int, int, torch.Size, torch.dtype]] = []
        for carried, init, last in source.carried:
            leaf = self._point(init, leaves[carried.kind][carried.place])
            if last is not None:
                self._returned.append((carried.kind, carried.place, slot[last], leaf.shape, leaf.dtype))
        self._point("init_fin", begun.finished)
        sunk = source.sunk
        self._after = {
            place: (module, [tensors[read.place].detach() for read in sunk.sources[place]]) for place, module in sunk.modules.items()
        }
        self._kept = {"state": list(begun.state), "loop_state": list(begun.loop_state or [])}
        self._emits = [(target, entry, [size(self._symbols) for size in step], dtype) for target, entry, step, dtype in sizes.emits]
        self._bind_limits(call, source)

    def _point(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().contiguous()
        self._alive.append(tensor)
        self._entries[self.native.slot[name]] = tensor.data_ptr()
        return tensor

    def _bind_limits(self, call: Call, source: LoopSource) -> None:
        slot, batch = self.native.slot, self.begun.batch
        self._limit = ENDLESS if call.max_steps is None else call.max_steps
        self._bound = min([self._limit, *[bound(self._symbols) for bound in self.native.sizes.bounds]])
        threads = min(torch.get_num_threads(), _MOST_GROUPS)
        groups = max(min(threads, batch // _ROWS_EACH) if source.retires else 1, 1)
        rows = 1 if source.locality is None else -(-batch // groups)
        of_row = batch if source.locality is None else 1
        ahead = max(_ROWS_AHEAD // max(of_row, 1), rows) if call.parallel_iterations is None else rows * call.parallel_iterations
        if groups == 1 and batch < 16 * threads and batch * self.native.sizes.largest_product < _WORTH_SHARING:
            threads = 1
        for name, number in (
            ("B", batch),
            ("limit", self._limit),
            ("bound", self._bound),
            ("threads", threads),
            ("groups", groups),
            ("rows_ahead", ahead),
        ):
            self._entries[slot[name]] = number

    def _first_tokens(self, size: Size) -> torch.Tensor:
        """What stands for the inputs of the first step: the rows behind a table of that size."""
        first = size(self._symbols)
        return torch.arange(first, first + self.begun.batch)

    def run(self) -> End | None:
        """The loop; None where a row looked where there is nothing."""
        slot = self.native.slot
        entries = type(self._entries).from_buffer_copy(self._entries)
        batch = self.begun.batch
        leaves = {kind: list(kept) for kind, kept in self._kept.items()}
        for kind, place, entry, shape, dtype in self._returned:
            leaf = leaves[kind][place] = torch.empty(shape, dtype=dtype)
            entries[entry] = leaf.data_ptr()
        finished, lengths = torch.empty(batch, dtype=torch.bool), torch.empty(batch, dtype=torch.int32)
        entries[slot["finished"]], entries[slot["lengths"]] = finished.data_ptr(), lengths.data_ptr()
        room, base = self._room(), 0
        pieces: list[list[torch.Tensor]] = []
        status = 1
        while status == 1:
            entries[slot["base"]], entries[slot["capacity"]] = base, room
            pieces.append([torch.empty((room, *shape), dtype=dtype) for _, _, shape, dtype in self._emits])
            for (_, entry, _, _), piece in zip(self._emits, pieces[-1], strict=True):
                entries[entry] = piece.data_ptr()
            status = self.native.library.run(ctypes.addressof(entries))
            base += room
            room = min(2 * room, self._limit - base)
        if status == 2:
            return None
        steps = entries[slot["steps"]]
        whole = pieces[0] if len(pieces) == 1 else [torch.cat(parts) for parts in zip(*pieces, strict=True)]
        made = {key: piece[:steps] for (key, _, _, _), piece in zip(self._emits, whole, strict=True)}
        for place in self._after:
            made["emit", place] = self._made_after(place, made.pop(("stored", place)), lengths)
        return End(steps, made, leaves, self.program.writes, lengths, finished)

    def _made_after(self, place: int, stored: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """An emit of all steps ``[T, B, N]``, from what the loop stored for it."""
        module, tensors = self._after[place]
        with torch.no_grad():
            emit = module(stored.reshape(-1, *stored.shape[2:]), *tensors).reshape(*stored.shape[:2], -1)
            over = torch.arange(len(emit), dtype=torch.int32).unsqueeze(1) >= lengths
            made: torch.Tensor = emit.masked_fill_(over.unsqueeze(-1), 0)
        return made

    def _room(self) -> int:
        """The steps to make room for: all that there may be, if that is not too much."""
        size = sum(torch.Size(shape).numel() * dtype.itemsize for _, _, shape, dtype in self._emits)
        return self._bound if self._bound * size <= _MOST_ROOM or self._bound <= _FIRST_ROOM else _FIRST_ROOM


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
