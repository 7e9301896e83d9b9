"""Capture. In: a call and what its time 0 settled; out: a `Program` of one step, or `NotCapturable` with the reason."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Distribution
from torch.fx import traceback as node_meta
from torch.fx.experimental.proxy_tensor import make_fx

from .. import contract, frames, rows, trees
from ..contract import Call, Leaf, Port, Start
from ..tensor_array import TensorArray
from . import ops, refusal
from .arrays import TracedArray
from .program import Program, Source, Target, Write
from .refusal import NotCapturable
from .shape_env import SilentShapeEnv, free_size
from .sizes import Fits, fits
from .tracing import Tracing, is_view


def capture(call: Call, begun: Start, tensors: Sequence[torch.Tensor]) -> Program:
    """Trace the cell and then loop_fn at a time from 1 on, once, on tensors without data.

    Args:
        call, begun: the loop; all but its values is fixed from here on.
        tensors: what the cell and loop_fn close over. A tensor that is missing here becomes a constant.

    Raises:
        NotCapturable: the step does what a graph cannot hold.
        TypeError, ValueError: loop_fn's result is not what `raw_rnn` says it must be.
    """
    with tracing():
        first = Capture(call, begun, tensors, {})
        program = first.program()
        more = first.reads_of_fixed_sizes()
        # A tensor that is read along time, but has no batch size to be known by: again, with its length free.
        return Capture(call, begun, tensors, more).program() if more else program


@contextmanager
def tracing() -> Iterator[None]:
    """The settings of a tracing, whatever those of the call."""
    with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad(), _unchecked_distributions():
        # Making a fake of a tensor looks at its .grad, which warns where that tensor is no leaf.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
        yield


@contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """torch.distributions look at the values of their arguments, which a traced tensor does not have."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


class Capture:
    """One tracing: what the fakes are made of and what is found out on the way."""

    def __init__(self, call: Call, begun: Start, tensors: Sequence[torch.Tensor], read_along: dict[int, set[int]]) -> None:
        self.read_along = read_along
        self.call, self.begun, self.tensors = call, begun, tensors
        self.shape_env = SilentShapeEnv(duck_shape=True)
        self.fake_mode = FakeTensorMode(shape_env=self.shape_env, allow_non_fake_inputs=True)
        self.fake_mode.cache_enabled = False  # operators of a step are rarely alike: a fifth of the time of capture and passes
        self.symbols = 0
        self.batch = self._size(begun.batch)
        self.sources: list[Source] = []
        self.targets: list[Target] = []
        self.writes: list[Write] = []
        self.emit_port: Port | None = None
        self.keeps_loop_state = False
        self.mode: Tracing | None = None

    def program(self) -> Program:
        module, fakes = self.traced()
        used = self.without_unused(module)
        holds, batch, symbols = self.holds(fakes)
        assert self.emit_port is not None
        return Program(
            module, used, tuple(self.targets), tuple(self.writes), self.begun.inputs_port, self.begun.state_port,
            self.begun.loop_state_port, self.emit_port, self.keeps_loop_state, holds, batch, symbols,
            self.mode is not None and self.mode.met_stranger, self.shape_env.fixed.get(self.begun.batch) if batch.is_number else None,
        )  # fmt: skip

    def traced(self) -> tuple[torch.fx.GraphModule, list[torch.Tensor]]:
        """The graph, and the tensors without data that it was traced with."""
        fakes = self.fakes()
        function: Callable[..., list[torch.Tensor]] = torch.func.functionalize(self._traced_step, remove="mutations")
        try:
            with self.fake_mode, node_meta.preserve_node_meta():
                module = make_fx(function, COPIES)(*fakes)
                if any(is_mutation(node) for node in module.graph.nodes):  # of operators that are made of others in C++
                    module = make_fx(torch.func.functionalize(interpreted(module), remove="mutations"), COPIES)(*fakes)
        except Exception as error:
            refused = refusal.refusal(error, self.mode.who if self.mode else "the cell", self.mode.conversion if self.mode else None)
            if refused is None:
                raise
            raise refused from error
        self._refuse_leftovers(module)
        return module, fakes

    def holds(self, fakes: Sequence[torch.Tensor]) -> tuple[Fits, sympy.Expr, dict[str, tuple[int, int]]]:
        """For which sizes the graph holds; as `fits`."""
        lifted = [(place, fake) for (kind, place), fake in zip(self.sources, fakes, strict=True) if kind == "tensor"]
        return fits(self.shape_env, self.batch, lifted)

    def reads_of_fixed_sizes(self) -> dict[int, set[int]]:
        """The closed-over tensors, by identity, that are read along a dimension that was not free, with those dimensions."""
        assert self.mode is not None
        found: dict[int, set[int]] = {}
        for tensor, dim in self.mode.reads:
            original = next((real for real in self.tensors if id(real) == tensor), None)
            if original is not None and not isinstance(original, torch.nn.Parameter) and original.shape[dim] > 1:
                shape = self.begun.batch in original.shape[:2]
                if not (shape and dim < 2):
                    found.setdefault(tensor, set()).add(dim)
        return found

    def _size(self, size: int) -> Any:
        """As `free_size`."""
        self.symbols += 1
        return free_size(self.shape_env, f"size{self.symbols}", size)

    def fakes(self) -> list[torch.Tensor]:
        """A tensor without data for each source, which it notes."""
        begun = self.begun
        lengths = [self._size(7) for kind in ("state", "loop_state") for leaf in self._leaves(kind) if isinstance(leaf, TensorArray)]

        def fake(kind: str, place: int, shape: Sequence[Any], like: Any) -> None:
            self.sources.append(Source(kind, place))
            found.append(torch.empty(tuple(shape), dtype=like.dtype, device=like.device))

        found: list[torch.Tensor] = []
        with self.fake_mode:
            self.sources.append(Source("time"))
            found.append(torch.empty((), dtype=torch.int32))
            fake("finished", 0, (self.batch,), begun.finished)
            for kind in ("inputs", "state", "loop_state"):
                for place, leaf in enumerate(self._leaves(kind)):
                    if isinstance(leaf, TensorArray):
                        self._fake_content(f"{kind} array", place, leaf, lengths.pop(), found)
                        continue
                    by_rows = kind != "loop_state" and leaf.ndim
                    shape = (self.batch, *leaf.shape[1:]) if by_rows else self._carried_shape(leaf.shape)
                    fake(kind, place, shape, leaf)
        self.add_closed_over(found)
        return found

    def add_closed_over(self, found: list[torch.Tensor]) -> None:
        """The seed and the closed-over tensors."""
        for tensor in self.tensors:
            if tensor.layout is not torch.strided:
                sizes = list(tensor.shape)
                raise NotCapturable(f"the loop reads a sparse tensor {sizes} ({tensor.layout}): give it a dense one (to_dense())", None)
        shapes = [self._lifted_shape(tensor) for tensor in self.tensors]
        with self.fake_mode:
            self.sources.append(Source("seed"))
            found.append(torch.empty((), dtype=torch.int64))
            for place, tensor in enumerate(self.tensors):
                self.sources.append(Source("tensor", place))
                found.append(torch.empty(tuple(shapes[place]), dtype=tensor.dtype, device=tensor.device))

    def _leaves(self, kind: str) -> list[Any]:
        return {"inputs": self.begun.inputs, "state": self.begun.state, "loop_state": self.begun.loop_state or []}[kind]

    def _fake_content(self, kind: str, place: int, array: TensorArray, length: Any, found: list[torch.Tensor]) -> None:
        """The elements of a carried array, as many as there may be, where their dtype and shape are known."""
        if array.dtype is None or array.element_shape is None or None in array.element_shape:
            return
        element = self._carried_shape([size for size in array.element_shape if size is not None])
        self.sources.append(Source(kind, place))
        found.append(torch.empty((length, *element), dtype=array.dtype, device=self.begun.device))

    def _carried_shape(self, shape: Sequence[int]) -> list[Any]:
        """loop_state has no batch dimension to speak of; what has the batch's size first most likely is a row's."""
        return [self.batch if not place and size == self.begun.batch else size for place, size in enumerate(shape)]

    def _lifted_shape(self, tensor: torch.Tensor) -> list[Any]:
        """The sizes of a closed-over tensor, with symbols for those that may be the batch size or the number of steps.

        Of what is no parameter these are the first two, where one of them is the batch size, and dimensions that are known to be read
        along time. A symbol that meets another size in the step becomes that size.
        """
        shape = list(tensor.shape)
        if isinstance(tensor, torch.nn.Parameter):
            return shape
        free = self.read_along.get(id(tensor), set()) | ({0, 1} if self.begun.batch in shape[:2] else set())
        return [self._size(size) if place in free else size for place, size in enumerate(shape)]

    def _traced_step(self, *arguments: torch.Tensor) -> list[torch.Tensor]:
        by_kind: dict[str, dict[int, torch.Tensor]] = {}
        for source, argument in zip(self.sources, arguments, strict=True):
            by_kind.setdefault(source.kind, {})[source.place] = argument
        clock = self.clock_of(by_kind)
        stand_ins = {id(self.tensors[place]): traced for place, traced in by_kind.get("tensor", {}).items()}
        with frames.running() as frame:
            frame.lineage, frame.clock, frame.seed = 0, clock, by_kind["seed"][0]
            self.mode = mode = Tracing(frame, clock, stand_ins)
            with _fresh_meta(), mode:
                self.targets, self.writes = [], []
                return self.traced_outputs(mode, by_kind)

    def clock_of(self, by_kind: dict[str, dict[int, Any]]) -> torch.Tensor:
        """The time of the loop_fn call that is traced."""
        return by_kind["time"][0]  # type: ignore[no-any-return]

    def traced_outputs(self, mode: Tracing, by_kind: dict[str, dict[int, torch.Tensor]]) -> list[torch.Tensor]:
        """What the graph computes; the targets are noted."""
        begun, clock, finished = self.symbolic_start(), mode.clock, by_kind["finished"][0]
        inputs = [ops.quiet(leaf, finished) if rows.may_be_infinite(leaf) else leaf for leaf in by_kind["inputs"].values()]
        state = self._carried("state", mode, by_kind)
        seen = [ops.quiet(leaf, finished) if rows.may_be_infinite(leaf) else leaf for leaf in state]
        mode.inputs = inputs
        result = self.call.cell(begun.inputs_port.tree(inputs), begun.state_port.tree(seen))
        output, cell_state = contract.cell_results(mode.stood_in(result), 1)
        mode.who = "loop_fn"
        output, cell_state = _guarded((output, cell_state), finished, mode)
        loop_state = None if begun.loop_state is None else self._carried("loop_state", mode, by_kind)
        mode.loop_state = [leaf for leaf in loop_state or [] if isinstance(leaf, torch.Tensor)]
        carried = None if begun.loop_state_port is None else begun.loop_state_port.tree(loop_state or [])
        result = mode.stood_in(contract.asked(self.call, clock, output, cell_state, carried))
        step = contract.settled(self.call, begun, 1, finished, output, result)
        self.emit_port = begun.emit_port
        self.keeps_loop_state = begun.loop_state_port is not None and step.loop_state is None

        outputs: list[torch.Tensor] = []

        def put(kind: str, place: int, value: torch.Tensor) -> None:
            self.targets.append(Target(kind, place))
            outputs.append(value)

        put("finished", 0, step.finished)
        for place, leaf in enumerate(step.inputs):
            put("inputs", place, leaf)
        kept = loop_state if step.loop_state is None else step.loop_state
        frozen = [rows.frozen(old, new, finished) for old, new in zip(state, step.state, strict=True)]
        for kind, old, new in (("state", state, frozen), ("loop_state", loop_state or [], kept or [])):
            for place, (before, leaf) in enumerate(zip(old, new, strict=True)):
                if isinstance(leaf, TensorArray):
                    self._put_writes(put, kind, place, before, leaf)
                else:
                    put(kind, place, leaf)
        mode.refuse_changes(step.inputs)
        for place, leaf in enumerate(step.emit):
            put("emit", place, rows.zeroed(leaf, finished))
        if mode.past_end:
            late = torch.zeros_like(step.finished)
            for past in mode.past_end:
                late = late | (past if past.shape == late.shape else past.any())
            put("past", 0, late & ~step.finished)
        return outputs

    def _put_writes(self, put: Callable[[str, int, torch.Tensor], None], kind: str, place: int, before: Any, after: Any) -> None:
        if not isinstance(after, TracedArray) or after.original is not before.original:
            raise NotCapturable("loop_fn replaces a TensorArray that it carries: write to the one it was given", None)
        for index, value in after.writes:
            self.writes.append(Write(kind, place))
            put("index", len(self.writes) - 1, index)
            put("value", len(self.writes) - 1, value)

    def _carried(self, kind: str, mode: Tracing, by_kind: dict[str, dict[int, torch.Tensor]]) -> list[Any]:
        traced, contents = by_kind.get(kind, {}), by_kind.get(f"{kind} array", {})
        return [
            TracedArray(leaf, contents.get(place), mode.looked_past) if isinstance(leaf, TensorArray) else traced[place]
            for place, leaf in enumerate(self._leaves(kind))
        ]

    def symbolic_start(self) -> Start:
        """What time 0 settled, with the batch size as the symbol."""
        begun, batch = self.begun, self.batch

        def port(port: Port, every: bool) -> Port:
            leaves = [_with_batch(leaf, begun.batch, batch, every) for leaf in port.leaves]
            return Port(port.name, port.structure, leaves, port.hint)

        return dataclasses.replace(
            begun,
            batch=batch,
            inputs_port=port(begun.inputs_port, True),
            state_port=port(begun.state_port, True),
            loop_state_port=None if begun.loop_state_port is None else port(begun.loop_state_port, False),
            emit_port=None if begun.emit_port is None else port(begun.emit_port, True),
        )

    def _refuse_leftovers(self, module: torch.fx.GraphModule) -> None:
        for node in module.graph.nodes:
            where = node.meta.get("stack_trace")
            if is_mutation(node):
                raise NotCapturable(
                    f"a tensor that is closed over is changed in place ({node.target}): carry it in the state or in loop_state", where
                )
            tags = getattr(node.target, "tags", ())
            if torch.Tag.nondeterministic_seeded in tags:
                raise NotCapturable(f"{node.target} draws from torch's generator: use fusedrnn.random or torch.rand", where)
            if node.target in _PRODUCTS:
                dtypes = dict.fromkeys(operand.meta["val"].dtype for operand in node.args if isinstance(operand, torch.fx.Node))
                if len(dtypes) > 1:  # tensors without data admit it, those with data do not
                    raise NotCapturable(f"a product of {' and '.join(map(str, dtypes))}, which torch refuses: convert one of them", where)
            if node.op == "call_function" and node.target is torch.ops.aten._local_scalar_dense.default:
                raise NotCapturable("the step turns a tensor into a Python number: keep it a tensor", where)

    def without_unused(self, module: torch.fx.GraphModule) -> tuple[Source, ...]:
        """Drop what no output needs, placeholders too; the sources that are left."""
        module.graph.eliminate_dead_code()
        used = []
        for node, source in zip([node for node in module.graph.nodes if node.op == "placeholder"], self.sources, strict=True):
            if node.users or source.kind in ("inputs", "state", "loop_state"):  # a leaf that is only written still has a last value
                used.append(source)
            else:
                module.graph.erase_node(node)
        module.recompile()
        return tuple(used)


def _with_batch(leaf: Leaf, batch: int, symbol: Any, every: bool) -> Leaf:
    if leaf.shape and (every or leaf.shape[0] == batch):
        return Leaf((symbol, *leaf.shape[1:]), leaf.dtype)
    return leaf


def _guarded(made: tuple[Any, Any], finished: torch.Tensor, mode: Tracing) -> tuple[Any, Any]:
    """What the cell makes, as loop_fn sees it. A tensor that is output and state is one tensor for loop_fn too."""
    known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def guard(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not (leaf.is_floating_point() or leaf.is_complex()) or not leaf.ndim:
            return leaf
        if leaf.shape[0] != finished.shape[0]:
            return leaf
        if id(leaf) not in known:
            known[id(leaf)] = leaf, ops.guard(leaf, finished)
        return known[id(leaf)][1]

    output, cell_state = (trees.map_leaves(guard, tree) for tree in made)
    pairs = list(known.values())
    mode.overlapping = [seen for leaf, seen in pairs if is_view(leaf, [other for other, _ in pairs if other is not leaf])]
    return output, cell_state


def _copied(into: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return source.to(into.dtype).to(into.device).expand(into.shape)


_PRODUCTS = {
    torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default,
    torch.ops.aten.mv.default, torch.ops.aten.dot.default,
}  # fmt: skip

# What functionalisation makes and autograd has no derivative of (torch 2.13).
COPIES: dict[Any, Callable[..., Any]] = {torch.ops.aten.copy.default: _copied}


def is_mutation(node: torch.fx.Node) -> bool:
    """Whether an operator changes what it takes."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def interpreted(module: torch.fx.GraphModule) -> Callable[..., Any]:
    """A graph as a function that calls its operators one by one."""

    def run(*arguments: torch.Tensor) -> Any:
        return torch.fx.Interpreter(module).run(*arguments)

    return run


@contextmanager
def _fresh_meta() -> Iterator[None]:
    """What an outer trace notes about its nodes is not about these."""
    saved = dict(node_meta.current_meta)
    node_meta.current_meta.clear()
    try:
        yield
    finally:
        node_meta.current_meta.clear()
        node_meta.current_meta.update(saved)
