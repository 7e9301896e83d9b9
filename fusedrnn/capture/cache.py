"""The programs that were captured. In: a call; out: the program that holds for it, captured now or before, and its tensors."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch

from ..contract import Call, Port, Start
from ..fallback import log
from ..frames import Frame
from ..tensor_array import TensorArray
from . import closure, tally
from . import code as codes
from .program import Program
from .refusal import NotCapturable
from .step import capture
from .turn import one_at_a_time

_MOST = 512
_MOST_SIZES = 16  # of one key: programs for sizes that the code fixed
_MOST_BINDERS = 4  # of one code: it may be used with several kinds of values
_lock = threading.Lock()
_known: OrderedDict[Hashable, list[Program | NotCapturable]] = OrderedDict()
_binders: OrderedDict[tuple[int, int], tuple[closure.Binder, ...]] = OrderedDict()  # the last made first


def captured(call: Call, frame: Frame, begun: Start) -> tuple[Program, list[torch.Tensor]]:
    """The program of a loop, and the closed-over tensors in the order its sources count them.

    Raises:
        NotCapturable: it has none.
        Exception: whatever the cell or loop_fn raise when they are traced.
    """
    program, tensors = _known_program(call, begun)
    if program is None:
        walk = closure.walk(call.cell, call.loop_fn)
        if walk.impure is not None:
            raise NotCapturable(f"{walk.impure}, which a captured step would not repeat: {walk.advice}", walk.location)
        tensors = walk.tensors
        key = None if walk.unknown else (walk.key, _signature(begun))
        program = _found(key, begun, tensors)
        if program is not None:  # the second time: there may be many more
            _keep_binder(call, walk)
        else:
            program = _captured_now(call, begun, walk)
            if key is not None and not (isinstance(program, Program) and program.has_strangers):
                _keep(key, program)
    if isinstance(program, NotCapturable):
        raise NotCapturable(program.reason, program.location)
    if program.draws and frame.lineage:
        raise NotCapturable("a loop within a loop draws random numbers: give it a seed of its own")
    return program, tensors


T = TypeVar("T")


@one_at_a_time
def unchanged_by(call: Call, trace: Callable[[list[torch.Tensor]], T]) -> T | None:
    """What ``trace`` makes of the closed-over tensors; None if it cannot, or if tracing changes anything, which is undone."""
    walk = closure.walk(call.cell, call.loop_fn)
    if walk.unknown or walk.impure:
        return None
    before = closure.Snapshot(walk)
    try:
        made = trace(walk.tensors)
    except Exception:  # the step has been captured: what goes wrong here only costs the call of loop_fn at time 0
        return None
    finally:
        changes = before.changes()
        before.restore()
    return None if changes else made


def clear() -> None:
    """Forget all programs."""
    with _lock:
        _known.clear()
        _binders.clear()


def size() -> int:
    """The number of programs that are kept."""
    with _lock:
        return sum(len(programs) for programs in _known.values())


@one_at_a_time
def _captured_now(call: Call, begun: Start, walk: closure.Walk) -> Program | NotCapturable:
    before = closure.Snapshot(walk)
    try:
        program: Program | NotCapturable = capture(call, begun, walk.tensors)
    except NotCapturable as refused:
        program = NotCapturable(refused.reason, refused.location)  # without the traceback, which would keep the tensors alive
    finally:
        changes = before.changes()
        before.restore()
    if changes and isinstance(program, Program):
        for change in changes:
            if not tally.only_counts(walk.facts, change.kind, change.value, change.name, change.place, reflects=walk.names is None):
                return NotCapturable(
                    f"{change.text} at every step, which a captured step would not repeat: carry it in the state or loop_state",
                    _changed(change.name, walk) or _defined(call.loop_fn),
                )
        program.plans["counts"] = [f"{change.text}, where it is called: at time 0 and not at every step" for change in changes]
        for text in program.plans["counts"]:
            log.info("%s", text)
    return program


def _changed(name: str, walk: closure.Walk) -> str | None:
    """``file:line`` of what makes a change, by the name of what changes."""
    functions = (codes.of(expected[0]) for what, _, expected in walk.facts if what == "function")
    return next((f"{code.file}:{line}" for code in functions if (line := code.line_of_change(name)) is not None), None)


def _defined(loop_fn: Any) -> str | None:
    """``file:line`` of a function's definition."""
    code = getattr(loop_fn, "__code__", None)
    return None if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _found(key: Hashable, begun: Start, tensors: list[torch.Tensor]) -> Program | NotCapturable | None:
    with _lock:
        programs = _known.get(key, []) if key is not None else []
        if programs:
            _known.move_to_end(key)
        for place, program in enumerate(programs):
            if isinstance(program, NotCapturable) or program.fits(begun.batch, tensors):
                programs.append(programs.pop(place))  # the last used stays longest
                return program
    return None


def binders(call: Call) -> tuple[closure.Binder, ...]:
    """What may find the tensors of a call."""
    with _lock:
        return _binders.get(_place(call), ())


def _known_program(call: Call, begun: Start) -> tuple[Program | NotCapturable | None, list[torch.Tensor]]:
    """A program that one of the binders leads to, and the tensors; None where there is none, or a walk has to look."""
    for binder in binders(call):
        tensors = binder(call.cell, call.loop_fn)
        if tensors is not None:
            return _found((binder.key, _signature(begun)), begun, tensors), tensors
    return None, []


def _keep_binder(call: Call, walk: closure.Walk) -> None:
    place = _place(call)
    with _lock:
        if any(binder.key == walk.key for binder in _binders.get(place, ())):
            return  # it cannot follow: something is another object each time
    made = closure.Binder(walk, owned=False)
    with _lock:
        _binders[place] = (made, *_binders.get(place, ())[: _MOST_BINDERS - 1])
        _binders.move_to_end(place)
        if len(_binders) > _MOST:
            _binders.popitem(last=False)


def _place(call: Call) -> tuple[int, int]:
    """Where to look for binders. An id that is used again costs time and nothing else."""
    loop_fn: Any = call.loop_fn
    function = loop_fn.__func__ if type(loop_fn) is MethodType else loop_fn
    return id(type(call.cell)), id(function.__code__ if type(function) is FunctionType else type(loop_fn))


def _keep(key: Hashable, program: Program | NotCapturable) -> None:
    with _lock:
        programs = _known.setdefault(key, [])
        programs.append(program)
        del programs[:-_MOST_SIZES]
        if len(_known) > _MOST:
            _known.popitem(last=False)


def _signature(begun: Start) -> Hashable:
    """What a program takes from time 0, batch size aside, and from torch's settings."""
    device = begun.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    leaves = (*begun.inputs, *begun.state, *(begun.loop_state or ()))
    devices = tuple(None if isinstance(leaf, TensorArray) else leaf.device for leaf in leaves)
    ports = (begun.inputs_port, begun.state_port, begun.loop_state_port, begun.emit_port)
    return (tuple(_port(port, begun.batch) for port in ports), devices, autocast, torch.get_default_dtype())


def _port(port: Port | None, batch: int) -> Any:
    if port is None:
        return None
    rows = port.name != "loop_state"
    shapes = tuple(
        (
            leaf.dtype,
            None if leaf.shape is None else (("B", *leaf.shape[1:]) if leaf.shape and (rows or leaf.shape[0] == batch) else leaf.shape),
        )
        for leaf in port.leaves
    )
    return (_hashable(port), shapes)


def _hashable(port: Port) -> Hashable:
    return "*" if port.structure.is_leaf() else str(port.structure)
