"""compile: a cell and a loop_fn in, a loop out that can be run again and again with little between the calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch

from . import executors
from .capture import closure
from .capture.closure import Binder
from .capture.refusal import NotCapturable
from .contract import Call, LoopFn
from .errors import PlanError
from .executors import captured, operator
from .executors.operator import Operand
from .executors.warm import Bound, Warm
from .kernels import device
from .result import Result


class _Kept:
    """The loop bound to the tensors of the last call.

    Args:
        looked_at: the places of the tensors whose values count; of the others the addresses are enough.
    """

    def __init__(self, tensors: list[torch.Tensor], looked_at: frozenset[int], bound: Bound) -> None:
        self.bound = bound
        self._tensors = tensors  # held, so that no other tensor gets their addresses
        self._looked_at = range(len(tensors)) if bound.copies else sorted(looked_at)
        self._seen = self._look(tensors)

    def holds(self, tensors: list[torch.Tensor]) -> bool:
        """Whether the same loop is right for these tensors."""
        return self._look(tensors) == self._seen

    def _look(self, tensors: list[torch.Tensor]) -> tuple[Any, ...]:
        looked_at = [tensors[place] for place in self._looked_at]
        versions = [object() if tensor.is_inference() else tensor._version for tensor in looked_at]  # an object is like no other
        return list(map(_address, tensors)), versions, list(map(_shape, tensors)), list(map(_stride, tensors)), torch.get_num_threads()


_address, _stride = torch.Tensor.data_ptr, torch.Tensor.stride
_shape = attrgetter("shape")


@dataclass
class _Ready:
    """A loop whose time 0 is compiled too.

    Attributes:
        bind: gives the closed-over tensors, or None if the program may not fit them.
        warm: the loop; a call with another batch size prepares anew.
        operand: the same for torch.compile.
        kept: the last call's.
    """

    bind: Binder
    warm: Warm
    operand: Operand
    kept: _Kept | None = None


class Loop:
    """A compiled loop; `compile` makes it.

    Calling it runs the loop, as `raw_rnn` would: what the cell and loop_fn close over is looked at anew in every call, so new values and
    new tensors count. It may be called from several threads.
    """

    def __init__(self, cell: Any, loop_fn: LoopFn, backend: str, max_steps: int | None) -> None:
        self.cell, self.loop_fn, self.backend = cell, loop_fn, backend
        self._call = Call.checked(cell, loop_fn, max_steps=max_steps)
        self._ready: _Ready | None = None

    def __repr__(self) -> str:
        name = getattr(self.loop_fn, "__qualname__", type(self.loop_fn).__name__)
        return f"Loop({type(self.cell).__name__}, {name}, backend={self.backend!r})"

    def __call__(self) -> Result:
        """Run the loop.

        Returns, raises: as `raw_rnn`.
        """
        ready = self._ready
        if torch.compiler.is_compiling():
            return self._traced(ready)
        if ready is not None:
            result = self._fast(ready)
            if result is not None:
                return result
        result = executors.execute(self.backend, self._call, compile_now=True)
        if result.executor in ("native", "persistent") and self._ready is None:
            self._prepare(must=False)
        return result

    def warmup(self) -> Loop:
        """Capture and compile now, so that the first call does not have to; returns the loop.

        Raises:
            PlanError: the named backend cannot run it.
        """
        self._prepare(must=True)
        return self

    def explain(self) -> Any:
        """As `fusedrnn.explain`."""
        from .explanation import explain

        return explain(self.cell, self.loop_fn, backend=self.backend, max_steps=self._call.max_steps)

    def _prepare(self, *, must: bool) -> None:
        backend = executors.choose(self.backend)
        if backend == "reference" or self._call.max_steps == 0:
            return
        prepared = captured.prepare(backend, self._call)
        refused = prepared if isinstance(prepared, NotCapturable) else prepared.refused
        if refused is not None and must and backend != "auto":
            raise PlanError(refused.reason, refused.location) from refused
        self._ready = None
        if isinstance(prepared, NotCapturable) or prepared.loop is None:
            return
        warm = Warm.made(self._call, prepared.begun, prepared.program, prepared.tensors, prepared.loop)
        if warm is not None:
            binder = Binder(closure.walk(self._call.cell, self.loop_fn), owned=True)
            self._ready = _Ready(binder, warm, Operand(self._call, warm))

    def _traced(self, ready: _Ready | None) -> Result:
        """A call that torch.compile or torch.export traces: one operator. Where that is not possible, a call that it does not look into."""
        if ready is not None and ready.bind.traced is not None:
            tensors = ready.bind.traced(self._call.cell, self.loop_fn)
            if tensors is not None and ready.operand.suits(tensors):
                made: list[torch.Tensor] = operator.loop(tensors, ready.operand.seed(), ready.operand.key)
                return ready.operand.result(made)
        return _untraced(self)

    def _fast(self, ready: _Ready) -> Result | None:
        """A call that finds everything as it was prepared; None where it does not."""
        warm = ready.warm
        tensors = ready.bind(self._call.cell, self.loop_fn)
        if tensors is None:
            self._ready = None  # something else than a tensor has changed
        if tensors is None or not warm.may_run():
            return None
        if device.is_recording(warm.begun.device) and warm.fits(tensors):
            return ready.operand.recorded(tensors)
        kept = ready.kept
        if kept is not None and kept.holds(tensors):
            return warm.run(self._call, kept.bound)
        if not warm.fits(tensors):
            self._ready = None
            return None
        bound = warm.bound(self._call, tensors)
        if bound is None:
            return None
        if warm.is_function:
            ready.kept = _Kept(tensors, warm.looked_at, bound)
        return warm.run(self._call, bound)


_untraced: Callable[[Loop], Result] = torch.compiler.disable(  # type: ignore[no-untyped-call]
    Loop.__call__, reason="this loop is not prepared for what it closes over now: call its warmup() before torch.compile"
)


def compile(cell: Any, loop_fn: LoopFn, *, backend: str = "auto", max_steps: int | None = None) -> Loop:
    """A loop to be run more than once: captured once, time 0 included, and compiled without waiting until that is worth its time.

    Args:
        cell, loop_fn, max_steps: as for `raw_rnn`. Their parameters and closed-over tensors are the loop's inputs.
        backend: as for `raw_rnn`; "auto" compiles for the CPU where that is possible.

    Returns:
        A `Loop`; call it to run.

    Raises:
        TypeError, ValueError: as `raw_rnn` for these arguments.
        PlanError: this machine does not have the named backend.
    """
    executors.choose(backend)
    return Loop(cell, loop_fn, backend, max_steps)
