"""What a slot's row begins with. In: the tensors of a loop over slots, and values of requests; out: the tensors with the values written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import nn
from torch.autograd.graph import increment_version

Array = npt.NDArray[Any]
Value = Any  # a tensor, a numpy array, or a number where a row holds one
_OF_NUMPY = {torch.float32, torch.float64, torch.int64, torch.int32, torch.bool}
_KINDS = {bool: "a bool", int: "an int", float: "a float"}


@dataclass(frozen=True)
class Row:
    """A tensor that loop_fn closes over and that holds something of each slot.

    Attributes:
        tensor: with the slots along ``dim``. The engine writes into it.
        dim: 0 for ``[slots, ...]``; 1 for ``[T, slots, ...]``, which loop_fn reads as ``tensor[time]``.
    """

    tensor: torch.Tensor
    dim: int = 0


class Rows:
    """The tensors of a loop that hold something of each slot.

    Args:
        rows: by name.
        slots: how many there are.
        closed_over: the tensors that loop_fn closes over.

    Raises:
        ValueError: one has not the slots in its dimension, or is not closed over.
    """

    def __init__(self, rows: Mapping[str, Row], slots: int, closed_over: Sequence[torch.Tensor]) -> None:
        for name, row in rows.items():
            if row.tensor.ndim <= row.dim or row.tensor.shape[row.dim] != slots:
                raise ValueError(f"{name} must have the {slots} slots in dimension {row.dim}, got shape {list(row.tensor.shape)}")
            if not any(tensor is row.tensor for tensor in closed_over):
                raise ValueError(f"{name} is not among the tensors that loop_fn closes over")
        self._rows = dict(rows)
        self._rooms = {name: row.tensor.select(row.dim, 0).shape for name, row in rows.items()}
        self._arrays = {name: array_of(row.tensor) for name, row in rows.items()}
        self._written = [row.tensor for name, row in rows.items() if self._arrays[name] is not None and not row.tensor.is_inference()]
        self._numbers = {name: _types(row.tensor.dtype) for name, row in rows.items() if row.tensor.ndim == 1}

    def checked(self, values: Mapping[str, Value]) -> None:
        """Whether a request's values fit.

        Raises:
            ValueError: a name is missing or unknown, or a value has another dtype or shape, or is a number that the dtype does not hold.
        """
        if values.keys() != self._rows.keys():
            raise ValueError(f"a request must give {', '.join(sorted(self._rows))}; got {', '.join(sorted(values)) or 'nothing'}")
        for name, value in values.items():
            if type(value) in _KINDS and name in self._numbers:
                self._check_number(name, value)
            else:
                self._check_tensor(name, _tensor(name, value))

    def _check_number(self, name: str, value: Any) -> None:
        dtype = self._rows[name].tensor.dtype
        if type(value) not in self._numbers[name]:
            raise ValueError(f"{name} must be {dtype}, got {_KINDS[type(value)]}")
        if type(value) is int and not dtype.is_floating_point:
            room = torch.iinfo(dtype)
            if not room.min <= value <= room.max:
                raise ValueError(f"{name} must be {dtype}, which does not hold {value}")

    def _check_tensor(self, name: str, value: torch.Tensor) -> None:
        dtype, dim, room = self._rows[name].tensor.dtype, self._rows[name].dim, self._rooms[name]
        if value.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {value.dtype}")
        shape = value.shape
        if shape != room and not (dim == 1 and len(shape) == len(room) and shape[1:] == room[1:] and shape[0] <= room[0]):
            raise ValueError(f"{name} must have shape {list(room)}{' or fewer in the first dimension' * dim}, got {list(shape)}")

    def write(self, slots: Sequence[int], given: Sequence[Mapping[str, Value]]) -> None:
        """Put values that were checked where these slots have theirs; shorter ones along time are filled up with zeros."""
        for name, row in self._rows.items():
            column, array = [values[name] for values in given], self._arrays[name]
            if array is None:
                _write(row, slots, column)
            elif row.dim == 0:
                array[list(slots)] = [_numpy(value) for value in column]
            else:
                array[:, list(slots)] = 0
                for slot, value in zip(slots, column, strict=True):
                    array[: len(value), slot] = _numpy(value)
        increment_version(self._written)

    def clear(self, slots: Sequence[int]) -> None:
        """Zeros where these slots have theirs."""
        index = torch.tensor(slots)
        for row in self._rows.values():
            row.tensor.index_fill_(row.dim, index.to(row.tensor.device), 0)


def array_of(tensor: torch.Tensor) -> Array | None:
    """Its memory, where numpy can write to it.

    An operator of torch lets other threads run, and comes back when they let it: numpy's small writes do not, which is why they are used
    between launches (admitting took 0.3 to 3 ms under load with torch's, 0.1 alone).
    """
    return tensor.detach().numpy() if tensor.device.type == "cpu" and tensor.dtype in _OF_NUMPY else None


def _numpy(value: Value) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _write(row: Row, slots: Sequence[int], column: Sequence[Value]) -> None:
    to = row.tensor
    index, values = torch.tensor(slots, device=to.device), [torch.as_tensor(value, dtype=to.dtype) for value in column]
    if row.dim == 0:
        to.index_copy_(0, index, torch.stack(values).to(to.device))
        return
    to.index_fill_(1, index, 0)
    padded = nn.utils.rnn.pad_sequence(values)
    to[: len(padded)].index_copy_(1, index, padded.to(to.device))


def _tensor(name: str, value: Value) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a tensor, a numpy array or a number, got a {type(value).__name__}: {error}") from error


def _types(dtype: torch.dtype) -> tuple[type, ...]:
    """Of numbers that a dtype stands for."""
    if dtype == torch.bool:
        return (bool,)
    return (int, float) if dtype.is_floating_point else (int,)
