"""Plain values. In: numbers, strings and containers of nothing else; out: keys that are equal only where Python can see no difference."""

from __future__ import annotations

from collections.abc import Collection
from operator import is_
from types import EllipsisType, NoneType, NotImplementedType
from typing import Any

import torch

# Compared by value; each is immutable, and its hash and equality are its own.
_EXACT = (
    bool, int, str, bytes, NoneType, EllipsisType, NotImplementedType,
    torch.dtype, torch.device, torch.memory_format, torch.layout,
)  # fmt: skip
_WRITTEN = (float, complex, range)  # 0.0 == -0.0 and NaN != NaN, and range(0) == range(1, 1): what they are written as tells them apart
SCALARS = frozenset((*_EXACT, *_WRITTEN))
_IDS = frozenset(map(id, SCALARS))  # by id: the hash of a class may be its metaclass's, which is code of the user
_WRITTEN_IDS = frozenset(map(id, _WRITTEN))


def is_scalar(value: Any) -> bool:
    return id(type(value)) in _IDS


def scalar_key(value: Any) -> Any:
    """What stands for a scalar next to its type."""
    return repr(value) if id(type(value)) in _WRITTEN_IDS else value


def flat_key(values: Collection[Any]) -> tuple[Any, ...] | None:
    """The types and the values where all are scalars, else None. One entry in a key whatever the length."""
    types = tuple(map(type, values))
    kinds = set(map(id, types))
    if not kinds <= _IDS:
        return None
    return types, tuple(values) if kinds.isdisjoint(_WRITTEN_IDS) else tuple(map(scalar_key, values))


def same(value: Any, expected: Any) -> bool:
    """Whether two values are one scalar."""
    if value is expected:
        return True
    return type(value) is type(expected) and is_scalar(expected) and bool(scalar_key(value) == scalar_key(expected))


def same_items(values: Any, expected: tuple[Any, ...]) -> bool:
    """Whether a container holds, in its order, these very objects or equal scalars."""
    if len(values) != len(expected):
        return False
    return all(map(is_, values, expected)) or all(map(same, values, expected))
