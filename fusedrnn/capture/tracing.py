"""What happens to each torch function while a step is traced. In: a call of user code on closed-over and traced tensors; out: the same on
traced ones, with look-ups, random draws and conditionals as the graph's own operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import traceback as node_meta
from torch.overrides import TorchFunctionMode

from .. import trees
from ..draws import RULES as DRAWS
from ..frames import Frame
from . import ops, refusal
from .refusal import NotCapturable
from .spelled_out import SPELLED_OUT

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)
_TO_PYTHON = {
    torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__, torch.Tensor.item,
    torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__contains__, torch.Tensor.__complex__,
}  # fmt: skip
# What a comparison of the time with a number says at every time from 1 on: (relation, number) -> answer or None.
_KNOWN_OF_TIME: dict[str, Callable[[int], bool | None]] = {
    "eq": lambda n: False if n < 1 else None,
    "ne": lambda n: True if n < 1 else None,
    "gt": lambda n: True if n < 1 else None,
    "ge": lambda n: True if n <= 1 else None,
    "lt": lambda n: False if n <= 1 else None,
    "le": lambda n: False if n < 1 else None,
}


class Tracing(TorchFunctionMode):
    """Active while the cell and loop_fn are traced.

    Args:
        frame: of the traced loop.
        clock: the traced time of loop_fn's call.
        stand_ins: the traced tensor for each closed-over one, by identity.
    """

    def __init__(self, frame: Frame, clock: torch.Tensor, stand_ins: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self.frame = frame
        self.clock = clock
        self.stand_ins = stand_ins
        self.who = "the cell"
        self.starts = False  # the time is 0
        self.reads: list[tuple[int, int]] = []  # identity of a closed-over tensor, and the dimension along which it is read
        self.past_end: list[torch.Tensor] = []  # bool, 0-d or [B]: which rows looked past an end
        self.conversion: str | None = None
        self.met_stranger = False  # a tensor with data that is not among the closed-over ones: it becomes a constant
        self._taken: list[torch.Tensor] = []  # the predicates of the branches being traced
        self._known: dict[int, tuple[torch.Tensor, bool]] = {}
        frame.conditional = self._conditional

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        args, kwargs = self.stood_in((args, kwargs))
        if func in _TO_PYTHON:
            return self._to_python(func, args, kwargs)
        node_meta.current_meta["stack_trace"] = refusal.here()
        result = self._dispatched(func, args, kwargs)
        if torch.is_grad_enabled() or not isinstance(result, (torch.Tensor, tuple, list)):
            return result
        # A step is traced with gradients on: here the user has turned them off.
        return pytree.tree_map_only(torch.Tensor, lambda x: x.detach() if x.is_floating_point() else x, result)

    def stood_in(self, tree: Any) -> Any:
        """The tree with traced tensors in the place of closed-over ones."""
        return pytree.tree_map_only(torch.Tensor, self._stand_in, tree)

    def _stand_in(self, x: torch.Tensor) -> torch.Tensor:
        known = self.stand_ins.get(id(x))
        if known is not None:
            return known
        if not isinstance(x, FakeTensor) and not torch._C._functorch.is_functorch_wrapped_tensor(x):
            self.met_stranger = True
        return x

    def _dispatched(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in DRAWS:
            if kwargs.get("generator") is not None:
                raise NotCapturable(
                    f"{self.who} draws from a torch.Generator: leave `generator` out, or use fusedrnn.random", refusal.here()
                )
            return DRAWS[func](self.frame, *args, **kwargs)
        if func in SPELLED_OUT:
            return SPELLED_OUT[func](*args, **kwargs)
        if self.who == "loop_fn" and func in _READS:
            return _READS[func](self, func, *args, **kwargs)
        result = func(*args, **kwargs)
        if len(args) == 2 and args[0] is self.clock and isinstance(args[1], int):
            relation = _KNOWN_OF_TIME.get(getattr(func, "__name__", "").strip("_"))
            if relation is not None and relation(args[1]) is not None:
                self._known[id(result)] = (result, bool(relation(args[1])))
        return result

    def _to_python(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is torch.Tensor.__bool__ and id(args[0]) in self._known:
            return self._known[id(args[0])][1]
        self.conversion = func.__name__
        result = func(*args, **kwargs)
        self.conversion = None
        return result

    def looked_past(self, past: torch.Tensor) -> None:
        for taken in self._taken:
            past = past & taken
        self.past_end.append(past)

    def _conditional(self, pred: Any, true_fn: Any, false_fn: Any, operands: Any) -> Any:
        """Both branches, and of their results the one that the predicate names."""
        if not isinstance(pred, torch.Tensor):
            return true_fn(*operands) if pred else false_fn(*operands)
        if id(pred) in self._known:
            return true_fn(*operands) if self._known[id(pred)][1] else false_fn(*operands)
        pred = pred.reshape(())
        results = []
        for branch, taken in ((true_fn, pred), (false_fn, ~pred)):
            self._taken.append(taken)
            results.append(branch(*operands))
            self._taken.pop()
        return trees.map_leaves(lambda yes, no: torch.where(pred, yes, no) if isinstance(yes, torch.Tensor) else yes, *results)

    def _element(self, x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
        """``x.select(dim, index)`` under the read rule, for a traced 0-d index."""
        if self.starts and index is self.clock and x.shape[dim] > 0:
            return x.select(dim, 0)
        self.looked_past(index >= x.shape[dim])
        self.reads += [(real, dim) for real, traced in self.stand_ins.items() if traced is x]
        return ops.read(x, index, dim)  # type: ignore[no-any-return]

    def _within(self, x: torch.Tensor, dim: int, index: Any, batch_axis: int = 0) -> tuple[torch.Tensor, Any]:
        """An index of many, or a Python int, that stays within ``x``'s dimension ``dim``."""
        size = x.shape[dim]
        if isinstance(index, torch.Tensor):
            past = index >= size
            along = past.movedim(batch_axis, 0) if batch_axis < past.ndim else past.reshape(1, -1)
            self.looked_past(along.reshape(along.shape[0], -1).any(1) if past.numel() != 0 else past.any())
            index = index.clamp(max=size - 1)
        elif index >= size:
            self.looked_past(torch.ones((), dtype=torch.bool))
            index = size - 1
        if size == 0:
            x, index = torch.cat([x, x.sum(dim, keepdim=True, dtype=x.dtype)], dim), index - index
        return x, index


def _is_index(item: Any) -> bool:
    if isinstance(item, torch.Tensor):
        return item.dtype in _INTEGERS
    return isinstance(item, int) and not isinstance(item, bool)


def _consumes(item: Any) -> int:
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    return item.ndim if isinstance(item, torch.Tensor) and item.dtype == torch.bool else 1


def _getitem(mode: Tracing, func: Any, x: torch.Tensor, index: Any) -> Any:
    items = list(index) if isinstance(index, tuple) else [index]
    if not any(map(_is_index, items)):
        return func(x, index)
    dim, dims = 0, []
    for place, item in enumerate(items):
        if item is Ellipsis:
            dim = x.ndim - sum(_consumes(rest) for rest in items[place + 1 :])
        dims.append(dim)
        dim += _consumes(item)
    scalars = [place for place, item in enumerate(items) if isinstance(item, torch.Tensor) and item.dtype in _INTEGERS and item.ndim == 0]
    vectors = [item for item in items if isinstance(item, torch.Tensor) and item.ndim > 0]
    if vectors or any(isinstance(item, list) for item in items):
        for place, item in enumerate(items):
            if _is_index(item):
                x, items[place] = mode._within(
                    x, dims[place], item.reshape(1) if isinstance(item, torch.Tensor) and not item.ndim else item
                )
                if place in scalars:
                    items[place] = items[place].reshape(())
        return func(x, tuple(items))
    # 0-d indices are elements: the dimension goes, one after the other from the back.
    for place in reversed(range(len(items))):
        if place in scalars:
            x = mode._element(x, dims[place], items[place])
        elif _is_index(items[place]):
            x, items[place] = mode._within(x, dims[place], items[place])
    rest = tuple(item for place, item in enumerate(items) if place not in scalars)
    return func(x, rest) if any(item != slice(None) and item is not Ellipsis for item in rest) else x


def _select(mode: Tracing, func: Any, input: torch.Tensor, dim: int, index: Any) -> Any:
    dim %= input.ndim
    if isinstance(index, torch.Tensor):
        return mode._element(input, dim, index.reshape(()))
    input, index = mode._within(input, dim, index)
    return func(input, dim, index)


def _narrow(mode: Tracing, func: Any, input: torch.Tensor, dim: int, start: Any, length: Any) -> Any:
    if isinstance(start, torch.Tensor):
        if length != 1:
            raise NotCapturable(
                "loop_fn cuts a slice that starts at a tensor: read its elements one by one, or gather them", refusal.here()
            )
        return mode._element(input, dim % input.ndim, start.reshape(())).unsqueeze(dim % input.ndim)
    return func(input, dim, start, length)


def _index_select(mode: Tracing, func: Any, input: torch.Tensor, dim: int, index: torch.Tensor) -> Any:
    if index.numel() == 1:
        return mode._element(input, dim % input.ndim, index.reshape(())).unsqueeze(dim % input.ndim)
    input, index = mode._within(input, dim % input.ndim, index.reshape(-1))
    return func(input, dim, index)


def _embedding(mode: Tracing, func: Any, input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if input.ndim == 0 or (input.ndim == 1 and input.shape[0] == 1 and not isinstance(input.shape[0], torch.SymInt)):
        element = mode._element(weight, 0, input.reshape(()))  # one index may be the time
        return element if input.ndim == 0 else element.unsqueeze(0)
    return func(input, weight, *args, **kwargs)


def _gather(mode: Tracing, func: Any, input: torch.Tensor, dim: int, index: torch.Tensor, **kwargs: Any) -> Any:
    dim %= input.ndim
    input, index = mode._within(input, dim, index, batch_axis=1 if dim == 0 else 0)
    return func(input, dim, index, **kwargs)


def _take_along_dim(mode: Tracing, func: Any, input: torch.Tensor, indices: torch.Tensor, dim: Any = None, **kwargs: Any) -> Any:
    if dim is None:
        return func(input, indices, **kwargs)
    dim %= input.ndim
    input, indices = mode._within(input, dim, indices, batch_axis=1 if dim == 0 else 0)
    return func(input, indices, dim, **kwargs)


_READS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.__getitem__: _getitem,
    torch.select: _select,
    torch.Tensor.select: _select,
    torch.narrow: _narrow,
    torch.Tensor.narrow: _narrow,
    F.embedding: _embedding,
    torch.index_select: _index_select,
    torch.Tensor.index_select: _index_select,
    torch.gather: _gather,
    torch.Tensor.gather: _gather,
    torch.take_along_dim: _take_along_dim,
    torch.Tensor.take_along_dim: _take_along_dim,
}
