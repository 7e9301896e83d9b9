"""Values of a step at all steps at once, behind a backward loop. In: what a loop kept and emitted; out: tensors ``[T, B, ...]``, the last
step first, as that loop makes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from .. import rows
from ..capture import ops
from ..optimise.graph import aten, value
from ..optimise.vectorised import VECTORISED
from .forward import crossing, is_by_rows
from .joint import Joint

_OWN = {ops.read, aten.mm.default, aten.bmm.default}  # what they make is no view
_EVERY, _FIRST = slice(None), slice(-1, None)  # steps, the last one first


def _zeroed(x: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
    return rows.zeroed(x, finished)


def is_size(node: Node) -> bool:
    """Whether a node is a size of another one."""
    return node.target is torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class _Function:
    """What makes a value of one step.

    Attributes:
        steps: the nodes that it takes of each step.
        constants: those that it takes, the same at every step.
        loops: it has to be called for each step by itself.
    """

    call: Callable[..., torch.Tensor]
    steps: tuple[Node, ...]
    constants: tuple[Node, ...]
    loops: bool


class Functions:
    """What makes values of a step, kept from call to call.

    Args:
        joint: the step.
        zero: the nodes that are zero where a row has ended.
        batch: the batch size as an expression.
        retires: what a row would do after its end is nothing.
    """

    def __init__(self, joint: Joint, zero: Collection[Node], batch: Any, retires: bool) -> None:
        self.joint, self.zero, self.batch, self.retires = joint, frozenset(zero), batch, retires
        self._finished = next(node for node, source in joint.sources.items() if source.kind == "finished")
        self._known: dict[tuple[Node, frozenset[Node]], _Function] = {}

    def of(self, node: Node, given: Collection[Node]) -> _Function:
        """The function of a node, where all steps of some others are given."""
        key = node, frozenset(given)
        if key not in self._known:
            self._known[key] = self._made(node, given)
        return self._known[key]

    def by_first(self, node: Node) -> tuple[Node, Node] | None:
        """What a node is at the first step and at all others, where the latter is made in memory of its own; None of any other node."""
        args: Any = node.args
        if node.target is not aten.where.self or args[0].target is not aten.eq.Scalar or args[0].args[1] != 1:
            return None
        source = self.joint.sources.get(args[0].args[0])
        _, first, others = args
        is_own = others.target in _OWN and value(others).dtype == value(node).dtype and value(others).shape == value(node).shape
        return (first, others) if is_own and source is not None and source.kind == "time" else None

    def _made(self, node: Node, given: Collection[Node]) -> _Function:
        joint, needed, waiting = self.joint, set[Node](), [node]
        while waiting:
            part = waiting.pop()
            if part not in needed:
                needed.add(part)
                if part not in given and part not in joint.known:
                    waiting += part.all_input_nodes
                    waiting += [self._finished] if self.retires and crossing(part, self.batch) else []
        steps = tuple(part for part in joint.graph.nodes if part in needed and part in given)
        constants = tuple(part for part in joint.graph.nodes if part in needed and part not in given and part in joint.known)
        graph, loops = Graph(), False
        copies = {part: graph.placeholder(part.name) for part in (*steps, *constants)}
        for part in joint.graph.nodes:
            if part in needed and part not in copies:
                mine = {operand: copies[operand] for operand in part.all_input_nodes}
                for operand in crossing(part, self.batch) if self.retires else ():
                    mine[operand] = graph.call_function(_zeroed, (copies[operand], copies[self._finished]))
                copies[part] = graph.node_copy(part, mine.__getitem__)
                if part.target in VECTORISED:
                    copies[part].target = VECTORISED[part.target]
                elif part.target in ops.PYTHON:
                    copies[part].target, loops = ops.PYTHON[part.target], loops or part.target is ops.draw
        graph.output(copies[node])
        return _Function(GraphModule(joint.module, graph).forward, steps, constants, loops)


class AllSteps:
    """The steps of one call.

    Args:
        functions: of the step.
        given: of some nodes all steps ``[T, ...]``, the last step first.
        onwards: of others, the first step first: they are turned round where they are read.
        sums: of some nodes the sum of all steps.
        known: the values that are known before the loop.
        lengths: ``[B]`` int32: the steps of each row.
        steps: T.
    """

    def __init__(
        self, functions: Functions, given: Mapping[Node, torch.Tensor], onwards: Mapping[Node, torch.Tensor],
        sums: Mapping[Node, torch.Tensor], known: Sequence[torch.Tensor], lengths: torch.Tensor, steps: int,
    ) -> None:  # fmt: skip
        joint = functions.joint
        self._functions, self._sums = functions, sums
        self._known = dict(zip(joint.known, known, strict=True))
        self._all, self._onwards = dict(given), onwards
        self._rows: dict[tuple[Node, bool], torch.Tensor] = {}
        self._times = torch.arange(steps, 0, -1, dtype=torch.int32, device=lengths.device)
        self._over = self._times.unsqueeze(1) > lengths
        self._ends = self._times.unsqueeze(1) >= lengths  # of next inputs the last step of a row makes none that is used
        self._some_over = lengths.device.type != "cpu" or bool((lengths < steps).any())
        for node, source in joint.sources.items():
            if source.kind == "time":
                self._all[node] = self._times
            elif source.kind == "finished":
                self._all[node] = self._over
        self._given = frozenset(self._all) | frozenset(onwards)

    def constant(self, part: Any) -> Any:
        """What is the same at every step."""
        if isinstance(part, Node):
            return self._known[part.args[0]].shape[part.args[1]] if is_size(part) else self._known[part]  # type: ignore[index]
        return [self.constant(inner) for inner in part] if isinstance(part, (list, tuple)) else part

    def sum(self, node: Node) -> torch.Tensor:
        """What the loop has added up."""
        return self._sums[node]

    def all(self, node: Node) -> torch.Tensor:
        """``[T, ...]``."""
        if node not in self._all:
            self._all[node] = self._onwards[node].flip(0) if node in self._onwards else self._made(node, _EVERY)
        return self._all[node]

    def at_first(self, node: Node) -> torch.Tensor:
        """At the first step."""
        return self._masked(node, self._part(node, _FIRST) if node in self._given else self._made(node, _FIRST), False, _FIRST)[0]

    def masked(self, node: Node, fed: bool = False) -> torch.Tensor:
        """``[T, B, ...]``, zero where a row has ended, for a gradient of next inputs (``fed``) where it ends too."""
        if (node, fed) not in self._rows:
            self._rows[node, fed] = self._masked(node, self.all(node), fed, _EVERY)
        return self._rows[node, fed]

    def rows(self, node: Node, fed: bool = False) -> torch.Tensor:
        """``[T * B, ...]``, as `masked`."""
        return self.masked(node, fed).flatten(0, 1)

    def _part(self, node: Node, which: slice) -> torch.Tensor:
        """Some steps of what is given."""
        if which is _FIRST and node in self._onwards:
            return self._onwards[node][:1]
        return self.all(node)[which]

    def _masked(self, node: Node, made: torch.Tensor, fed: bool, which: slice) -> torch.Tensor:
        functions = self._functions
        if not functions.retires or not is_by_rows(value(node), functions.batch) or not (made.is_floating_point() or made.is_complex()):
            return made
        if not fed and (not self._some_over or node in functions.zero):
            return made
        return made.masked_fill((self._ends if fed else self._over)[which].view(*made.shape[:2], *[1] * (made.ndim - 2)), 0)

    def _made(self, node: Node, which: slice) -> torch.Tensor:
        if node in self._known:
            return self._known[node].expand(len(self._times[which]), *self._known[node].shape)
        choice = self._functions.by_first(node) if which is _EVERY else None
        if choice is not None and choice[1] not in self._given:
            made = self._made(choice[1], which)
            made[-1] = self._made(choice[0], _FIRST)[0]
            return made
        function = self._functions.of(node, self._given)
        steps = [self._part(part, which) for part in function.steps]
        constants = [self._known[part] for part in function.constants]
        if not steps:
            made = function.call(*constants)
            return made.expand(len(self._times[which]), *made.shape)
        if function.loops:  # draws know their time as a number
            return torch.stack([function.call(*parts, *constants) for parts in zip(*steps, strict=True)])
        return torch.vmap(function.call, in_dims=(*[0] * len(steps), *[None] * len(constants)))(*steps, *constants)
