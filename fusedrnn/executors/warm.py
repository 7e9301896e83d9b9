"""Loops that were run before. In: a call whose code is known; out: its loop bound to its tensors, with none of the user's Python run.

Time 0 is captured too, so that what loop_fn returns there is computed from the closed-over tensors as the later steps are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from .. import frames
from ..capture import cache
from ..capture.first import First, capture_first
from ..capture.program import Program, Source
from ..capture.sizes import Fits
from ..contract import Call, Port, Start
from ..frames import Frame
from ..result import Result
from .native_call import End, Tokens

_WORTH_CAPTURING = 32  # compiled runs of one batch size, after which the next ones are likely to pay for capturing time 0
_MOST = 8  # batch sizes and executors of one binder


class Bound(Protocol):
    """A compiled loop and the tensors of a call, as `fusedrnn.executors.native_call.Bound`."""

    begun: Start
    copies: bool

    def run(self, steps: int | None = None) -> End | None: ...

    def result(self, call: Call, emit_port: Port) -> Result | None: ...


class Compiled(Protocol):
    """A program, compiled for one of the executors."""

    @property
    def executor(self) -> str: ...

    @property
    def embeddings(self) -> Mapping[int, int]: ...

    def fits(self, batch: int, tensors: Sequence[torch.Tensor]) -> bool: ...

    def looked_at(self, tokens: frozenset[int]) -> set[int]: ...

    def bound(
        self, program: Program, call: Call, begun: Start, tensors: Sequence[torch.Tensor], seed: int | None, tokens: Tokens
    ) -> Bound: ...


@dataclass(frozen=True)
class Warm:
    """A loop of one batch size whose time 0 is captured.

    Attributes:
        first: time 0.
        begun: of the call that was prepared, without its leaves.
        loop: the program, compiled.
        emit_port: of this batch size.
        needs_grad: some closed-over tensor requires a gradient.
        is_function: what time 0 makes depends on the closed-over tensors alone, and they tell when they change.
        looked_at: the places of the closed-over tensors whose values count for what a call is bound to; of the others it takes addresses.
        draws: it draws at random.
        surroundings: of the call that was prepared.
        checks: of the closed-over tensors: whether it holds for them.
    """

    first: First
    begun: Start
    program: Program
    loop: Compiled
    emit_port: Port
    needs_grad: bool
    is_function: bool
    looked_at: frozenset[int]
    draws: bool
    surroundings: Hashable
    checks: tuple[Fits, ...]

    @classmethod
    def made(cls, call: Call, begun: Start, program: Program, tensors: Sequence[torch.Tensor], compiled: Compiled) -> Warm | None:
        """None where time 0 cannot be captured."""
        surroundings = _surroundings(begun.device)
        waits = begun.device.type != "cpu"  # who looks at a value
        embeddings = {} if waits else compiled.embeddings

        def trace(closed_over: list[torch.Tensor]) -> First:
            return capture_first(call, begun, closed_over, embeddings)

        first = None if surroundings is None else cache.unchanged_by(call, trace)
        if first is None or (waits and any(target.kind == "past" for target in first.targets)):
            return None
        leaves: dict[str, Any] = {
            "inputs": [None] * len(begun.inputs), "state": [None] * len(begun.state),
            "loop_state": None if begun.loop_state is None else [None] * len(begun.loop_state),
        }  # fmt: skip
        bare = replace(begun, finished=torch.zeros_like(begun.finished), **leaves)
        draws = program.draws or any(source.kind == "seed" for source in first.sources)
        tokens = frozenset(target.place for target in (*first.targets, *[target for target, _ in first.known]) if target.kind == "token")
        return cls(
            first, bare, program, compiled, program.emits(begun.batch), any(tensor.requires_grad for tensor in tensors),
            not draws and not any(tensor.is_inference() for tensor in tensors),
            first.looked_at | compiled.looked_at(tokens), draws, surroundings,
            tuple({check.__code__: check for check in (program.fits, first.fits, compiled.fits)}.values()),  # most often one
        )  # fmt: skip

    def may_run(self) -> bool:
        """Whether it would do now what it did where it was prepared: a loop within a loop draws otherwise."""
        if frames.current() is not None:
            return False
        return not (self.needs_grad and torch.is_grad_enabled()) and _surroundings(self.begun.device) == self.surroundings

    def serves(self, backend: str) -> bool:
        """Whether the backend would take this executor."""
        suits = "native" if self.begun.device.type == "cpu" else "persistent"
        return self.loop.executor == (suits if backend == "auto" else backend)

    def fits(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether it holds for these closed-over tensors."""
        return all(check(self.begun.batch, tensors) for check in self.checks)

    def bound(self, call: Call, tensors: Sequence[torch.Tensor]) -> Bound | None:
        """Time 0 with tensors that it fits; None where a row reads past an end, or where the loop draws and there is no step to take."""
        frame = Frame(0)
        settle = torch.no_grad()(self.started) if torch.is_grad_enabled() else self.started
        started = settle(tensors, frame)
        if started is None or (self.program.draws and bool(started[0].finished.all())):
            return None
        seed: Any = frame.seed if self.program.draws else None
        return self.loop.bound(self.program, call, started[0], tensors, seed, started[1])

    def started(self, tensors: Sequence[torch.Tensor], frame: Frame) -> tuple[Start, Tokens] | None:
        """What time 0 settles with tensors that it fits, and the tokens that stand for some of the inputs; None where a row reads past an
        end."""
        begun, first = self.begun, self.first
        made: dict[str, Any] = {
            "finished": [None], "past": [None], "token": {},
            "inputs": list(begun.inputs), "state": list(begun.state), "loop_state": list(begun.loop_state or ()),
        }  # fmt: skip
        for (kind, place), known in first.known:
            made[kind][place] = tensors[known.place] if isinstance(known, Source) else known
        if first.run is not None:
            outputs = first.run(*[
                tensors[source.place] if source.kind == "tensor"
                else begun.finished if source.kind == "finished"
                else torch.tensor(frame.seed, dtype=torch.int64)
                for source in first.sources
            ])  # fmt: skip
            for (kind, place), output in zip(first.targets, outputs, strict=True):
                made[kind][place] = output
        tokens: dict[int, torch.Tensor] = made["token"]
        for place, token in tokens.items():
            if not _within(token, tensors[self.loop.embeddings[place]]):
                return None
        finished, past = made["finished"][0], made["past"][0]
        if past is not None and bool(past.any()):
            return None
        started = Start(
            begun.batch, begun.device, finished, made["inputs"], begun.inputs_port, made["state"], begun.state_port,
            None if begun.loop_state is None else made["loop_state"], begun.loop_state_port, begun.emit_port,
        )  # fmt: skip
        return started, tokens

    def run(self, call: Call, bound: Bound) -> Result | None:
        """What the loop returns; None where it fails or takes no step, which the slower way explains."""
        return bound.result(call, self.emit_port)


def _within(token: torch.Tensor, embedding: torch.Tensor) -> bool:
    """Whether all tokens are rows of an embedding."""
    if len(token) == 1:
        return 0 <= token.item() < len(embedding)
    least, most = token.aminmax()
    return least.item() >= 0 and most.item() < len(embedding)


def run(call: Call, backend: str) -> Result | None:
    """Run a loop that is known to the backend; None where it is not."""
    for binder in cache.binders(call):
        if binder.warm:
            tensors = binder(call.cell, call.loop_fn)
            if tensors is not None:
                for warm in binder.warm:
                    if warm.serves(backend) and warm.fits(tensors):
                        if not warm.may_run():
                            return None
                        bound = warm.bound(call, tensors)
                        return None if bound is None else warm.run(call, bound)
                return None
    return None


def note(call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor], compiled: Compiled) -> None:
    """A compiled loop has run: after some times its time 0 is captured."""
    if frame.lineage:
        return
    runs: Counter[tuple[str, int]] = program.plans.setdefault("runs", Counter())
    kind = compiled.executor, begun.batch
    runs[kind] += 1
    if runs[kind] != _WORTH_CAPTURING:
        return
    for binder in cache.binders(call):
        if len(binder.warm) < _MOST and binder(call.cell, call.loop_fn) is not None:
            warm = Warm.made(call, begun, program, tensors, compiled)
            if warm is not None:
                binder.warm = (*binder.warm, warm)
            return


def _surroundings(device: torch.device) -> Hashable | None:
    """Torch's settings that time 0 and the program depend on; None where something wants to see every operator."""
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        return None
    kind = device.type
    precision = None if kind == "cpu" else torch.get_float32_matmul_precision()  # a kernel is made for one
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None, torch.get_default_dtype(), precision
