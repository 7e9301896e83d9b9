"""C++ text in the making. In: lines; out: loops, temporaries and fresh names, indented for a reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count as counter

import torch

from .pointwise import C_TYPES
from .values import Index, Value, count, stored, write


class Names:
    """Fresh names, of one source."""

    def __init__(self) -> None:
        self._numbers = counter()

    def __call__(self, prefix: str) -> str:
        return f"{prefix}{next(self._numbers)}"


class Block:
    """A run of statements.

    Args:
        names: of the source.
        arena: collects the sizes in bytes, as C expressions, of the temporaries that are not scalars.
    """

    def __init__(self, names: Names, arena: list[str], depth: int = 1) -> None:
        self.names = names
        self.arena = arena
        self.lines: list[str] = []
        self.depth = depth

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def loop(self, sizes: Sequence[str], *, hint: str = "") -> Iterator[list[str]]:
        """Nested loops over the sizes; gives the names of the indices. A size of 1 makes no loop."""
        index, opened = [], 0
        inner = max((place for place, size in enumerate(sizes) if size != "1"), default=-1)
        for place, size in enumerate(sizes):
            if size == "1":
                index.append("0")
                continue
            name = self.names("i")
            if place == inner and hint:
                self.line(hint)
            self.line(f"for (int64_t {name} = 0; {name} < {size}; ++{name}) {{")
            self.depth += 1
            opened += 1
            index.append(name)
        yield index
        for _ in range(opened):
            self.depth -= 1
            self.line("}")

    def space(self, dims: Sequence[str], dtype: torch.dtype) -> str:
        """The name of a pointer to uninitialised room for a tensor."""
        name = self.names("v")
        kind = C_TYPES[dtype]
        if count(dims) == "1":
            self.line(f"{kind} {name}_[1]; {kind}* const {name} = {name}_;")
        else:
            self.line(f"{kind}* const __restrict {name} = ({kind}*)(arena + at{len(self.arena)});")
            self.arena.append(f"({count(dims)}) * (int64_t)sizeof({kind})")
        return name

    def fill(self, pointer: str, dims: Sequence[str], dtype: torch.dtype, element: Callable[[Index], str]) -> None:
        """Store every element of a tensor."""
        with self.loop(dims, hint="#pragma GCC ivdep") as index:
            where = stored(pointer, dims, torch.uint8).load(index)
            self.line(f"{where} = {write(element(index), dtype)};")

    def keep(self, value: Value) -> Value:
        """The value with its elements in memory."""
        if value.pointer is not None:
            return value
        pointer = self.space(value.dims, value.dtype)
        self.fill(pointer, value.dims, value.dtype, value.load)
        return stored(pointer, value.dims, value.dtype)
