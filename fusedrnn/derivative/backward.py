"""The derivative of a loop as a loop. In: a `Forward`; out: a program that runs from the last step to the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Graph, GraphModule, Node

from .. import trees
from ..capture import ops
from ..capture.program import Program, Source, Target
from ..capture.refusal import NotCapturable
from ..capture.shape_env import free_size
from ..capture.sizes import Size, expression, function_of
from ..contract import Leaf, Port
from ..optimise.graph import aten, call, fake_mode, placeholders, value
from ..optimise.simplify import simplify
from .forward import Forward, ancestors, copied_node, crossing, is_by_rows, wanted
from .steps import Functions
from .totals import PRODUCTS, Summing, Totals

_STACKED = ("emit", "value")  # kinds of targets whose gradients come in for all steps at once


@dataclass(frozen=True)
class Backward:
    """The derivative of a loop.

    Attributes:
        program: its closed-over tensors are what is known before the loop, the rows' lengths, what was kept, the gradients of ``given`` and
            an empty tensor ``[T]``, in this order.
        state, loop_state: of each leaf: the source whose gradient it is, or the node of the joint graph of which it is the sum.
        given: the emits and writes whose gradients it reads.
        emitted: the nodes of the joint graph that it emits, the last step first.
        by_rows: whether such a value has the batch first; else it is emitted for every row.
        totals: what is left to do behind it.
        wanted: of each source or known value the gradient.
        functions: what makes values of the step behind it.
    """

    program: Program
    state: tuple[Source | Node, ...]
    loop_state: tuple[Source | Node, ...]
    given: tuple[Target, ...]
    emitted: tuple[Node, ...]
    by_rows: dict[Node, bool]
    totals: Totals
    wanted: dict[Source | int, Node | None]
    functions: Functions
    _sizes: dict[Node, list[Size]]

    def zeros(self, node: Node, batch: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """What a sum begins with, or the gradient of an emit that has none, for the closed-over tensors of the program."""
        values = {name: tensors[place].shape[dim] for name, (place, dim) in self.program.symbols.items()} | {str(self.program.batch): batch}
        return torch.zeros([size(values) for size in self._sizes[node]], dtype=value(node).dtype, device=tensors[-1].device)


def backward(made: Forward, needed: frozenset[Source], given: frozenset[Target]) -> Backward:
    """The derivative of a loop.

    Args:
        needed: the sources that need a gradient, as for `forward`.
        given: the emits and writes that gradients come in of. Gradients of what is carried always do.

    Raises:
        NotCapturable: it cannot be a loop.
    """
    return _Building(made, needed, given).built()


class _Building:
    def __init__(self, made: Forward, needed: frozenset[Source], given: frozenset[Target]) -> None:
        self.made, self.joint, self.batch = made, made.joint, made.program.batch
        self.wanted = wanted(made.core, made.joint, needed)
        self.given = tuple(target for target in made.joint.given if target.kind in _STACKED and target in given)
        self.tangents = dict(zip(made.joint.given, made.joint.tangents, strict=True))
        self.graph, self.root = Graph(), torch.nn.Module()
        self.mode: Any = fake_mode(made.joint.graph)
        self.sources: list[Source] = []
        self.targets: list[Target] = []
        self.returned: list[Any] = []
        self.copies: dict[Node, Node] = {}  # of nodes of the joint graph
        self.quiet: dict[tuple[Node, bool], Node] = {}
        self.sums: dict[Node, Node] = {}  # of gradients that are added up: what comes in
        self.leaves: dict[str, list[Source | Node]] = {"state": [], "loop_state": []}
        self.values: list[torch.Tensor] = []  # of closed-over tensors

    def built(self) -> Backward:
        joint = self.joint
        carried = {source: gradient for source, gradient in self.wanted.items() if isinstance(source, Source)}
        sums = [gradient for source, gradient in self.wanted.items() if not isinstance(source, Source) and gradient is not None]
        totals = Summing(joint, self.batch).totals(sums)
        inside = ancestors([*[node for node in carried.values() if node is not None], *totals.added]) & joint.backward
        stacked = {self.tangents[target] for target in joint.given if target.kind in _STACKED}
        emitted = _emitted(totals, inside, joint.backward, stacked, self.batch)
        self._placeholders(carried, totals)
        self._clock()
        self._put(
            "finished", 0, call(self.graph, aten.expand.default, call(self.graph, aten.ge.Scalar, self.time, self.steps), [self.rows])
        )
        for kind, leaves in self.leaves.items():
            for place, leaf in enumerate(leaves):
                self._put(kind, place, self._gradient(leaf, carried[leaf]) if isinstance(leaf, Source) else self._sum(leaf))
        for place, node in enumerate(emitted):
            self._put("emit", place, self._emit(node))
        self.graph.output(self.returned)
        simplify(self.graph)
        self.graph.lint()
        return Backward(
            self._program(emitted), tuple(self.leaves["state"]), tuple(self.leaves["loop_state"]), self.given, tuple(emitted),
            {node: is_by_rows(value(node), self.batch) for node in emitted}, totals, self.wanted,
            Functions(joint, [*self.made.emits, *emitted], self.batch, self.made.core.retires),
            {node: [function_of(size)[0] for size in value(node).shape] for node in (*totals.added, *stacked)},
        )  # fmt: skip

    def _placeholders(self, carried: dict[Source, Node | None], totals: Totals) -> None:
        """What the step takes, in the order of `Backward.program`."""
        joint, steps = self.joint, free_size(self.mode.shape_env, "steps", 7)
        self.time = self._placeholder(Source("time"), (), torch.int32)
        incoming = [(source, self.tangents[Target(*source)]) for source in carried]
        for kind in ("state", "loop_state"):
            leaves: list[tuple[Source | Node, Node]] = [*incoming, *[(gradient, gradient) for gradient in totals.added]]
            for leaf, node in leaves:
                like = value(node)
                if (kind == "state") != is_by_rows(like, self.batch):
                    continue
                made = self._placeholder(Source(kind, len(self.leaves[kind])), like.shape, like.dtype)
                self.leaves[kind].append(leaf)
                if isinstance(leaf, Source):
                    self.copies[node] = made
                else:
                    self.sums[leaf] = made
        for node in joint.known:
            self.copies[node] = self._closed_over(value(node).shape, value(node).dtype)
        self.lengths = self._closed_over((self._of_batch(),), torch.int32)
        kept = {node: self._closed_over((steps, *value(node).shape), value(node).dtype) for node in self.made.emits}
        given = [self.tangents[target] for target in self.given]
        gradients = {node: self._closed_over((steps, *value(node).shape), value(node).dtype) for node in given}
        empty = self._closed_over((steps,), torch.float32)
        self.steps = call(self.graph, aten.sym_size.int, empty, 0)
        self.at = call(self.graph, aten.rsub.Scalar, self.time, self.steps)  # the step counted from 0
        for node, stack in {**kept, **gradients}.items():
            self.copies[node] = call(self.graph, ops.read, stack, self.at, 0, like=node)

    def _clock(self) -> None:
        """The time of the step, and which rows it finds finished."""
        self.rows = call(self.graph, aten.sym_size.int, self.lengths, 0)
        clock = call(self.graph, aten.add.Tensor, self.at, 1)
        self.over = call(self.graph, aten.lt.Tensor, self.lengths, clock)
        self.ends = call(self.graph, aten.le.Tensor, self.lengths, clock)
        for node, source in self.joint.sources.items():
            if source.kind == "time":
                self.copies[node] = clock
            elif source.kind == "finished":
                self.copies[node] = self.over
        for target in self.joint.given:
            node = self.tangents[target]
            if target.kind in _STACKED and target not in self.given:
                sizes = [self._size(size) for size in value(node).shape]
                self.copies[node] = call(
                    self.graph, aten.full.default, sizes, 0, dtype=value(node).dtype, device=value(node).device, like=node
                )

    def _of_batch(self) -> Any:
        last = next(node for node, source in self.joint.sources.items() if source.kind == "finished")
        return value(last).shape[0]

    def _size(self, size: Any) -> Any:
        """A size as a number or a node."""
        wanted = expression(size)
        if wanted.is_Integer:
            return int(wanted)
        for node, made in zip(placeholders(self.graph), map(value, placeholders(self.graph)), strict=True):
            for dim, known in enumerate(made.shape):
                if expression(known) == wanted:
                    return call(self.graph, aten.sym_size.int, node, dim)
        raise NotCapturable(f"no tensor of the derivative has the size {wanted}")

    def _placeholder(self, source: Source, shape: Sequence[Any], dtype: torch.dtype) -> Node:
        before = placeholders(self.graph)
        with self.graph.inserting_after(before[-1]) if before else self.graph.inserting_before(None):
            node = self.graph.placeholder(f"{source.kind}_{source.place}")
        with self.mode:
            node.meta["val"] = torch.empty(tuple(shape), dtype=dtype, device="cpu" if source.kind == "time" else self._device())
        self.sources.append(source)
        return node

    def _device(self) -> torch.device:
        last = next(node for node, source in self.joint.sources.items() if source.kind == "finished")
        device: torch.device = value(last).device
        return device

    def _closed_over(self, shape: Sequence[Any], dtype: torch.dtype) -> Node:
        node = self._placeholder(Source("tensor", len(self.values)), shape, dtype)
        self.values.append(value(node))
        return node

    def _copied(self, node: Node) -> Node:
        """A node of the joint graph, made of what is carried, known and read."""
        waiting = [node]
        while waiting:
            part = waiting[-1]
            missing = [operand for operand in part.all_input_nodes if operand not in self.copies] if part not in self.copies else []
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if part not in self.copies:
                assert part.op != "placeholder", f"{part} was not kept"
                mine = {operand: self.copies[operand] for operand in part.all_input_nodes}
                for operand in crossing(part, self.batch) if self.made.core.retires else ():
                    mine[operand] = self._quiet(operand, part in self.joint.fed)
                self.copies[part] = copied_node(self.graph, part, mine, self.joint.module, self.root, "step")
        return self.copies[node]

    def _quiet(self, node: Node, fed: bool) -> Node:
        """A value that other rows may see: zeros for rows that are finished, where it is of the next input also for those that finish."""
        if (node, fed) not in self.quiet:
            self.quiet[node, fed] = self._masked(self.copies[node], 0, fed)
        return self.quiet[node, fed]

    def _masked(self, made: Node, otherwise: Any, fed: bool = False) -> Node:
        """What a step makes, of rows that are finished something else, if they do nothing any more."""
        if not self.made.core.retires or not is_by_rows(value(made), self.batch):
            return made
        over = self.ends if fed else self.over
        for _ in range(value(made).ndim - 1):
            over = call(self.graph, aten.unsqueeze.default, over, -1)
        if otherwise == 0:
            return call(self.graph, aten.masked_fill.Scalar, made, over, 0, like=made)
        return call(self.graph, aten.where.self, over, otherwise, made, like=made)

    def _gradient(self, source: Source, gradient: Node | None) -> Node:
        """The gradient of what was carried into the step."""
        tangent = self.copies[self.tangents[Target(*source)]]
        made = call(self.graph, aten.zeros_like.default, tangent) if gradient is None else self._copied(gradient)
        return self._masked(made, tangent)

    def _sum(self, gradient: Node) -> Node:
        more = self._masked(self._copied(gradient), 0, gradient in self.joint.fed)
        return call(self.graph, aten.add.Tensor, self.sums[gradient], more, like=gradient)

    def _emit(self, node: Node) -> Node:
        made = self._masked(self._copied(node), 0, node in self.joint.fed)
        if not is_by_rows(value(node), self.batch):
            made = call(self.graph, aten.expand.default, made, [self.rows, *[self._size(size) for size in value(node).shape]], like=node)
        return made

    def _put(self, kind: str, place: int, node: Node) -> None:
        self.targets.append(Target(kind, place))
        self.returned.append(node)

    def _program(self, emitted: Sequence[Node]) -> Program:
        used = []
        for node, source in zip(placeholders(self.graph), self.sources, strict=True):
            if node.users or source.kind in self.leaves:
                used.append(source)
            else:
                self.graph.erase_node(node)
        symbols: dict[str, tuple[int, int]] = {}
        for place, made in enumerate(self.values):
            for dim, size in enumerate(made.shape):
                expr = expression(size)
                if isinstance(expr, sympy.Symbol) and expr != self.batch:
                    symbols.setdefault(str(expr), (place, dim))
        results = {target: value(node) for target, node in zip(self.targets, self.returned, strict=True)}

        def port(name: str, kind: str, count: int) -> Port:
            found = [results[Target(kind, place)] for place in range(count)]
            leaves = [Leaf(tuple(leaf.shape), leaf.dtype) for leaf in found]
            return Port(name, trees.flatten(tuple(range(count)))[1], leaves)

        return Program(
            GraphModule(self.root, self.graph), tuple(used), tuple(self.targets), (), port("next_input", "inputs", 0),
            port("next_cell_state", "state", len(self.leaves["state"])),
            port("next_loop_state", "loop_state", len(self.leaves["loop_state"])) if self.leaves["loop_state"] else None,
            port("emit_output", "emit", len(emitted)), False, lambda batch, tensors: True, self.batch, symbols, False,
        )  # fmt: skip


def _emitted(totals: Totals, inside: set[Node], backward: frozenset[Node], known: set[Node], batch: Any) -> list[Node]:
    """What the loop emits, so that the sums can be made behind it: the operands of products, and of what is made of all rows, if the
    loop itself does not need those."""
    late: dict[Node, bool] = {}

    def is_late(node: Node) -> bool:
        if node not in late:
            late[node] = (
                node in backward
                and node not in inside
                and node.op != "placeholder"
                and (node.target in PRODUCTS or bool(crossing(node, batch)) or any(map(is_late, node.all_input_nodes)))
            )
        return late[node]

    found: dict[Node, None] = {}
    seen: set[Node] = set()
    waiting = sorted(totals.operands, key=lambda node: node.name)
    while waiting:
        node = waiting.pop()
        if node in seen or node not in backward or node in known:
            continue
        seen.add(node)
        if is_late(node):
            waiting += node.all_input_nodes
        else:
            found[node] = None
    return list(found)
