"""What a loop needs before its first step. In: the closed-over tensors; out: tensors made of them, kept until one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import Graph, Node

from ..capture.program import Source

Version = tuple[Any, ...]


def version(tensor: torch.Tensor) -> Version | None:
    """Equal while a tensor has not changed; None where it cannot tell."""
    return None if tensor.is_inference() else (tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride())


class Prologue:
    """The part of a graph that is the same at every step.

    Args:
        module: holds the graph's constants.
        sources: of its placeholders, in order.
    """

    def __init__(self, module: torch.fx.GraphModule, sources: Sequence[Source]) -> None:
        self.module = module
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        self.source_of = dict(zip(placeholders, sources, strict=True))
        self._needs = self._tensors_needed(module.graph)
        self._kept: dict[tuple[Node, bool], tuple[tuple[Version, ...], torch.Tensor]] = {}

    def _tensors_needed(self, graph: Graph) -> dict[Node, tuple[int, ...] | None]:
        """For each node the closed-over tensors that it is made of; None where it is made of something else too."""
        found: dict[Node, tuple[int, ...] | None] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                source = self.source_of[node]
                found[node] = (source.place,) if source.kind == "tensor" else None
            else:
                parts = [found[operand] for operand in node.all_input_nodes]
                found[node] = None if None in parts else tuple(sorted({place for part in parts for place in part or ()}))
        return found

    def bound(
        self,
        node: Node,
        tensors: Sequence[torch.Tensor],
        given: Mapping[Source, torch.Tensor],
        then: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The tensor of a node, with ``then`` applied.

        Args:
            tensors: the closed-over ones.
            given: those of all other sources.
        """
        needs = self._needs[node]
        if needs is None:
            made = self._computed(node, tensors, given, {})
            return made if then is None else then(made)
        versions = tuple(version(tensors[place]) for place in needs)
        key = (node, then is not None)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == versions and None not in versions:
            return kept[1]
        made = self._computed(node, tensors, given, {})
        made = made if then is None else then(made)
        self._kept[key] = (versions, made)  # type: ignore[assignment]
        return made

    def _computed(self, node: Node, tensors: Sequence[torch.Tensor], given: Mapping[Source, torch.Tensor], memo: dict[Node, Any]) -> Any:
        if node in memo:
            return memo[node]
        if node.op == "placeholder":
            source = self.source_of[node]
            made: Any = tensors[source.place].detach() if source.kind == "tensor" else given[source]
        elif node.op == "get_attr":
            made = getattr(self.module, str(node.target))
        else:

            def operand(part: Node) -> Any:
                stays = self._needs[part] is not None and self._needs[node] is None and part.op == "call_function"
                if stays and isinstance(part.meta.get("val"), torch.Tensor):  # the part that outlives the call
                    return self.bound(part, tensors, given)
                return self._computed(part, tensors, given, memo)

            args, kwargs = pytree.tree_map_only(Node, operand, (node.args, node.kwargs))
            made = node.target(*args, **kwargs)  # type: ignore[operator]
        memo[node] = made
        return made
