"""What happens to each torch function while a step is traced. In: a call of user code on closed-over and traced tensors; out: the same on
traced ones, with look-ups, random draws and conditionals as the graph's own operators."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import traceback as node_meta
from torch.overrides import TorchFunctionMode

from .. import trees
from ..bodies import opened
from ..draws import RULES as DRAWS
from ..frames import Frame
from ..reads import by_function, consumes, is_index
from . import ops, refusal
from .refusal import NotCapturable
from .spelled_out import SPELLED_OUT

_TO_PYTHON = {
    torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__, torch.Tensor.item,
    torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__contains__, torch.Tensor.__complex__,
}  # fmt: skip
# What autograd knows of a tensor: a traced one is not what the loop would hold.
_OF_AUTOGRAD = {
    getattr(torch.Tensor, name).__get__: name
    for name in ("requires_grad", "grad_fn", "is_leaf")  # of closed-over ones it is compared
}
# What a comparison of the time with a number says at every time from 1 on: (relation, number) -> answer or None.
_KNOWN_OF_TIME: dict[str, Callable[[int], bool | None]] = {
    "eq": lambda n: False if n < 1 else None,
    "ne": lambda n: True if n < 1 else None,
    "gt": lambda n: True if n < 1 else None,
    "ge": lambda n: True if n <= 1 else None,
    "lt": lambda n: False if n <= 1 else None,
    "le": lambda n: False if n < 1 else None,
}
# In-place methods of values, by them their functional kin. Some do not take free sizes (torch 2.13: clamp_, cumsum_, index_fill_).
_OF_FORM = (
    "as_strided_",
    "detach_",
    "requires_grad_",
    "resize_",
    "resize_as_",
    "squeeze_",
    "swapaxes_",
    "swapdims_",
    "t_",
    "transpose_",
    "unsqueeze_",
)
_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    getattr(torch.Tensor, name): getattr(torch.Tensor, name[:-1])
    for name in dir(torch.Tensor)
    if name.endswith("_") and not name.startswith("_") and name not in _OF_FORM and hasattr(torch.Tensor, name[:-1])
}


_IN_PLACE = {
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
}


def _changes(func: Any) -> bool:
    """Whether a function changes its first argument."""
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def is_view(x: torch.Tensor, tensors: Iterable[torch.Tensor]) -> bool:
    """Whether a tensor shares its memory with one of the others."""
    return any(torch._C._is_alias_of(x, tensor) for tensor in tensors)  # type: ignore[attr-defined]


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
        self.inputs: list[torch.Tensor] = []  # the cell's, as it sees them
        self.changes_inputs: NotCapturable | None = None
        self.loop_state: list[torch.Tensor] = []  # its traced leaves
        self.overlapping: list[torch.Tensor] = []  # what the cell made that shares its memory with another leaf that it made
        self._elements: list[torch.Tensor] = []  # what was looked up at a traced place: a copy here, a view for whoever wrote the code
        self._changed: list[tuple[torch.Tensor, NotCapturable]] = []  # those of them that were changed in place and not put back
        self._taken: list[torch.Tensor] = []  # the predicates of the branches being traced
        self._known: dict[int, tuple[torch.Tensor, bool]] = {}
        frame.conditional = self._conditional

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _OF_AUTOGRAD:
            if id(args[0]) in self.stand_ins:
                return func(*args)
            if refusal.is_foreign(sys._getframe(1).f_code.co_filename):
                asked = f"{self.who} looks at {_OF_AUTOGRAD[func]} of what the step makes, which a graph does not know"
                raise NotCapturable(asked, refusal.here())
        args, kwargs = self.stood_in((args, kwargs))
        if func in _TO_PYTHON:
            return self._to_python(func, args, kwargs)
        node_meta.current_meta["stack_trace"] = refusal.here()
        if args and _changes(func):
            self._note_change(func, *args)
        if isinstance(kwargs.get("out"), torch.Tensor):
            self._note_change(func, kwargs["out"])
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
        if func in _READS:
            return _READS[func](self, func, *args, **kwargs)
        if func is torch.Tensor.__setitem__:
            return _setitem(self, func, *args, **kwargs)
        body = opened(func)
        if body is not None:
            with self:
                return body(*args, **kwargs)
        if func in _OUT_OF_PLACE:
            made = _OUT_OF_PLACE[func](*args, **kwargs)
            if made.shape == args[0].shape and torch.can_cast(made.dtype, args[0].dtype):
                return args[0].copy_(made)
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

    def _note_change(self, func: Any, x: Any, *args: Any) -> None:
        if func is torch.Tensor.__setitem__:  # ``x[time] += y`` puts the element back
            self._changed = [entry for entry in self._changed if entry[0] is not args[1]]
        if not isinstance(x, torch.Tensor):
            return
        for tensors, what in (
            (self._elements, "what it looked up, and so the tensor it looked it up in: copy it first (clone())"),
            (self.stand_ins.values(), "a tensor that it closes over: carry it in the state or in loop_state"),
            (self.loop_state, "loop_state: return another tensor"),
            (self.overlapping, "a part of what the cell made that shares its memory with another part: copy it first (clone())"),
        ):
            if is_view(x, tensors):
                self._changed.append((x, NotCapturable(f"{self.who} changes in place {what}", refusal.here())))
        if is_view(x, self.inputs):
            what = "its inputs, and so the tensor that loop_fn looked them up in: copy them first (clone())"
            self.changes_inputs = NotCapturable(f"{self.who} changes in place {what}", refusal.here())

    def refuse_changes(self, inputs: Sequence[Any]) -> None:
        """Raise NotCapturable where something was changed in place that was there before the step, or an element of such a tensor.

        Args:
            inputs: the next step's: what the cell does to its inputs, it does to what they are elements of.
        """
        looked_up = [*self._elements, *self.stand_ins.values()]
        if self.changes_inputs is not None and any(is_view(leaf, looked_up) for leaf in inputs):
            raise self.changes_inputs
        for _, refused in self._changed:
            raise refused

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
        """``x.select(dim, index)`` for a traced 0-d index; in loop_fn under the read rule."""
        if self.who != "loop_fn":
            index = torch.where(index < 0, index + x.shape[dim], index)
            return self._copied(x.index_select(dim, index.reshape(1)).squeeze(dim))
        if self.starts and index is self.clock and x.shape[dim] > 0:
            return x.select(dim, 0)
        past = index >= x.shape[dim]
        self.looked_past(past if index is self.clock else past | (index < -x.shape[dim]))
        self.reads += [(real, dim) for real, traced in self.stand_ins.items() if traced is x]
        return self._copied(ops.read(x, index, dim))

    def _copied(self, element: torch.Tensor) -> torch.Tensor:
        self._elements.append(element)
        return element

    def _within(self, x: torch.Tensor, dim: int, index: Any, batch_axis: int = 0) -> tuple[torch.Tensor, Any]:
        """An index of many, or a Python int: in loop_fn one that stays within ``x``'s dimension ``dim``."""
        if self.who != "loop_fn":
            return x, index
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


def _getitem(mode: Tracing, func: Any, x: torch.Tensor, index: Any) -> Any:
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(end, torch.Tensor) for item in items if isinstance(item, slice) for end in (item.start, item.stop)):
        raise _slice_at_a_tensor(mode)
    if not any(map(is_index, items)):
        return func(x, index)
    dim, dims = 0, []
    for place, item in enumerate(items):
        if item is Ellipsis:
            dim = x.ndim - sum(consumes(rest) for rest in items[place + 1 :])
        dims.append(dim)
        dim += consumes(item)
    scalars = [place for place, item in enumerate(items) if isinstance(item, torch.Tensor) and is_index(item) and item.ndim == 0]
    vectors = [item for item in items if isinstance(item, torch.Tensor) and item.ndim > 0]
    if vectors or any(isinstance(item, list) for item in items):
        for place, item in enumerate(items):
            if is_index(item):
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
        elif is_index(items[place]):
            x, items[place] = mode._within(x, dims[place], items[place])
    rest = tuple(item for place, item in enumerate(items) if place not in scalars)
    return func(x, rest) if any(item != slice(None) and item is not Ellipsis for item in rest) else x


def _slice_at_a_tensor(mode: Tracing) -> NotCapturable:
    return NotCapturable(
        f"{mode.who} cuts a slice that begins or ends at a tensor: read its elements one by one, or gather them", refusal.here()
    )


def _setitem(mode: Tracing, func: Any, x: torch.Tensor, index: Any, new: Any) -> Any:
    """``x[time] = new``: torch would have to know a 0-d index, but not the one element of a vector."""
    items = list(index) if isinstance(index, tuple) else [index]
    scalars = [place for place, item in enumerate(items) if isinstance(item, torch.Tensor) and is_index(item) and not item.ndim]
    if not scalars:
        return func(x, index, new)
    if len(scalars) > 1 or any(isinstance(item, list) or (isinstance(item, torch.Tensor) and item.ndim) for item in items):
        return func(x, tuple(item.reshape(1) if place in scalars else item for place, item in enumerate(items)), new)
    (place,) = scalars
    at = items[place].to(torch.int64)
    items[place] = slice(None)
    part = x[tuple(items)]
    kept = [not is_index(item) for item in items]
    dim = part.ndim - sum(kept[place:]) if any(item is Ellipsis for item in items[:place]) else sum(kept[:place])
    at = torch.where(at < 0, at + part.shape[dim], at)
    element = torch.as_tensor(new, dtype=x.dtype, device=x.device).expand(part.shape[:dim] + part.shape[dim + 1 :])
    part.index_copy_(dim, at.reshape(1), element.unsqueeze(dim))
    return None


def _select(mode: Tracing, func: Any, input: torch.Tensor, dim: int, index: Any) -> Any:
    dim %= input.ndim
    if isinstance(index, torch.Tensor):
        return mode._element(input, dim, index.reshape(()))
    input, index = mode._within(input, dim, index)
    return func(input, dim, index)


def _narrow(mode: Tracing, func: Any, input: torch.Tensor, dim: int, start: Any, length: Any) -> Any:
    if isinstance(start, torch.Tensor):
        if length != 1:
            raise _slice_at_a_tensor(mode)
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
    for place in range(min(input.ndim, index.ndim)):
        if place != dim and _hint(input.shape[place]) == _hint(index.shape[place]):
            bool(input.shape[place] == index.shape[place])  # one size from here on: the rows of one are those of the other
    input, index = mode._within(input, dim, index, batch_axis=1 if dim == 0 else 0)
    return func(input, dim, index, **kwargs)


def _hint(size: Any) -> Any:
    """What a size is in the call that is traced."""
    return size.node.hint if isinstance(size, torch.SymInt) else size


def _take_along_dim(mode: Tracing, func: Any, input: torch.Tensor, indices: torch.Tensor, dim: Any = None, **kwargs: Any) -> Any:
    if dim is None:
        return func(input, indices, **kwargs)
    dim %= input.ndim
    input, indices = mode._within(input, dim, indices, batch_axis=1 if dim == 0 else 0)
    return func(input, indices, dim, **kwargs)


_READS = by_function({
    "getitem": _getitem, "select": _select, "narrow": _narrow, "embedding": _embedding, "index_select": _index_select,
    "gather": _gather, "take_along_dim": _take_along_dim,
})  # fmt: skip
