"""Look-ups inside loop_fn: one past the end returns the last element, and is an error only for a row that is still unfinished.

A loop_fn is called once more after the last step, so the natural ``inputs[time]`` reads one element too many. Every executor
answers it with the last element (of an empty input: zeros) and checks after the call who read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .draws import Draws
from .frames import Frame, PastEnd, Unbound, current


class Reads(Draws):
    """While active, integer tensors that index a tensor follow the read rule; look-ups past the end are noted in the frame.

    It covers ``x[i]`` (also within a tuple: ``x[:, i]``, ``x[i, rows]``; also for a Python int), ``select``, ``narrow`` to one
    element, ``index_select``, ``gather``, ``take_along_dim`` and ``embedding``. Negative indices count from the end, one before the front
    is as one past the end, and a slice past the end is empty, as in torch. Random functions are those of `Draws`.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        return super().__torch_function__(func, types, args, kwargs) if rule is None else rule(self.frame, func, *args, **kwargs)


def past_end(index: int, shape: tuple[int, ...], dim: int = 0) -> bool:
    """Note a look-up past the end by every row; False outside of a loop, where it is the caller's error."""
    frame = current()
    if frame is None:
        return False
    frame.past_end.append(PastEnd(index, shape, dim, None))
    return True


def is_traced() -> bool:
    """Whether a step is being captured, so that a look-up becomes a node of its graph."""
    frame = current()
    return frame is not None and frame.clock is not None


def traced_element(elements: torch.Tensor | list[torch.Tensor], index: torch.Tensor) -> torch.Tensor:
    """One of the elements, at a traced position."""
    elements = elements if isinstance(elements, torch.Tensor) else torch.stack(elements)
    frame = current()
    if frame is None or index is not frame.clock:  # there is nothing at a negative position
        index = torch.where(index < 0, elements.shape[0], index)
    return elements[index]


def check(frame: Frame, finished: torch.Tensor) -> None:
    """Raise IndexError if a row that is not finished read past the end since the last check; forget the look-ups.

    Args:
        finished: ``[B]`` bool, as it stands after the loop_fn call that made the look-ups.
    """
    if not frame.past_end:
        return
    for read in frame.past_end:
        by = ~finished if read.rows is None or read.rows.shape != finished.shape else ~finished & read.rows.to(finished.device)
        if by.any():
            rows = by.nonzero().flatten().tolist()
            shown = f"{rows[:8]}{' and more' if len(rows) > 8 else ''}"
            where = "past its end" if read.position >= 0 else "before its front"
            raise IndexError(
                f"loop_fn at time {frame.time} read index {read.position} of dimension {read.dim} of an input of shape {list(read.shape)}, "
                f"{where}, for rows that are not finished: {shown}. Report them finished at that time, or clamp the index."
            )
    frame.past_end.clear()


def _bounded(frame: Frame, x: torch.Tensor, dim: int, index: Any, batch_axis: int = 0) -> tuple[torch.Tensor, Any]:
    """``x`` and ``index`` such that the look-up stays within dimension ``dim``: (x, int) for one index, (x, tensor) for many."""
    size = x.shape[dim]
    at: Any
    if isinstance(index, (int, np.integer)) or index.ndim == 0:
        at = int(index)
        if -size <= at < size:
            return x, at
        frame.past_end.append(PastEnd(at, tuple(x.shape), dim, None))
        at = 0 if at < 0 else max(size - 1, 0)
    else:
        past = index >= size
        if not past.any():
            return x, index
        along = past.movedim(batch_axis, 0) if batch_axis < past.ndim else past.reshape(1, -1)
        frame.past_end.append(PastEnd(int(index.max()), tuple(x.shape), dim, along.reshape(len(along), -1).any(1)))
        at = index.clamp(max=max(size - 1, 0))
    if size == 0:  # one element of zeros, which gradients still flow through
        x = torch.cat([x, x.sum(dim, keepdim=True, dtype=x.dtype)], dim)
    return x, at


def is_index(item: Any) -> bool:
    """Whether one item of an index is a number or numbers."""
    if isinstance(item, torch.Tensor):
        return item.dtype in (torch.int32, torch.int64, torch.int16, torch.int8)
    return isinstance(item, (int, np.integer)) and not isinstance(item, bool)


def _getitem(frame: Frame, func: Any, x: torch.Tensor, index: Any) -> Any:
    if not (is_index(index) or (isinstance(index, tuple) and any(map(is_index, index)))):
        return func(x, index)
    items = list(index) if isinstance(index, tuple) else [index]
    dim = 0
    for place, item in enumerate(items):
        if item is Ellipsis:
            dim = x.ndim - sum(consumes(rest) for rest in items[place + 1 :])
        elif is_index(item):
            x, items[place] = _bounded(frame, x, dim, item)
            dim += 1
        else:
            dim += consumes(item)
    if x.requires_grad and torch.is_grad_enabled():
        single = _single(items, x)
        if single is not None:
            return _element(frame, x, single, items[single])
    return func(x, tuple(items))


def _single(items: list[Any], x: torch.Tensor) -> int | None:
    """The place of the one int in an index that is whole slices otherwise, so also its dimension; None for any other index."""
    ints = [place for place, item in enumerate(items) if isinstance(item, int) and not isinstance(item, bool)]
    whole = all(isinstance(item, slice) and item == slice(None) for place, item in enumerate(items) if place not in ints)
    return ints[0] if len(ints) == 1 and whole and ints[0] < x.ndim else None


def _element(frame: Frame, x: torch.Tensor, dim: int, at: int) -> torch.Tensor:
    """``x.select(dim, at)`` for a backward. Where a second step reads x, its elements are unbound all at once: the backward of ``unbind``
    is one stack, that of ``select`` a zero tensor of x's size, which for every step makes the backward quadratic in T."""
    read = frame.unbound.get((id(x), dim))
    if read is None or read.version != x._version:
        frame.unbound[id(x), dim] = Unbound(x, x._version, frame.time, frame.time)
        return x.select(dim, at)
    read.last = frame.time
    if read.elements is None:
        if read.first == frame.time:  # two reads in one step may be all there are
            return x.select(dim, at)
        read.elements = x.unbind(dim)
    return read.elements[at]


def consumes(item: Any) -> int:
    """How many dimensions one item of an index takes up."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    return item.ndim if isinstance(item, torch.Tensor) and item.dtype == torch.bool else 1


def _select(frame: Frame, func: Any, input: torch.Tensor, dim: Any, index: Any) -> Any:
    if isinstance(dim, int) and is_index(index) and input.ndim:
        dim = dim % input.ndim
        input, index = _bounded(frame, input, dim, index)
        if isinstance(index, int) and input.requires_grad and torch.is_grad_enabled():
            return _element(frame, input, dim, index)
    return func(input, dim, index)


def _index_select(frame: Frame, func: Any, input: torch.Tensor, dim: Any, index: Any) -> Any:
    if isinstance(dim, int) and is_index(index) and index.ndim <= 1 and input.ndim:
        input, index = _bounded(frame, input, dim % input.ndim, index.reshape(-1))
    return func(input, dim, index)


def _narrow(frame: Frame, func: Any, input: torch.Tensor, dim: Any, start: Any, length: Any) -> Any:
    if isinstance(dim, int) and is_index(start) and length == 1 and input.ndim:
        input, start = _bounded(frame, input, dim % input.ndim, start)
    return func(input, dim, start, length)


def _embedding(frame: Frame, func: Any, input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if weight.device.type == "cpu":
        try:
            return func(input, weight, *args, **kwargs)
        except IndexError:  # torch has looked already; a GPU would stop the process instead
            if input.numel() > 1:  # tokens of rows; one index may be the time
                raise IndexError(
                    f"loop_fn at time {frame.time} looks up index {int(input.max())} (the least is {int(input.min())}) "
                    f"in an embedding of {len(weight)} rows"
                ) from None
    weight, index = _bounded(frame, weight, 0, input.reshape(1) if input.ndim == 0 else input)
    return func(index.reshape(input.shape), weight, *args, **kwargs)


def _gather(frame: Frame, func: Any, input: torch.Tensor, dim: Any, index: Any, **kwargs: Any) -> Any:
    if isinstance(dim, int) and is_index(index) and input.ndim and index.ndim == input.ndim:
        dim = dim % input.ndim
        input, index = _bounded(frame, input, dim, index, batch_axis=1 if dim == 0 else 0)
    return func(input, dim, index, **kwargs)


def _take_along_dim(frame: Frame, func: Any, input: torch.Tensor, indices: Any, dim: Any = None, **kwargs: Any) -> Any:
    if isinstance(dim, int) and is_index(indices) and indices.ndim == input.ndim:
        dim = dim % input.ndim
        input, indices = _bounded(frame, input, dim, indices, batch_axis=1 if dim == 0 else 0)
    return func(input, indices, dim, **kwargs)


# The functions that look up, by the name of their rule: `fusedrnn.capture.tracing` has rules of the same names.
_LOOK_UPS: dict[str, tuple[Any, ...]] = {
    "getitem": (torch.Tensor.__getitem__,),
    "select": (torch.select, torch.Tensor.select),
    "narrow": (torch.narrow, torch.Tensor.narrow),
    "embedding": (F.embedding,),
    "index_select": (torch.index_select, torch.Tensor.index_select),
    "gather": (torch.gather, torch.Tensor.gather),
    "take_along_dim": (torch.take_along_dim, torch.Tensor.take_along_dim),
}


def by_function(rules: Mapping[str, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """Rules by torch's functions, from rules by name."""
    return {function: rules[name] for name, functions in _LOOK_UPS.items() for function in functions}


_RULES = by_function({
    "getitem": _getitem, "select": _select, "narrow": _narrow, "embedding": _embedding, "index_select": _index_select,
    "gather": _gather, "take_along_dim": _take_along_dim,
})  # fmt: skip
