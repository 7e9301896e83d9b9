"""Layers of a stack along the diagonal. In: a step in which vectors wait for one another; out: one in which they do not.

Layer l of a stack needs what layer l - 1 makes in the same step: a barrier for each layer. Where nothing is fed back from an upper layer
to a lower one, layer l may be a step later: an iteration then computes step k of the first layer, step k - 1 of the second, and so on, each
from what the iteration before left; a loop of T steps takes T + L - 1 of them. This is retiming (Leiserson and Saxe, Retiming Synchronous
Circuitry, 1991) with the vectors that products read as the edges that get a register.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..capture import ops
from ..capture.program import INVARIANT, Program, Source, Target
from .graph import TRANSPARENT, aten, call, fake_mode, made_of, outputs, placeholders, value
from .locality import shape

_MOST_LAG = 16  # steps; a row's flag is kept for each
_STORED = ("emit", "stored")


@dataclass(frozen=True)
class Wavefront:
    """How far a step is spread.

    Attributes:
        lag: how many steps the last layer is behind the first: the loop takes as many iterations more.
        emits: of each stored output how many iterations it comes late.
        delayed: of each carried leaf that is a value of the iteration before, by its place: sizes (expressions) and dtype; zeros at first.
    """

    lag: int
    emits: Mapping[Target, int]
    delayed: tuple[tuple[list[Any], torch.dtype], ...] = ()


def wavefront(program: Program, module: GraphModule) -> tuple[Program, GraphModule, Wavefront] | None:
    """The step with its layers along the diagonal; None where it has no layers, or where one is fed back to a lower one.

    The new program carries more: "over" (``[B]`` bool: place j: the row had ended j iterations ago; of iterations before the first true,
    which keeps the leaves of a layer that has not begun), "ended" (``[B]`` bool: loop_fn said so) and "delayed" (values of the iteration
    before). It takes "last" (0-d int32): the number of the loop's steps at most. A row is finished when its last layer is.
    """
    found = _lags(program, module.graph)
    if found is None or not any(found.values()):
        return None
    with suppress(_Stays):
        return _Writer(program, module, found).written()
    return None


class _Stays(Exception):
    """The step has to stay as it is."""


def _lags(program: Program, graph: Graph) -> dict[Node, int] | None:
    """Of each node that is not known before the loop how many iterations later its step is; None where the step has to stay together."""
    free = made_of(graph, program.sources, (*INVARIANT, "time"))
    carried = _carried(program, graph)
    nodes = [node for node in graph.nodes if node in carried or _is_made(node, free)]
    if any(node.target in ops.MAY_FAIL for node in nodes) or not all(shape(node) for node in carried):
        return None
    flags = [node for node, source in zip(placeholders(graph), program.sources, strict=True) if source.kind == "finished"]
    if any(_is_made(user, free) for node in flags for user in node.users):
        return None
    edges = {node: [(operand, _is_exchanged(node, operand, carried)) for operand in node.all_input_nodes] for node in nodes}
    for leaf, after in carried.items():
        edges[leaf] = [(after, False)] if isinstance(after, Node) else []
    edges = {node: [(operand, late) for operand, late in some if operand in edges] for node, some in edges.items()}
    is_fed_back = _is_fed_back(edges)
    lags = dict.fromkeys(nodes, 0)
    for _ in range(_MOST_LAG * len(nodes)):
        changed = False
        for node in nodes:
            lag = max([lags[operand] + (late and not is_fed_back(node, operand)) for operand, late in edges[node]], default=0)
            if lag > lags[node]:
                lags[node], changed = lag, True
        if not changed:
            break
    ends = dict(zip(program.targets, outputs(graph), strict=True))
    must_lead = [node for target, node in ends.items() if target.kind in ("finished", "past")]
    others = any(target.kind not in ("finished", "past", "state", "inputs", *_STORED) for target in ends)
    if others or max(lags.values(), default=0) > _MOST_LAG or any(lags.get(node, 0) for node in must_lead):
        return None
    return lags


def _carried(program: Program, graph: Graph) -> dict[Node, Any]:
    """Of each carried leaf its next value."""
    after = dict(zip(program.targets, outputs(graph), strict=True))
    pairs = zip(placeholders(graph), program.sources, strict=True)
    return {
        node: after.get(Target(*source), node) for node, source in pairs if source.kind not in (*INVARIANT, "time", "finished")
    }  # fmt: skip


def _is_made(node: Node, free: set[Node]) -> bool:
    return node.op == "call_function" and node not in free and isinstance(node.meta.get("val"), torch.Tensor)


def _is_exchanged(node: Node, operand: Node, carried: Mapping[Node, Any]) -> bool:
    """Whether a product needs the whole of a vector that this step makes."""
    if node.target is not aten.mm.default or node.args[0] is not operand:
        return False
    while operand.target in TRANSPARENT:
        operand = operand.args[0]  # type: ignore[assignment]
    return operand not in carried


def _is_fed_back(edges: Mapping[Node, list[tuple[Node, bool]]]) -> Callable[[Node, Node], bool]:
    """Whether an operand of a node is made of that node, over the steps before."""
    bit = {node: 1 << place for place, node in enumerate(edges)}
    origins = dict.fromkeys(edges, 0)
    changed = True
    while changed:
        changed = False
        for node, some in edges.items():
            found = origins[node]
            for operand, _ in some:
                found |= bit[operand] | origins[operand]
            if found != origins[node]:
                origins[node], changed = found, True
    return lambda node, operand: bool(origins[operand] & bit[node])


@dataclass
class _Registers:
    """What the new step carries more: the sources with the nodes of their next values."""

    sources: list[Source] = field(default_factory=list)
    after: list[Node] = field(default_factory=list)
    delayed: list[tuple[list[Any], torch.dtype]] = field(default_factory=list)


class _Writer:
    def __init__(self, program: Program, module: GraphModule, lags: dict[Node, int]) -> None:
        self.program, self.module, self.old, self.lags = program, module, module.graph, lags
        self.lag = max(lags.values())
        self.carried = _carried(program, self.old)
        self.free = made_of(self.old, program.sources, (*INVARIANT, "time"))
        self.leaf_of = {after: leaf for leaf, after in self.carried.items() if isinstance(after, Node)}
        self.graph = Graph()
        self.taken: dict[Node, Node] = {}  # old placeholders and constants by new ones
        self.at: dict[tuple[Node, int], Node] = {}
        self.registers = _Registers()

    def written(self) -> tuple[Program, GraphModule, Wavefront]:
        program, graph = self.program, self.graph
        sources = dict(zip(placeholders(self.old), program.sources, strict=True))
        for node in self.old.nodes:
            if node.op in ("placeholder", "get_attr"):
                self.taken[node] = graph.node_copy(node)
        self.clock = next((self.taken[node] for node, source in sources.items() if source.kind == "time"), None) or self._number("time")
        self.last = self._number("last")
        pairs = list(zip(program.targets, outputs(self.old), strict=True))
        ends = next(node for target, node in pairs if target.kind == "finished")
        self.over = [self._flag(f"over_{place}", ends) for place in range(self.lag + 1)]
        self.ended = self._flag("ended", ends)
        made: list[Any] = []
        emits: dict[Target, int] = {}
        for target, node in pairs:
            if target.kind == "finished":
                late = call(graph, aten.ge.Scalar, self.clock, self.lag)
                made.append(call(graph, aten.bitwise_and.Tensor, self.over[self.lag - 1], late))
            elif target.kind == "past":
                made.append(self._and_not(self._of(node, 0), self.over[0]))
            elif target.kind in _STORED:
                emits[target] = self.lags.get(node, 0)
                new = self._of(node, emits[target])
                nothing = call(graph, aten.zeros_like.default, new)
                made.append(self._where(self.over[emits[target]], nothing, new))
            else:
                leaf = next(leaf for leaf, source in sources.items() if source == Source(*target))
                made.append(self._kept(leaf, self.lags[leaf]))
        finished = self._of(ends, 0)
        last = call(graph, aten.ge.Tensor, self.clock, self.last)
        over = call(graph, aten.bitwise_or.Tensor, self.over[0], call(graph, aten.bitwise_or.Tensor, finished, last))
        flags = [over, *self.over[:-1]]
        ended = call(graph, aten.bitwise_or.Tensor, self.ended, self._and_not(finished, self.over[0]))
        made += [*flags, ended, *self.registers.after]
        graph.output(tuple(made))
        new_sources = [Source("last"), *[Source("over", place) for place in range(self.lag + 1)], Source("ended"), *self.registers.sources]
        if len(placeholders(graph)) > len(program.sources) + len(new_sources):
            new_sources = [Source("time"), *new_sources]
        targets = [*program.targets, *[Target("over", place) for place in range(self.lag + 1)], Target("ended")]
        targets += [Target(*source) for source in self.registers.sources]
        graph.eliminate_dead_code()
        spread = replace(program, sources=(*program.sources, *new_sources), targets=tuple(targets), plans={})
        return spread, GraphModule(self.module, graph), Wavefront(self.lag, emits, tuple(self.registers.delayed))

    # What goes in.

    def _placeholder(self, name: str, made: torch.Tensor) -> Node:
        """A new one, behind those that are there."""
        given = placeholders(self.graph)
        with self.graph.inserting_after(given[-1]):
            node = self.graph.placeholder(name)
        node.meta["val"] = made
        return node

    def _number(self, name: str) -> Node:
        with fake_mode(self.old):
            return self._placeholder(name, torch.empty((), dtype=torch.int32))

    def _flag(self, name: str, like: Node) -> Node:
        with fake_mode(self.old):
            return self._placeholder(name, torch.empty_like(value(like)))

    def _register(self, like: Node) -> Node:
        """A leaf that is the value of a node in the iteration before."""
        registers, made = self.registers, value(like)
        if not made.ndim or shape(like)[0] != self.program.batch:
            raise _Stays
        source = Source("delayed", len(registers.sources))
        with fake_mode(self.old):
            node = self._placeholder(f"delayed_{source.place}", torch.empty_like(made))
        registers.sources.append(source)
        registers.after.append(like)
        registers.delayed.append((shape(like), made.dtype))
        return node

    # What is made.

    def _of(self, node: Any, lag: int) -> Any:
        """The value of a node for the step that the layers of a lag are at."""
        if not isinstance(node, Node):
            return node
        key = (node, lag if node in self.lags or node in self.free else 0)
        if key not in self.at:
            self.at[key] = self._made(node, lag)
        return self.at[key]

    def _made(self, node: Node, lag: int) -> Node:
        if node.op == "placeholder" and node in self.taken and self.taken[node] is self.clock:
            return self._time(lag)
        if node in self.lags and self.lags[node] < lag:
            return self._earlier(node, lag)
        if node.op in ("placeholder", "get_attr"):
            return self.taken[node]
        return self._copy(node, lag)

    def _copy(self, node: Node, lag: int) -> Node:
        for operand in node.all_input_nodes:
            self._of(operand, lag)
        return self.graph.node_copy(node, lambda operand: self._of(operand, lag))

    def _earlier(self, node: Node, lag: int) -> Node:
        """A value of an earlier iteration.

        Of a leaf's next value that is the leaf, which stands where its row ends; of any other a register for each iteration.
        """
        if node.target in TRANSPARENT:
            return self._copy(node, lag)
        leaf = self.leaf_of.get(node)
        if leaf is not None and self.lags[leaf] == lag - 1:
            return self.taken[leaf]
        return self._register(self._of(node, lag - 1))

    def _time(self, lag: int) -> Node:
        if not lag:
            return self.clock
        return call(self.graph, aten.clamp_min.default, call(self.graph, aten.sub.Tensor, self.clock, lag), 1)

    def _kept(self, leaf: Node, lag: int) -> Node:
        """A leaf's next value; where the row has ended, or not begun, the leaf."""
        after = self.carried[leaf]
        return self.taken[leaf] if after is leaf else self._where(self.over[lag], self.taken[leaf], self._of(after, lag))

    def _where(self, rows: Node, one: Node, other: Node) -> Node:
        """One for these rows and the other for the rest; the batch is their first dimension."""
        for _ in range(value(other).ndim - 1):
            rows = call(self.graph, aten.unsqueeze.default, rows, -1)
        return call(self.graph, aten.where.self, rows, one, other)

    def _and_not(self, some: Node, not_those: Node) -> Node:
        return call(self.graph, aten.bitwise_and.Tensor, some, call(self.graph, aten.bitwise_not.default, not_those))
