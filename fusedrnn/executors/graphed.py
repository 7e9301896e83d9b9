"""The step of a loop as a CUDA graph, replayed without waiting for it. In: a call and its program; out: what the steps made.

A replay reads what is carried from tensors of its own and writes it back there. The one that ends the loop leaves them as they were: all
that follow repeat the last step, from the same values and with the same results. So the host may launch ahead of what it knows, looks at
the flags when they have arrived, and has nothing to undo; nor does a step look up anything that no step of the loop has looked up.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import arg_tree_leaves

from .. import rows
from ..capture import ops
from ..capture.program import Program
from ..contract import Call, Start
from ..frames import Frame
from ..random import philox
from .looks import Look

EVERY = 8  # steps between two looks at the flags; their results are stored together
AHEAD = 2  # looks whose flags need not have arrived; with one more the host waits for the oldest, so that little is launched in vain
FEWEST = 8  # where max_steps allows fewer, capturing costs more than it saves
_MOST = 4  # graphs kept of a program
_ENDLESS = torch.iinfo(torch.int32).max  # times are int32

T = TypeVar("T")
aten = torch.ops.aten


class Ungraphed(Exception):
    """Why a loop does not run as a CUDA graph."""


class Device(Protocol):
    """What replays a step. `Cuda` does; the tests have one on the CPU whose answers come late."""

    def active(self) -> AbstractContextManager[Any]:
        """What all other methods are called within."""

    def refusal(self) -> str | None:
        """Why nothing can be captured now."""

    def place(self) -> Hashable:
        """Replays at one place follow one another."""

    def capture(self, step: Callable[[], T]) -> Callable[[], T]:
        """Run ``step`` to warm up, and make what repeats its work. The tensors that this returns are the same at every replay."""

    def record(self, status: torch.Tensor) -> Any:
        """Ask for the values that an int32 tensor has after all that has been launched."""

    def ready(self, look: Any) -> bool:
        """Whether `read` would not wait."""

    def read(self, look: Any) -> list[int]:
        """What `record` has asked for."""


class Cuda:
    """CUDA graphs on a device's current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def active(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device)

    def refusal(self) -> str | None:
        return "the stream is being captured already" if torch.cuda.is_current_stream_capturing() else None

    def place(self) -> Hashable:
        return torch.cuda.current_stream().cuda_stream

    def capture(self, step: Callable[[], T]) -> Callable[[], T]:
        graph = torch.cuda.CUDAGraph()
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):  # the default stream cannot be captured
            step()  # libraries make their handles and workspaces, which they cannot while they are captured
            side.synchronize()
            graph.capture_begin(capture_error_mode="thread_local")  # what other threads do meanwhile is no error
            try:
                made = step()
            finally:
                graph.capture_end()
        current.wait_stream(side)

        def replay() -> T:
            graph.replay()
            return made

        return replay

    def record(self, status: torch.Tensor) -> Look:
        return Look(status)

    def ready(self, look: Look) -> bool:
        return look.ready()

    def read(self, look: Look) -> list[int]:
        return look.read()


def device_for(device: torch.device) -> Device | None:
    """What replays steps on a device; None where they are called one by one."""
    return Cuda(device) if device.type == "cuda" else None


@dataclass
class End:
    """What a loop leaves.

    Attributes:
        emits: ``[T_run, B, ...]`` each, in the order of the emit's leaves.
        history: ``[T_run, B]`` bool, the finished flags before each step.
        finished: ``[B]`` bool, at the end.
        state, loop_state: the final leaves.
    """

    emits: list[torch.Tensor]
    history: torch.Tensor
    finished: torch.Tensor
    state: list[Any]
    loop_state: list[Any]


def run(device: Device, call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> End | None:
    """Run a loop of at least one step; None where a row looked where there is nothing.

    A write into a TensorArray that fails, fails at the end.

    Raises:
        Ungraphed: it cannot run so. Nothing has changed.
    """
    _refuse(call, begun, program, tensors)
    graphs: Graphs = program.plans.setdefault("graphed", Graphs(program))
    if not graphs.lock.acquire(blocking=False):
        raise Ungraphed("another thread runs its graph now")
    try:
        with device.active(), torch.no_grad():
            reason = graphs.refused or device.refusal()
            if reason is not None:
                raise Ungraphed(reason)
            seed = torch.as_tensor(frame.seed, dtype=torch.int64) if program.draws else None
            start = _Values(call.max_steps or _ENDLESS, seed, begun, tensors)
            return graphs.graph(device, start).run(start)
    finally:
        graphs.lock.release()


def launch(device: Device, replay: Callable[[], torch.Tensor], store: Callable[[], None], limit: int) -> tuple[int, bool]:
    """Replay a step until a look says that the loop has ended.

    Args:
        replay: launches a step; gives its status: int32 (steps until then, whether the loop has ended, whether a look-up failed).
        store: puts away what the last steps made; called before each look.
        limit: the most steps; the status of the one of that number says that the loop has ended.

    Returns:
        The number of steps, and whether a look-up failed in the last of them.
    """
    looks: deque[Any] = deque()
    launched = 0
    while True:
        status = replay()
        launched += 1
        if launched % EVERY and launched != limit:
            continue
        store()
        looks.append(device.record(status))
        while looks and (len(looks) > AHEAD or launched == limit or device.ready(looks[0])):
            steps, ended, failed = device.read(looks.popleft())
            if ended:
                return steps, bool(failed)


def _refuse(call: Call, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> None:
    """Raise Ungraphed where a loop is not worth a graph, or known not to become one."""
    leaves = [leaf for leaf in (*begun.inputs, *begun.state, *(begun.loop_state or ())) if isinstance(leaf, torch.Tensor)]
    given = [*leaves, *(tensors[place] for place in program.tensors)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        raise Ungraphed("gradients are needed")
    if call.max_steps is not None and call.max_steps < FEWEST:
        raise Ungraphed(f"max_steps={call.max_steps} is too few steps to capture one")
    if any(source.kind.endswith(" array") for source in program.sources):
        raise Ungraphed("a step reads a TensorArray that is carried, whose size is not known")
    if any(tensor.ndim and tensor.device != begun.device for tensor in given):
        raise Ungraphed(f"a step reads a tensor that is not on {begun.device}")


@dataclass(frozen=True)
class _Values:
    """What a run starts from: the most steps, the loop's seed (0-d int64), the leaves at time 0 and the closed-over tensors."""

    limit: int
    seed: torch.Tensor | None
    begun: Start
    tensors: Sequence[torch.Tensor]

    def leaf(self, kind: str, place: int) -> torch.Tensor:
        leaf: torch.Tensor = self.begun.finished if kind == "finished" else getattr(self.begun, kind)[place]
        return leaf


class Graphs:
    """The captured steps of a program, the one used last at the end.

    Attributes:
        lock: held while one of them is used.
        refused: why there are none.
    """

    def __init__(self, program: Program) -> None:
        self.lock = threading.Lock()
        self.refused: str | None = None
        self._program = program
        self._module = _on_device(program)
        self._kept: OrderedDict[Hashable, _Graph] = OrderedDict()

    def graph(self, device: Device, start: _Values) -> _Graph:
        """The captured step for these values, captured now or before.

        Raises:
            Ungraphed: it cannot be captured.
        """
        key = self._key(device, start)
        known = self._kept.pop(key, None)
        # Weights are read where they are. Other tensors come anew in every call: what has moved once is copied from then on.
        copied = frozenset(self._moved(start, known))
        if known is None or copied != known.copied:
            try:
                with torch.inference_mode(False):  # its tensors must outlive the caller's mode
                    known = _Graph(device, self._program, self._module, start, copied)
            except Ungraphed as unfit:
                self.refused = str(unfit)
                raise
            except Exception as error:  # of the program itself too: step by step it shows again
                self.refused = f"capturing the step failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
                raise Ungraphed(self.refused) from error
        self._kept[key] = known
        if len(self._kept) > _MOST:
            self._kept.popitem(last=False)
        return known

    def _key(self, device: Device, start: _Values) -> Hashable:
        begun = start.begun
        leaves = (begun.finished, *begun.inputs, *begun.state, *(begun.loop_state or ()))
        given = (*leaves, *(start.tensors[place] for place in self._program.tensors))
        sizes = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in given if isinstance(leaf, torch.Tensor))
        # The kernels of a graph are those of the settings it was captured with.
        return device.place(), sizes, torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()

    def _moved(self, start: _Values, known: _Graph | None) -> set[int]:
        """Of the closed-over tensors those that a graph cannot read in place."""
        moved = set() if known is None else set(known.copied)
        for place in self._program.tensors:
            tensor = start.tensors[place]
            plain = tensor.device == start.begun.device and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
            if not plain or (known is not None and place not in moved and known.addresses[place] != tensor.data_ptr()):
                moved.add(place)
        return moved


class _Graph:
    """A captured step and the tensors that it reads and writes.

    Attributes:
        copied: the closed-over tensors that it reads from copies of its own, by their places.
        addresses: where it reads the others. They are not kept alive: a call that replays has its own tensors there.
    """

    def __init__(self, device: Device, program: Program, module: torch.fx.GraphModule, start: _Values, copied: frozenset[int]) -> None:
        where = start.begun.device
        self.copied = copied
        self.addresses = {place: start.tensors[place].data_ptr() for place in program.tensors if place not in copied}
        self._device, self._program = device, program
        self._time, self._limit = (torch.ones((), dtype=torch.int32, device=where) for _ in range(2))
        self._seed = torch.zeros((), dtype=torch.int64, device=where)
        self._carried = {  # of each leaf: the place among the outputs, and the tensor that holds it between the steps
            (target.kind, target.place): (place, _empty(start.leaf(target.kind, target.place), where))
            for place, target in enumerate(program.targets)
            if target.kind in ("finished", "inputs", "state", "loop_state")
        }
        self._copies = {place: _empty(start.tensors[place], where) for place in copied}
        self._load(start)
        known = {"time": self._time, "seed": self._seed}
        arguments = [
            known[source.kind]
            if source.kind in known
            else self._copies.get(source.place, start.tensors[source.place]).detach()
            if source.kind == "tensor"
            else self._carried[source.kind, source.place][1]
            for source in program.sources
        ]
        with _Rehearsal(where):
            outputs = module(*arguments)
        if any(output.device != where for output in outputs):
            raise Ungraphed(f"the step makes a tensor that is not on {where}")
        self._stored = {  # of each emit and write: what the last steps made, which step by which place
            place: torch.empty((EVERY, *outputs[place].shape), dtype=outputs[place].dtype, device=where)
            for place, target in enumerate(program.targets)
            if target.kind in ("emit", "index", "value")
        }
        self._history = torch.empty((EVERY, start.begun.batch), dtype=torch.bool, device=where)
        self._replay = device.capture(partial(self._step, module, arguments))

    def _load(self, start: _Values) -> None:
        self._time.fill_(1)
        self._limit.fill_(start.limit)
        if start.seed is not None:
            self._seed.copy_(start.seed)
        for (kind, place), (_, held) in self._carried.items():
            held.copy_(start.leaf(kind, place))
        for place, copy in self._copies.items():
            copy.copy_(start.tensors[place])

    def _step(self, module: torch.fx.GraphModule, arguments: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """One step. What it makes, and its status as `launch` takes it."""
        outputs = module(*arguments)
        at = ((self._time - 1) % EVERY).to(torch.int64).reshape(1)
        self._history.index_copy_(0, at, self._carried["finished", 0][1].unsqueeze(0))
        for place, stored in self._stored.items():
            stored.index_copy_(0, at, outputs[place].unsqueeze(0))
        failed = torch.zeros_like(self._time, dtype=torch.bool)
        for place, output in enumerate(outputs):
            if place >= len(self._program.targets) or self._program.targets[place].kind == "past":
                failed = failed | output.any()
        ended = outputs[self._carried["finished", 0][0]].all() | failed | (self._time >= self._limit)
        status = torch.stack([self._time, ended.to(torch.int32), failed.to(torch.int32)])
        # All of them before any is written: a leaf may be another one's last value.
        following = [(held, torch.where(ended, held, outputs[place])) for place, held in self._carried.values()]
        for held, value in following:
            held.copy_(value)
        self._time.add_((~ended).to(torch.int32))
        return outputs, status

    def run(self, start: _Values) -> End | None:
        """All steps of a loop; None where a look-up failed."""
        self._load(start)
        outputs: list[torch.Tensor] = []
        blocks: list[dict[int, torch.Tensor]] = []
        history: list[torch.Tensor] = []

        def replay() -> torch.Tensor:
            outputs[:], status = self._replay()
            return status

        def store() -> None:
            blocks.append({place: stored.clone() for place, stored in self._stored.items()})
            history.append(self._history.clone())

        steps, failed = launch(self._device, replay, store, start.limit)
        if failed:
            return None
        kept = -(-steps // EVERY)
        values = self._program.module.graph.output_node().args[0]
        made = {}
        for place, target in enumerate(self._program.targets):
            if place in self._stored:
                whole = torch.cat([block[place] for block in blocks[:kept]])[:steps]
                made[target] = whole.to(values[place].meta["val"].device)  # type: ignore[index, union-attr]
        begun = start.begun
        trees: dict[str, list[Any]] = {"state": list(begun.state), "loop_state": list(begun.loop_state or [])}
        for (kind, number), (place, _) in self._carried.items():
            if kind in trees:
                trees[kind][number] = outputs[place].clone().to(trees[kind][number].device)
        written = [target for target in self._program.targets if target.kind == "index"]
        indices = {target.place: made[target].tolist() for target in written}
        for step in range(steps):
            for target in written:
                tree, leaf = self._program.writes[target.place]
                value = made[target._replace(kind="value")][step]
                trees[tree][leaf] = trees[tree][leaf].write(indices[target.place][step], value)
        return End(
            [values for target, values in made.items() if target.kind == "emit"],
            torch.cat(history[:kept])[:steps],
            outputs[self._carried["finished", 0][0]].clone(),
            trees["state"],
            trees["loop_state"],
        )


def _empty(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=device)


class _Rehearsal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises Ungraphed at an operator that waits for the device: before torch 2.12 a capture that fails leaks what it has allocated."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [leaf for leaf in arg_tree_leaves(*args, **(kwargs or {})) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device == self.device for tensor in given):
            if func in _INDEXED:
                waits = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in args[1] if tensor is not None)
            else:
                waits = not _DEPENDS.isdisjoint(func.tags)
            if waits:
                raise Ungraphed(f"{func} waits for the device")
        if isinstance(made, torch.Tensor):
            # A number on the CPU goes into a kernel as it is, unless it is copied.
            between = any(tensor.device != made.device and (tensor.ndim or func in _COPIES) for tensor in given)
            if between:
                raise Ungraphed(f"{func} copies between devices")
        return made


_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)
_COPIES = (aten._to_copy.default, aten.copy.default, aten.copy_.default)
_DEPENDS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def _on_device(program: Program) -> torch.fx.GraphModule:
    """The step, its time a tensor of the device. Its outputs: those of the targets, then of each read whether it fails (0-d bool)."""
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    failed: list[torch.fx.Node] = []
    for node in program.module.graph.nodes:
        if node.op == "output":
            graph.output([*[copies[value] for value in node.args[0]], *failed])
            break
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.target is ops.read:
            failed.append(graph.call_function(_fails, copies[node].args))
        copies[node].target = _HERE.get(node.target, node.target)
    return torch.fx.GraphModule(program.module, graph)


def _read(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """As `ops.read`, without looking at the index."""
    size = x.shape[dim]
    if index.device != x.device:  # a constant
        return ops.PYTHON[ops.read](x, index, dim)
    if not size:
        return x.sum(dim, dtype=x.dtype)
    at = index.to(torch.int64)
    at = torch.where(at < 0, at + size, at).clamp(0, size - 1)
    return x.index_select(dim, at.reshape(1)).squeeze(dim)


def _fails(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """Whether `ops.read` raises IndexError: a 0-d bool on the device of x."""
    size = x.shape[dim]
    if not size or index.device != x.device:
        return torch.zeros((), dtype=torch.bool, device=x.device)
    return index.to(torch.int64) < -size


def _draw(row_seed: torch.Tensor, columns: int, time: torch.Tensor, site: int, lineage: int) -> torch.Tensor:
    """As `ops.draw`, without looking at the time."""
    column = torch.arange(columns, dtype=torch.int64, device=row_seed.device)
    return philox(row_seed[:, None], column, time.to(torch.int64), site, lineage)


def _quiet(x: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
    """As `ops.quiet`, without looking whether there is anything to do."""
    return x.masked_fill(rows.shaped(finished, x) & ~torch.isfinite(x), 0)


# No gradient passes through a graph, so `ops.guard` has nothing to do.
_HERE: dict[Any, Callable[..., torch.Tensor]] = {ops.read: _read, ops.draw: _draw, ops.quiet: _quiet, ops.guard: ops.PYTHON[ops.guard]}
