"""Values of a step at all steps at once, behind a loop. In: what a loop kept and emitted; out: tensors ``[T, B, ...]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..capture import ops
from .joint import Joint


def read(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """``x.select(dim, index)``, past the end the last element, without looking at the index."""
    size = x.shape[dim]
    index = torch.where(index < 0, index + size, index).clamp(0, size - 1)
    return torch.index_select(x, dim, index.reshape(1).to(torch.int64)).squeeze(dim)


def is_size(node: Node) -> bool:
    """Whether a node is a size of another one."""
    return node.target is torch.ops.aten.sym_size.int


class AllSteps:
    """The steps of one call.

    Args:
        joint: the step.
        given: of some nodes all steps ``[T, ...]``, the first step first.
        sums: of some nodes the sum of all steps.
        known: the values that are known before the loop.
        lengths: ``[B]`` int32: the steps of each row.
        retires: what a row would do after its end is nothing: it is zero here.
        steps: T.
    """

    def __init__(
        self, joint: Joint, given: Mapping[Node, torch.Tensor], sums: Mapping[Node, torch.Tensor], known: Sequence[torch.Tensor],
        lengths: torch.Tensor, retires: bool, steps: int,
    ) -> None:  # fmt: skip
        self._joint, self._retires, self._steps = joint, retires, steps
        self._known = dict(zip(joint.known, known, strict=True))
        self._all, self._sums = dict(given), sums
        self._times = torch.arange(1, steps + 1, dtype=torch.int32)
        self._over = torch.arange(steps, dtype=torch.int32, device=lengths.device).unsqueeze(1) >= lengths
        self._some_over = lengths.device.type != "cpu" or bool((lengths < steps).any())
        for node, source in joint.sources.items():
            if source.kind == "time":
                self._all[node] = self._times
            elif source.kind == "finished":
                self._all[node] = self._over

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
            self._all[node] = self._made(node, slice(None))
        return self._all[node]

    def at_first(self, node: Node) -> torch.Tensor:
        """At the first step."""
        if node in self._all:
            return self._masked(self._all[node][:1])[0]
        return self._masked(self._made(node, slice(1)))[0]

    def masked(self, node: Node) -> torch.Tensor:
        """``[T, B, ...]``, zero where a row has ended."""
        return self._masked(self.all(node))

    def rows(self, node: Node) -> torch.Tensor:
        """``[T * B, ...]``, zero where a row has ended."""
        return self.masked(node).flatten(0, 1)

    def _masked(self, made: torch.Tensor) -> torch.Tensor:
        if not self._retires or not self._some_over or not (made.is_floating_point() or made.is_complex()):
            return made
        return made.masked_fill(self._over[: len(made)].view(*made.shape[:2], *[1] * (made.ndim - 2)), 0)

    def _made(self, node: Node, which: slice) -> torch.Tensor:
        graph, leaves = Graph(), list[Node]()
        copies: dict[Node, Node] = {}
        needed, waiting = set[Node](), [node]
        while waiting:
            part = waiting.pop()
            if part not in needed:
                needed.add(part)
                if part not in self._all:
                    waiting += part.all_input_nodes
        steps: list[torch.Tensor] = []
        constants: list[torch.Tensor] = []
        for part in self._joint.graph.nodes:
            if part in needed and part in self._all:
                copies[part] = graph.placeholder(part.name)
                steps.append(self._all[part][which])
        for part in self._joint.graph.nodes:
            if part in needed and part not in copies and part in self._known:
                copies[part] = graph.placeholder(part.name)
                constants.append(self._known[part])
        loops = not steps
        for part in self._joint.graph.nodes:
            if part in needed and part not in copies:
                copies[part] = graph.node_copy(part, copies.__getitem__)
                if part.target is ops.read:
                    copies[part].target = read
                elif part.target in ops.PYTHON:
                    copies[part].target, loops = ops.PYTHON[part.target], loops or part.target is ops.draw
        graph.output(copies[node])
        function = GraphModule(self._joint.module, graph).forward
        if not steps:
            made: torch.Tensor = function(*constants)
            return made.expand(len(self._times[which]), *made.shape)
        if loops:  # draws know their time as a number
            return torch.stack([function(*parts, *constants) for parts in zip(*steps, strict=True)])
        made = torch.vmap(function, in_dims=(*[0] * len(steps), *[None] * len(constants)))(*steps, *constants)
        return made
