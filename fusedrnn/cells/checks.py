"""What the cells refuse. In: an argument and its name; out: the argument, or an error that names it, both sides and the way out."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch

from .. import trees
from ..trees import Tree


def size(name: str, value: Any, least: int = 1) -> int:
    """An int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def bound(name: str, value: float | None) -> float | None:
    """None, or a number above 0 that values are clamped to on both sides."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or None, got {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be above 0 (values are clamped to [-{name}, {name}]), got {value}; None does not clamp")
    return float(value)


def probability(name: str, value: Any, *, one: bool) -> float:
    """A probability of dropping in [0, 1), or in [0, 1] with ``one``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (0 <= value < 1 or (one and value == 1)) or math.isnan(value):
        raise ValueError(f"{name} must be in [0, 1{']' if one else ')'}, got {value}: it is the probability to drop, not to keep")
    return float(value)


def probabilities(name: str, value: Tree, state_size: Tree, *, one: bool) -> list[float]:
    """A probability for each leaf of the state, from one number for all of them or from a tree of numbers like the state."""
    leaves, structure = trees.flatten(state_size)
    if isinstance(value, (int, float)):
        return [probability(name, value, one=one)] * len(leaves)
    found = trees.match(structure, value, name)
    return [probability(f"{name}{path}", leaf, one=one) for path, leaf in zip(trees.paths(structure), found, strict=True)]


def seed(value: Any) -> int | torch.Tensor | None:
    """None, an int, or an integer tensor ``[B]`` with a seed for each row."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor) and value.ndim:
        if value.ndim != 1 or value.is_floating_point() or value.dtype == torch.bool:
            raise ValueError(f"seed must be None, an int or an integer tensor [B], got {trees.describe(value)}")
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"seed must be None, an int or an integer tensor [B], got {trees.describe(value)}") from None


def rows(name: str, value: Any, width: int, *, of: str, batch: int | None = None) -> None:
    """A tensor ``[B, width]``; ``of`` names the size that fixes the width, ``batch`` the B that inputs have."""
    if isinstance(value, torch.Tensor):
        shape = value.shape
        if len(shape) == 2 and shape[1] == width and (batch is None or shape[0] == batch):
            return
    elif not isinstance(value, (tuple, list, dict)):
        raise TypeError(f"{name} must be a tensor [B, {width}], got {trees.describe(value)}")
    rule = f"B = {batch} as in inputs, and {of} = {width}" if batch is not None else f"{of} = {width}"
    raise ValueError(f"{name} must be a tensor [B, {width}], got {trees.describe(value)} ({rule}); pass such a tensor or change {of}")


def pair(state: Any) -> tuple[Any, Any]:
    """The state of an LSTM. A namedtuple is refused: TensorFlow's LSTMStateTuple is (c, h), the other way round."""
    if type(state) is not tuple:
        raise TypeError(f"state must be the plain tuple (h, c), got {trees.describe(state)}; cell.zero_state(batch_size) makes one")
    if len(state) != 2:
        raise ValueError(f"state must be the two tensors (h, c), got {len(state)}: {trees.describe(state)}")
    return state


def array(name: str, value: Any, *shape: str | int) -> torch.Tensor:
    """A copy, as a tensor, of a tensor or of anything numpy understands. A dimension given as a str is free and only named in errors."""
    if not isinstance(value, torch.Tensor):
        value = np.array(value)
        if not np.issubdtype(value.dtype, np.number):
            raise TypeError(f"{name} must be an array of numbers, got an array of {value.dtype}")
    tensor = value.detach().clone() if isinstance(value, torch.Tensor) else torch.from_numpy(value)
    free = [isinstance(dim, str) for dim in shape]
    if tensor.ndim != len(shape) or any(not any_size and dim != got for any_size, dim, got in zip(free, shape, tensor.shape, strict=True)):
        raise ValueError(f"{name} must have the shape [{', '.join(map(str, shape))}], got {list(tensor.shape)}")
    return tensor


def width(name: str, tensor: torch.Tensor, gates: int) -> int:
    """The hidden size H of a kernel ``[..., gates * H]``."""
    hidden, rest = divmod(tensor.shape[-1], gates)
    if rest or not hidden:
        raise ValueError(f"{name} must have {gates} * H columns, one block of H for each gate, got the shape {list(tensor.shape)}")
    return hidden


def input_rows(name: str, kernel: torch.Tensor, recurrent: int) -> int:
    """The input size D of a kernel ``[D + recurrent, ...]``, TensorFlow's stack of input and recurrent weights."""
    inputs = kernel.shape[0] - recurrent
    if inputs < 0:
        raise ValueError(f"{name} must have the shape [D + {recurrent}, ...], at least {recurrent} rows, got {list(kernel.shape)}")
    return inputs
