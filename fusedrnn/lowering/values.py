"""What a lowered node is to the C++ around it: per-row sizes, a dtype, and how one element is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .pointwise import C_TYPES, computed_in

Index = Sequence[str]


@dataclass(frozen=True)
class Value:
    """A tensor of one row, or of no row.

    Attributes:
        dims: its sizes as C expressions.
        dtype: of torch's tensor.
        load: the C expression of an element, in the type the dtype computes in.
        pointer: where its elements stand in order, as a C expression; None where they are only computed.
        cheap: reading an element twice costs nothing to speak of.
    """

    dims: tuple[str, ...]
    dtype: torch.dtype
    load: Callable[[Index], str]
    pointer: str | None = None
    cheap: bool = True


def linear(index: Index, dims: Sequence[str]) -> str:
    """The place of an element in a row-major tensor."""
    where = ""
    for position, size in zip(index, dims, strict=True):
        where = position if not where or where == "0" else f"({where}) * {size} + {position}" if size != "1" else where
    return where or "0"


def count(dims: Sequence[str]) -> str:
    """The number of elements."""
    number, names = 1, []
    for size in dims:
        if size.isdigit():
            number *= int(size)
        else:
            names.append(f"({size})")
    return " * ".join([str(number)] * (number != 1 or not names) + names)


def stored(pointer: str, dims: Sequence[str], dtype: torch.dtype) -> Value:
    """The tensor whose elements stand in order at a pointer."""
    return Value(tuple(dims), dtype, lambda index: read(f"{pointer}[{linear(index, dims)}]", dtype), pointer)


def read(element: str, dtype: torch.dtype) -> str:
    """A stored element in the type it computes in."""
    if dtype in (torch.bfloat16, torch.float16):
        return f"frnn::to_float({element})"
    return f"({element} != 0)" if dtype == torch.bool else element


def write(expression: str, dtype: torch.dtype) -> str:
    """An expression as it is stored."""
    if dtype in (torch.bfloat16, torch.float16):
        return f"{C_TYPES[dtype].replace('frnn::', 'frnn::to_')}({expression})"
    return f"({C_TYPES[dtype]})({expression})" if computed_in(dtype) != C_TYPES[dtype] else expression
