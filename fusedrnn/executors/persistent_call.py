"""A persistent kernel and the tensors of one call. In: a lowered program, time 0 and the closed-over tensors; out: what the loop leaves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import sympy
import torch
from torch.fx import Graph, GraphModule, Node

from .. import branches, frames, trees
from ..capture import ops
from ..capture.program import Program, Source
from ..capture.sizes import Size, function_of
from ..contract import Call, Port, Start
from ..frames import Frame
from ..kernels.device import is_recording
from ..kernels.gpu import launch
from ..lowering.gpu.packing import packed
from ..lowering.gpu.source import KernelSource
from ..lowering.gpu.step import Step
from ..lowering.gpu.tiles import Tile
from ..lowering.gpu.types import HALVES
from ..optimise.bounds import bounds
from ..optimise.graph import output, outputs, value
from ..optimise.vectorised import VECTORISED
from ..optimise.wavefront import Wavefront
from ..plan.plan import Plan
from ..result import Result
from . import reference
from .after import After
from .looks import Look
from .native_call import ENDLESS, NO_TOKENS, End, Tokens
from .outcome import of_end, outcome
from .prologue import Prologue

_MOST_AHEAD = 1 << 28  # bytes of what is made ahead, and of emits, for one launch
_MOST_ARRIVALS = 1 << 29  # at a group's barriers in one launch: its counter holds twice as many
_WRITTEN = ("done_out", "lengths_out", "error")
_AHEAD = {"cpu": 0, "cuda": 1}  # launches that are started before the host knows how an earlier one ended
_FIRST_STEPS = 64  # of a launch where no bound on the steps is known; then twice as many, and so on

Symbols = Mapping[str, int]


class Kernel:
    """A program, lowered for a plan.

    Args:
        program: as captured.
        plan: how it is laid out.
        source: the text.
        function: the kernel.
        sizes: those that it is made for, by their symbols.

    Attributes:
        sizes_made_for: as given.
        made_after: sizes and dtypes of the emits that are made after the loop.
        embeddings: of each input that is carried as a token the place of its embedding.
    """

    executor = "persistent"

    def __init__(self, program: Program, plan: Plan, source: KernelSource, function: Any, sizes: Mapping[str, int]) -> None:
        self.sizes_made_for = sizes
        self._made_for = [(*program.symbols[name], size) for name, size in sizes.items()]
        self.program, self.plan, self.source, self.function = program, plan, source, function
        step = plan.schedule.step
        module = step.made.module
        entries = dict(source.externals)
        self._names: set[str] = set()
        self.ahead = _Ahead(step, entries, self.size) if source.hoisted else None
        for tile, name in source.weights:
            entries[self._packed_node(module.graph, plan, tile)] = name
        self.names = list(entries.values())  # an entry of the prologue is the place of its name
        places = {node: self.names.index(name) for node, name in entries.items()}
        self.prologue = Prologue(module, step.made.program.sources, places, {}, lambda tensor: tensor)
        self.sizes = {name: self.size(sympy.Symbol(name)) for name in source.symbols}
        self.tables = {place: self.size(size) for place, size in step.made.moved.tables.items()}
        self.bounds = [self.size(bound) for bound in bounds(program)]
        self.front = step.made.wavefront or Wavefront(0, {})
        self.delayed = [([self.size(size) for size in sizes], dtype) for sizes, dtype in self.front.delayed]
        self.emits = [
            (target, name, [self.size(size) for size in value(node).shape], value(node).dtype) for target, node, name in source.emits
        ]
        self.made_after = [
            ([self.size(size) for size in value(node).shape], value(node).dtype)
            for target, node in zip(program.targets, outputs(program.module.graph), strict=True)
            if target.kind == "emit" and target.place in step.made.sunk.modules
        ]
        self.places = {name: program.symbols.get(name) for name in self._names}
        self.embeddings: Mapping[int, int] = step.made.moved.embeddings

    def fits(self, batch: int, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these closed-over tensors have the sizes that it is made for."""
        return all(tensors[place].shape[dim] == size for place, dim, size in self._made_for)

    def looked_at(self, tokens: frozenset[int]) -> set[int]:
        """The places of the closed-over tensors that others are made of, if the first tokens of these inputs are known."""
        return self.prologue.looked_at(tokens)

    def bound(self, program: Program, call: Call, begun: Start, tensors: Sequence[torch.Tensor], seed: int | None, tokens: Tokens) -> Bound:
        """As `Bound`."""
        assert program is self.program
        return Bound(self, call, begun, tensors, seed, tokens)

    def _packed_node(self, graph: Graph, plan: Plan, tile: Tile) -> Node:
        sharing = plan.schedule.sharing
        segments = tuple((begin, sharing.block(product.width), sharing.is_whole(product.width)) for product, begin in tile.segments)
        split = plan.precision == "hilo" and tile.dtype == torch.float32 and tile.stored is None
        weights = [product.weight for product, _ in tile.segments]
        with graph.inserting_before(output(graph)):
            node = graph.call_function(packed, (weights, segments, sharing.programs, tile.rows, tile.inner, tile.in_memory, split))
        node.meta["val"] = value(tile.segments[0][0].weight)
        return node

    def size(self, size: Any) -> Size:
        """A size as a function of the symbols."""
        function, names = function_of(size)
        self._names.update(names)
        return function


class _Ahead:
    """What depends on the time alone and is made before the loop, for several steps at once."""

    def __init__(self, step: Step, entries: dict[Node, str], size_of: Callable[[Any], Size]) -> None:
        graph = step.made.module.graph
        self.nodes = list(step.hoisted)
        needed: set[Node] = set()
        waiting = list(self.nodes)
        while waiting:
            node = waiting.pop()
            if node not in needed and node not in step.invariant:
                needed.add(node)
                waiting += node.all_input_nodes
        inputs = [node for node in graph.nodes if node in step.invariant and any(user in needed for user in node.users)]
        sizes = [node for node in inputs if not isinstance(value(node), torch.Tensor)]  # of what may be no input, such as a state
        self._sizes = [size_of(value(node)) for node in sizes]
        inputs = [node for node in inputs if node not in sizes]
        self.inputs = [entries.setdefault(node, f"q_{node.name}") for node in inputs]
        part = Graph()
        clock = part.placeholder("time")
        copies = {node: part.placeholder(name) for node, name in zip(inputs, self.inputs, strict=True)}
        copies |= {node: part.placeholder(node.name) for node in sizes}
        self._loops = False
        for node in graph.nodes:
            if node in copies:
                continue
            if node.op == "placeholder":
                copies[node] = clock
            elif node in needed:
                copies[node] = part.node_copy(node, copies.__getitem__)
                copies[node].target = VECTORISED.get(node.target, node.target)
                self._loops |= node.target in ops.PYTHON and node.target is not ops.read
        part.output(tuple(copies[node] for node in self.nodes))
        self._function = GraphModule(step.made.module, part).forward

    def bytes_per_step(self, sizes: Callable[[Any], int]) -> int:
        return sum(_numel([sizes(size) for size in value(node).shape]) * value(node).dtype.itemsize for node in self.nodes)

    def made(
        self, begin: int, steps: int, tensors: Mapping[str, torch.Tensor], symbols: Symbols, device: torch.device
    ) -> list[torch.Tensor]:
        """What steps from ``begin`` on read, ``[steps, ...]`` each."""
        times = torch.arange(begin + 1, begin + steps + 1, dtype=torch.int32, device=device)
        inputs = [*[tensors[name] for name in self.inputs], *[size(symbols) for size in self._sizes]]
        if self._loops:  # draws know their time as a Python number
            made = [self._function(time, *inputs) for time in times.unbind()]
            return [torch.stack(parts) for parts in zip(*made, strict=True)]
        in_dims = (0, *[None] * len(inputs))
        return [made.contiguous() for made in torch.vmap(self._function, in_dims=in_dims)(times, *inputs)]


def _numel(sizes: Sequence[int]) -> int:
    return torch.Size(sizes).numel()


class Bound:
    """A persistent loop and the tensors that it reads. Each `run` makes what it writes.

    Args, attributes: as of `fusedrnn.executors.native_call.Bound`.
    """

    def __init__(
        self,
        kernel: Kernel,
        call: Call,
        begun: Start,
        tensors: Sequence[torch.Tensor],
        seed: int | None,
        tokens: Tokens = NO_TOKENS,
    ) -> None:
        self.kernel, self.call, self.begun = kernel, call, begun
        self.symbols = {name: begun.batch if at is None else tensors[at[0]].shape[at[1]] for name, at in kernel.places.items()}
        device = begun.device
        first: dict[int, torch.Tensor] = {}
        for place, size in kernel.tables.items():  # else what stands for the first inputs: the rows behind the table
            rows = size(self.symbols)
            first[place] = tokens[place] if place in tokens else torch.arange(rows, rows + begun.batch, device=device)
        lag = kernel.front.lag
        self.leaves: dict[str, Any] = {
            "inputs": begun.inputs, "state": begun.state, "loop_state": begun.loop_state or [], "token": first,
            "over": [begun.finished, *[torch.ones_like(begun.finished)] * lag], "ended": [begun.finished],
            "delayed": [torch.zeros([of(self.symbols) for of in sizes], dtype=dtype, device=device) for sizes, dtype in kernel.delayed],
        }  # fmt: skip
        given = {Source("initial inputs", place): leaf.detach() for place, leaf in enumerate(begun.inputs) if place not in tokens}
        given |= {Source("initial token", place): leaf for place, leaf in first.items()}
        given[Source("finished")] = begun.finished  # of the carried the sizes count
        given |= {Source(kind, place): leaf for kind, leaves in self.leaves.items() if kind != "token" for place, leaf in enumerate(leaves)}
        if seed is not None:
            given[Source("seed")] = torch.full((), seed, dtype=torch.int64, device=device)
        self.limit = ENDLESS if call.max_steps is None else call.max_steps
        bound = min([self.limit, *[bound(self.symbols) for bound in kernel.bounds]])
        self.bound = min(bound + lag, ENDLESS)  # iterations: the last layer is that many steps behind the first
        if lag:
            given[Source("last")] = torch.full((), bound, dtype=torch.int32, device=device)
        found = [(entry, tensors[place]) for entry, place in kernel.prologue.direct]
        found += kernel.prologue.tensors(tensors, frozenset(tokens), lambda: given, anew=is_recording(device))
        self.copies = not all(tensor.is_contiguous() and tensor.device == device for _, tensor in found)
        # A number may stand on the CPU, as torch allows it everywhere.
        self.before = {kernel.names[entry]: tensor.detach().to(device).contiguous() for entry, tensor in found}
        self.after = After(kernel.plan.schedule.step.made.sunk, tensors)

    def result(self, call: Call, emit_port: Port) -> Result | None:
        """What the loop returns; None where it fails, takes no step or is not launched, which the slower way explains. On a GPU it may
        still be running."""
        try:
            if self.begun.device.type != "cpu":
                return self.launch().result(call, Frame(0), emit_port)
            ended = self.run()
        except launch.Refused:
            return None
        return None if ended is None or not ended.steps else of_end(call, self.begun, emit_port, ended, "persistent")

    def run(self, steps: int | None = None) -> End | None:
        """The loop to its end; None where a row looked where there is nothing.

        Args:
            steps: how many there will be, if that is known: the host need not wait then, and a fault is asserted on the device.

        Raises:
            RuntimeError: programs waited for one another in vain.
        """
        launched = self.launch()
        return launched.end() if steps is None or self.begun.device.type == "cpu" else launched.end_after(steps)

    def launch(self) -> Launched:
        """Start the loop. The host waits for nothing where the bound on its steps needs one launch; else it looks at the flags of a launch
        before it starts the one after the next, and stops where all rows are finished."""
        kernel, begun, plan = self.kernel, self.begun, self.kernel.plan
        batch, device = begun.batch, begun.device
        carried = [
            self.leaves[entry.leaf.source.kind][entry.leaf.source.place].detach().to(device).contiguous() for entry in kernel.source.leaves
        ]
        done = begun.finished.to(torch.int32)
        lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        pieces: list[list[torch.Tensor]] = []
        begin, steps, error = 0, self._first_steps(), torch.zeros(2, dtype=torch.int32, device=device)
        if steps < self.bound:  # the next launch goes on with what this one has in its registers
            carried = [leaf.float() if leaf.dtype in HALVES else leaf for leaf in carried]
        looks: deque[Look] = deque()
        may_look = not is_recording(device)
        rows = plan.batch_tile * plan.groups(batch)
        while True:
            steps = min(steps, self.bound - begin)
            emits = [
                torch.empty((steps, *[size(self.symbols) for size in sizes]), dtype=dtype, device=device)
                for _, _, sizes, dtype in kernel.emits
            ]  # fmt: skip
            after = [torch.empty_like(leaf) for leaf in carried]
            done_after, lengths_after = torch.empty_like(done), torch.empty_like(lengths)
            tensors = self._made_before(begin, steps) | {name: emit for (_, name, _, _), emit in zip(kernel.emits, emits, strict=True)}
            for entry, old, new in zip(kernel.source.leaves, carried, after, strict=True):
                tensors[entry.initial], tensors[entry.final] = old, new
            tensors |= {"done_in": done, "done_out": done_after, "lengths_in": lengths, "lengths_out": lengths_after, "error": error}
            for first_row in range(0, batch, rows):
                self._launch(tensors, first_row, begin, begin + steps)
            pieces.append(emits)
            carried, done, lengths = after, done_after, lengths_after
            begin += steps
            if begin >= self.bound:
                break
            if may_look:
                looks.append(Look((done.all() | error.any()).to(torch.int32).reshape(1)))
                if len(looks) > _AHEAD[device.type] and looks.popleft().read()[0]:
                    break
            steps = min(2 * steps, self._most_steps())
        carried = [leaf.to(value(entry.leaf.node).dtype) for entry, leaf in zip(kernel.source.leaves, carried, strict=True)]
        if kernel.front.lag:
            lengths = (lengths - kernel.front.lag).clamp_(min=0)
            done = next(leaf for entry, leaf in zip(kernel.source.leaves, carried, strict=True) if entry.leaf.source.kind == "ended")
        return Launched(self, pieces, carried, done, lengths, error)

    def _made_before(self, begin: int, steps: int) -> dict[str, torch.Tensor]:
        """What steps from ``begin`` on read and do not change."""
        kernel, tensors = self.kernel, dict(self.before)
        if kernel.ahead is not None:
            with torch.no_grad():
                tensors |= zip(
                    kernel.source.hoisted.values(),
                    kernel.ahead.made(begin, steps, self.before, self.symbols, self.begun.device),
                    strict=True,
                )
            for name in kernel.ahead.inputs:
                if name not in kernel.source.pointers:
                    del tensors[name]
        return tensors

    def _launch(self, tensors: dict[str, torch.Tensor], first_row: int, begin: int, until: int) -> None:
        kernel, plan, device = self.kernel, self.kernel.plan, self.begun.device
        groups = min(plan.groups(self.begun.batch), -(-(self.begun.batch - first_row) // plan.batch_tile))
        padded = groups * plan.batch_tile
        scratch = {
            name: _scratch((exchange.slots * exchange.of, padded, exchange.width), exchange.dtype, device)
            for exchange, name in kernel.source.exchanges
        }
        scratch |= {name: _scratch((2, padded, plan.programs), dtype, device) for name, dtype in kernel.source.keys.items()}
        scratch["counters"] = torch.zeros((groups, 32), dtype=torch.int32, device=device)
        numbers = {"B": self.begun.batch, "padded": padded, "first_row": first_row, "t0": begin, "T": until}
        numbers |= {name: size(self.symbols) for name, size in kernel.sizes.items()}
        outputs = [*[name for _, name, _, _ in kernel.emits], *[entry.final for entry in kernel.source.leaves], *_WRITTEN]
        launch.launch(kernel.function, (plan.programs, groups), tensors | scratch, numbers, plan.precision, plan.options, outputs=outputs)

    def _first_steps(self) -> int:
        return min(self.bound, self._most_steps()) if self.bound < ENDLESS else min(_FIRST_STEPS, self._most_steps())

    def _most_steps(self) -> int:
        """The most steps of one launch: as many as there is memory for what is made ahead and emitted."""
        kernel = self.kernel
        emits = [*[(sizes, dtype) for _, _, sizes, dtype in kernel.emits], *kernel.made_after]
        size = sum(_numel([of(self.symbols) for of in sizes]) * dtype.itemsize for sizes, dtype in emits)
        if kernel.ahead is not None:
            if self.call.parallel_iterations is not None:
                return int(self.call.parallel_iterations)
            size += kernel.ahead.bytes_per_step(lambda extent: self.kernel.size(extent)(self.symbols))
        arrivals = self.kernel.plan.programs * (len(self.kernel.plan.schedule.barriers) + 1)  # a step's
        return max(min(_MOST_AHEAD // max(int(size), 1), _MOST_ARRIVALS // arrivals), 1)


class Launched:
    """A loop under way on the device.

    Attributes:
        lengths, done: of the rows, when the device is done.
    """

    def __init__(
        self, bound: Bound, pieces: list[list[torch.Tensor]], carried: list[torch.Tensor], done: torch.Tensor, lengths: torch.Tensor,
        error: torch.Tensor,
    ) -> None:  # fmt: skip
        self.bound, self.done, self.lengths = bound, done, lengths
        self._pieces, self._carried, self._error = pieces, carried, error
        self._emits: dict[tuple[str, int], torch.Tensor] = {}  # once they are put together

    def leaves(self) -> dict[str, list[Any]]:
        """The final leaves of the state and of loop_state."""
        begun = self.bound.begun
        leaves = {"state": list(begun.state), "loop_state": list(begun.loop_state or [])}
        for entry, leaf in zip(self.bound.kernel.source.leaves, self._carried, strict=True):
            if entry.leaf.returned:
                leaves[entry.leaf.source.kind][entry.leaf.source.place] = leaf
        return leaves

    def result(self, call: Call, frame: Frame, emit_port: Port) -> Result:
        """What the loop returns: who asks for emits or lengths waits for the device, and learns then what went wrong."""
        begun = self.bound.begun
        if self.bound.kernel.program.writes:  # the host puts them into the arrays
            ended = self.end()
            if ended is None:
                return reference.explain_fault(call, frame, begun, "persistent")
            return of_end(call, begun, emit_port, ended, "persistent")

        self._finish()  # of the weights as they are now

        @cache
        def made() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
            ended = self.end()
            if ended is not None:
                return [ended.made["emit", place] for place in range(len(emit_port.leaves))], ended.lengths, ended.finished
            frame.past_end.clear()
            with frames.within(frame), branches.taken():
                result = reference.explain_fault(call, frame, begun, "persistent")
                return [leaf.stack() for leaf in trees.leaves(result.emit_ta)], result.lengths, ~result.truncated

        leaves = self.leaves()
        loop_state = None if begun.loop_state is None else leaves["loop_state"]
        return outcome(
            call, begun, emit_port, lambda place: made()[0][place], lambda: made()[1], lambda: made()[2], leaves["state"], loop_state,
            "persistent",
        )  # fmt: skip

    def end_after(self, steps: int) -> End:
        """What the loop leaves after so many steps, which are known. The host waits for nothing: that something went wrong is asserted on
        the device."""
        torch._assert_async(
            (self._error == 0).all(),
            "a persistent kernel failed: a row that was not finished read past the end of an input, or its programs waited in vain",
        )
        return self._end(steps)

    def end(self) -> End | None:
        """What the loop leaves; the host waits for the device. None where a row looked where there is nothing.

        Raises:
            RuntimeError: programs waited for one another in vain.
        """
        late, bad = self._error.tolist()
        if late:
            raise RuntimeError("the programs of a persistent kernel waited for one another in vain: its results are not to be used")
        if bad:
            return None
        return self._end(int(self.lengths.max()))

    def waited_in_vain(self) -> bool:
        """Whether programs waited for one another until they gave up; the host waits for the device."""
        return bool(self._error[0])

    def _finish(self, steps: int | None = None) -> None:
        """Put the emits together, and make what comes after the loop; of that many steps, if that is known."""
        if self._emits:
            return
        late = self.bound.kernel.front.emits
        for place, (target, _, _, _) in enumerate(self.bound.kernel.emits):
            parts = [piece[place] for piece in self._pieces]
            whole = (parts[0] if len(parts) == 1 else torch.cat(parts))[late.get(target, 0) :][:steps]
            if target.kind == "stored":
                self._emits["emit", target.place] = self.bound.after.emit(target.place, whole, self.lengths)
            else:
                self._emits[target.kind, target.place] = whole
        self._pieces.clear()

    def _end(self, steps: int) -> End:
        self._finish(steps)
        made = {key: whole[:steps] for key, whole in self._emits.items()}
        return End(steps, made, self.leaves(), self.bound.kernel.program.writes, (self.done.bool(), self.lengths))


def _scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory for exchanges; what it held before does not matter, and with FUSEDRNN_EMULATE=1 it holds NaN, to show that."""
    scratch = torch.empty(shape, dtype=dtype, device=device)
    if device.type != "cpu":
        return scratch
    if dtype.is_floating_point:
        return scratch.fill_(float("nan"))
    return scratch.fill_(1 if dtype == torch.bool else torch.iinfo(dtype).max)
