"""A batch whose rows come and go. In: a loop over slots and what new rows begin with; out: a few steps of all rows at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import branches, contract, frames, trees
from ..capture import cache
from ..capture.program import Program, Source
from ..capture.refusal import NotCapturable
from ..contract import Call, LoopFn, Port, Start
from ..errors import PlanError
from ..executors import native, persistent, warm
from ..executors.backends import refuse_unavailable
from ..executors.captured import refuse_surroundings
from ..executors.native_call import Bound, End
from ..executors.prologue import version
from ..frames import Frame
from ..optimise.hoist import tokens
from .program import PRODUCTS, Staggered, for_kernel, staggered
from .rows import Row, Rows, Value, array_of


@dataclass
class Launch:
    """What a few steps made.

    Attributes:
        steps: how many there were.
        taken: ``[slots]`` int32: how many of them each row took.
        finished: ``[slots]`` bool: rows that finished, or held no request.
        emits: of each leaf of the emit ``[steps, slots, ...]``; a row's own are the first ``taken``.
        failed: rows that looked where there is nothing, after the steps that they took.
    """

    steps: int
    taken: npt.NDArray[np.int32]
    finished: npt.NDArray[np.bool_]
    emits: list[npt.NDArray[Any]]
    failed: set[int] = field(default_factory=set)


class _Embeddings:
    """What `Warm.made` asks a compiled loop for."""

    executor = "native"

    def __init__(self, embeddings: Mapping[int, int]) -> None:
        self.embeddings = embeddings

    def fits(self, batch: int, tensors: Sequence[torch.Tensor]) -> bool:
        return True

    def looked_at(self, tokens: frozenset[int]) -> set[int]:
        return set()

    bound: Any = None


class Slots:
    """A loop over a fixed number of slots, each empty or at a step of its own.

    A row's results have the same bits whatever the other slots hold and whichever slot it has: the program keeps rows apart, each element
    of a product is summed in one order, and nothing of rows is computed outside of the loop.

    Args:
        cell, loop_fn: as for `fusedrnn.raw_rnn`; the batch is the slots.
        rows: by name, the closed-over tensors that hold something of each slot.
        backend: "native", on a CPU, or "persistent", on a GPU or emulated; "auto" takes the one for the loop's device.

    Attributes:
        executor: the name of the one that runs.

    Raises:
        ValueError: no such backend, or a row that is none.
        PlanError: the loop cannot be served; ``.reason`` says what stands in the way, ``.location`` where.
    """

    def __init__(self, cell: Any, loop_fn: LoopFn, rows: Mapping[str, Row], *, backend: str = "auto") -> None:
        if backend not in ("auto", "native", "persistent"):
            raise ValueError(f"backend must be 'auto', 'native' or 'persistent', got {backend!r}")
        self.rows = dict(rows)
        self._call = Call.checked(cell, loop_fn)
        self._bound: dict[int, Bound] = {}  # by the steps of a launch
        self._versions: list[Any] = []  # of the tensors that they were made of
        try:
            with torch.no_grad(), frames.running() as frame, branches.taken():
                self._prepare(frame, backend)
        except NotCapturable as refused:
            raise PlanError(refused.reason, refused.location) from refused
        self.count = self._begun.batch
        leaves = self._staggered.program.state_port.leaves
        device = self._begun.device
        self.state = [torch.zeros(self.count, *(leaf.shape or ())[1:], dtype=leaf.dtype, device=device) for leaf in leaves]
        self.finished = torch.ones(self.count, dtype=torch.bool)
        self._one = torch.ones((), dtype=torch.int32, device=device)
        self._spare: list[torch.Tensor] | None = None  # memory of a state that is no more

    def _prepare(self, frame: Frame, backend: str) -> None:
        begun = contract.start(self._call, frame)
        self.executor = backend if backend != "auto" else "native" if begun.device.type == "cpu" else "persistent"
        refuse_unavailable(self.executor)
        refuse_surroundings(begun)
        program, self._tensors = cache.captured(self._call, frame, begun)
        self._rows = Rows(self.rows, begun.batch, self._tensors)
        of_slots = {id(row.tensor) for row in self.rows.values()}
        self._weights = [tensor for tensor in self._tensors if id(tensor) not in of_slots]
        _, moved = tokens(program)
        first = warm.Warm.made(self._call, begun, program, self._tensors, _Embeddings(moved.embeddings))
        if first is None:
            raise NotCapturable("what loop_fn does at time 0 cannot be captured: let it hand on what it closes over, and look tokens up")
        _refuse_products(first)
        settled = [*first.first.targets, *[target for target, _ in first.first.known]]
        known = frozenset(target.place for target in settled if target.kind == "token")
        self._first = first
        by_values = [*first.first.sources, *[known for _, known in first.first.known if isinstance(known, Source)]]
        self._constant = None if by_values else first.started(self._tensors, Frame(0))  # the same for all requests
        self._staggered: Staggered = staggered(program, begun, known)
        self._begun = self._bare(begun)
        self._loop, self._program = self._compiled(begun)

    def _compiled(self, begun: Start) -> tuple[Any, Program]:
        """The loop for the executor, and the program that it is of."""
        program = self._staggered.program
        loop: Any
        if self.executor == "persistent":
            program = for_kernel(program)
            loop = persistent.kernel(program, begun.batch, begun.device, self._tensors)
            made = loop.plan.schedule.step.made
        else:
            loop = native.compiled(program)
            made = loop.source
        if made.mixes is not None:
            raise NotCapturable(f"rows of this loop depend on one another: {made.mixes.reason}", made.mixes.location)
        if not made.retires:
            raise NotCapturable("something of a finished row can be seen by other rows")
        return loop, program

    def _bare(self, begun: Start) -> Start:
        program = self._staggered.program
        emit_port = program.emits(begun.batch)
        return Start(begun.batch, begun.device, begun.finished, [], program.inputs_port, [], program.state_port, None, None, emit_port)

    @property
    def emit_port(self) -> Port:
        """The structure of an emit."""
        return self._staggered.program.emit_port

    def admit(self, admitted: Mapping[int, Mapping[str, Value]]) -> dict[int, Exception]:
        """Begin rows in slots, which are emptied and zeroed first.

        Args:
            admitted: by slot the values of its rows; shorter ones along time are filled up with zeros.

        Returns:
            By slot what is wrong with a request that cannot begin; its slot stays empty.
        """
        self.free(list(admitted))  # where a row cannot begin, the one before it does not go on
        wrong: dict[int, Exception] = {}
        for slot, values in admitted.items():
            try:
                self._rows.checked(values)
            except Exception as error:  # a model's values may be anything
                wrong[slot] = error
        begin = [slot for slot in admitted if slot not in wrong]
        if not begin:
            return wrong
        self._rows.write(begin, [admitted[slot] for slot in begin])
        if self._begin(begin):
            return wrong
        self._clear(begin)
        for slot in begin:  # one of them looks where there is nothing: each by itself
            self._rows.write([slot], [admitted[slot]])
            if not self._begin([slot]):
                self._clear([slot])
                wrong[slot] = IndexError("the request looks at time 0 where there is nothing, such as up a token outside of the embedding")
        return wrong

    def free(self, slots: Sequence[int]) -> None:
        """Let go of rows."""
        self.finished.numpy()[list(slots)] = True

    def _clear(self, slots: Sequence[int]) -> None:
        self._rows.clear(slots)
        index = torch.tensor(slots)
        for leaf in self.state:
            leaf.index_fill_(0, index.to(leaf.device), 0)
        self.finished.index_fill_(0, index, True)

    @torch.no_grad()
    def _begin(self, slots: Sequence[int]) -> bool:
        """Take over for these rows what loop_fn makes at time 0; False where one of them looks where there is nothing."""
        started = self._constant
        if started is None:
            try:
                started = self._first.started(self._tensors, Frame(0))
            except (IndexError, RuntimeError):
                return False
        if started is None:
            return False
        begun, first_tokens = started
        here = list(slots)
        for leaf, source in zip(self.state, self._staggered.leaves, strict=True):
            made, to = self._at_start(source, begun, first_tokens), array_of(leaf)
            if to is not None:
                array = made.detach().numpy()
                to[here] = array if array.ndim < to.ndim else array[here]
                continue
            index = torch.tensor(here, device=begun.device)
            rows = made.expand(len(slots), *leaf.shape[1:]) if made.ndim < leaf.ndim else made.index_select(0, index)
            leaf.index_copy_(0, index, rows)
        self.finished.numpy()[here] = begun.finished.cpu().numpy()[here]
        return True

    def _at_start(self, source: Source, begun: Start, first_tokens: Mapping[int, torch.Tensor]) -> torch.Tensor:
        if source.kind == "time":
            return self._one
        if source.kind == "token":
            return first_tokens[source.place]
        trees_of = {"inputs": begun.inputs, "state": begun.state, "loop_state": begun.loop_state or []}
        found: torch.Tensor = trees_of[source.kind][source.place]
        return found

    @torch.no_grad()
    def launch(self, steps: int) -> Launch:
        """At most so many steps of every row that has not finished."""
        before = self.state
        made = self._launch(self.finished, steps, self._spare)
        self._spare = None if self.state is before else before
        if made.failed:
            self.free(sorted(made.failed))
        return made

    def _launch(self, finished: torch.Tensor, steps: int, into: list[torch.Tensor] | None = None) -> Launch:
        ended = self._run(finished, steps, into)
        if ended is not None:
            self.state, self.finished = ended.leaves["state"], ended.finished.cpu()
            emits = [_array(ended.made["emit", place]) for place in range(len(self.emit_port.leaves))]
            return Launch(ended.steps, ended.lengths.cpu().numpy(), self.finished.numpy().copy(), emits)
        live = torch.nonzero(~finished).flatten()
        if len(live) == 1:
            return self._until_it_fails(int(live[0]), finished, steps)
        # A row looked where there is nothing, which stops all of them: half of them at a time, from where they stood.
        before, parts = self.state, []
        for rows in (live[: len(live) // 2], live[len(live) // 2 :]):
            self.state, others = before, torch.ones_like(finished)
            others[rows] = False
            parts.append((rows, self._launch(others, steps), self.state, self.finished))
        return self._joined(before, parts)

    def _until_it_fails(self, row: int, finished: torch.Tensor, steps: int) -> Launch:
        """The steps of a row before the one that fails, one at a time: what it has made depends on no one's launches."""
        taken, parts = 0, [[_array(leaf) for leaf in self._no_emits()]]
        while taken < steps:
            ended = self._run(finished, 1)
            if ended is None:
                break
            self.state = ended.leaves["state"]
            parts.append([_array(ended.made["emit", place]) for place in range(len(self.emit_port.leaves))])
            taken += 1
        self.finished = torch.ones_like(self.finished)
        launch = Launch(taken, np.zeros(self.count, np.int32), np.ones(self.count, np.bool_), [], {row})
        launch.taken[row] = taken
        launch.emits = [np.concatenate(leaves) for leaves in zip(*parts, strict=True)]
        return launch

    def _no_emits(self) -> list[torch.Tensor]:
        leaves = self._begun.emit_port.leaves if self._begun.emit_port is not None else []
        return [torch.zeros((0, *(leaf.shape or ())), dtype=leaf.dtype) for leaf in leaves]

    def _joined(self, before: list[torch.Tensor], parts: list[tuple[torch.Tensor, Launch, list[torch.Tensor], torch.Tensor]]) -> Launch:
        """What rows made that ran one part after the other."""
        steps = max(launch.steps for _, launch, _, _ in parts)
        self.state, self.finished = [leaf.clone() for leaf in before], torch.ones_like(self.finished)
        whole = Launch(steps, np.zeros(self.count, np.int32), np.ones(self.count, np.bool_), [])
        first = parts[0][1]
        whole.emits = [np.zeros((steps, *emit.shape[1:]), emit.dtype) for emit in first.emits]
        for rows, launch, state, finished in parts:
            for leaf, made in zip(self.state, state, strict=True):
                here = rows.to(leaf.device)
                leaf.index_copy_(0, here, made.index_select(0, here))
            self.finished.index_copy_(0, rows, finished.index_select(0, rows))
            at = rows.numpy()
            whole.taken[at], whole.finished[at] = launch.taken[at], launch.finished[at]
            for emit, made_emit in zip(whole.emits, launch.emits, strict=True):
                emit[: launch.steps, at] = made_emit[:, at]
            whole.failed |= launch.failed
        return whole

    def _run(self, finished: torch.Tensor, steps: int, into: list[torch.Tensor] | None = None) -> End | None:
        """``into``: memory for the state that the steps leave."""
        begun = copy(self._begun)
        begun.finished, begun.state = finished.to(begun.device), self.state
        versions = [version(tensor) for tensor in self._weights]
        if versions != self._versions or None in versions:  # what was made of them is no longer right
            self._bound, self._versions = {}, versions
        bound = self._bound.get(steps)
        if bound is None:
            call = dataclasses.replace(self._call, max_steps=steps)
            bound = self._loop.bound(self._program, call, begun, self._tensors, None, {})
            if isinstance(bound, Bound) and not bound.copies:
                self._bound[steps] = bound
        else:
            bound = bound.beginning(begun, into)
        made: End | None = bound.run()
        return made

    def final_state(self, slot: int) -> Any:
        """The cell's state of a row, as a tree of its own tensors ``[...]``."""
        program = self._first.program
        leaves = [torch.empty(0)] * len(program.state_port.leaves)
        for leaf, source in zip(self.state, self._staggered.leaves, strict=True):
            if source.kind == "state":
                leaves[source.place] = leaf[slot].clone()
        return program.state_port.tree(leaves)

    def emit_tree(self, leaves: list[Any]) -> trees.Tree:
        """The leaves of an emit as loop_fn has them."""
        return self.emit_port.tree(leaves)


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    made: npt.NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
    return made


def _refuse_products(first: warm.Warm) -> None:
    """At time 0 all slots are computed at once, by torch, whose products have other bits in other places of the batch."""
    run: Callable[..., Any] | None = first.first.run
    if run is None:
        return
    for node in run.__self__.graph.nodes:  # type: ignore[attr-defined]
        if node.target in PRODUCTS:
            raise NotCapturable(
                "loop_fn multiplies at time 0: let `admit` do that, and close over what it makes", node.meta.get("stack_trace")
            )
