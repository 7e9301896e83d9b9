"""What a loop needs before its first step. In: the closed-over tensors; out: tensors made of them, kept until one of them changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.multiprocessing.reductions import StorageWeakRef

from ..capture.program import Source

Version = tuple[Any, ...]
Made = Callable[[torch.Tensor], torch.Tensor]


def version(tensor: torch.Tensor) -> Version | None:
    """Equal while a tensor has not changed; None where it cannot tell."""
    return None if tensor.is_inference() else (tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride())


class _Kept:
    """What was made of some tensors, good while their memory lives and has not changed: freed memory may become another tensor's."""

    def __init__(self, tensors: Sequence[torch.Tensor], made: list[torch.Tensor]) -> None:
        self._versions = [version(tensor) for tensor in tensors]
        self._memory = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]  # type: ignore[no-untyped-call]
        self.made = made

    def holds(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors, unchanged."""
        versions = [version(tensor) for tensor in tensors]
        return versions == self._versions and None not in versions and not self.expired()

    def expired(self) -> bool:
        return any(memory.expired() for memory in self._memory)  # type: ignore[no-untyped-call]


@dataclass
class _Part:
    """Nodes that are computed together.

    Attributes:
        inputs: what the function takes: closed-over tensors (by place), other sources and nodes that are kept.
        function: makes the nodes' tensors.
        needs: the closed-over tensors that they are made of; None where they are made of something else too.
        kept: versions of those, their memory, and what was made then.
    """

    nodes: list[Node]
    inputs: list[Source | Node]
    function: Callable[..., Sequence[torch.Tensor]]
    needs: tuple[int, ...] | None
    kept: _Kept | None = None


class Prologue:
    """The part of a graph that is the same at every step.

    Args:
        module: holds the graph's constants.
        sources: of its placeholders, in order.
        entries: the nodes that the loop reads, with the names under which it does.
        packed: those that it reads in another form, which ``pack`` makes.
    """

    def __init__(
        self, module: GraphModule, sources: Sequence[Source], entries: Mapping[Node, str], packed: Mapping[Node, str], pack: Made
    ) -> None:
        self._module, self._pack = module, pack
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        self._source_of = dict(zip(placeholders, sources, strict=True))
        self._needs = self._tensors_needed(module.graph)
        self._names: dict[Node, list[tuple[str, bool]]] = {}
        for wanted, is_packed in ((entries, False), (packed, True)):
            for node, name in wanted.items():
                self._names.setdefault(node, []).append((name, is_packed))
        # A closed-over tensor that is read as it is has nothing to be computed.
        self.direct = [
            (name, self._source_of[node].place)
            for node, name in entries.items()
            if node in self._source_of and self._source_of[node].kind == "tensor"
        ]
        direct = {name for name, _ in self.direct}
        self._names = {node: kept for node, names in self._names.items() if (kept := [entry for entry in names if entry[0] not in direct])}
        varying = [node for node in self._names if self._needs[node] is None]
        stays = self._kept_inputs(varying)
        by_needs: dict[tuple[int, ...], list[Node]] = {}
        for node in dict.fromkeys([*self._names, *stays]):
            needs = self._needs[node]
            if needs is not None:
                by_needs.setdefault(needs, []).append(node)
        self._fixed = [self._part(nodes, needs, set()) for needs, nodes in by_needs.items()]
        self._varying = self._part(varying, None, set(stays)) if varying else None
        for other in tuple(_prologues):
            other.forget()
        _prologues.add(self)

    def forget(self) -> None:
        """Drop what was made of tensors that are gone."""
        for part in self._fixed:
            if part.kept is not None and part.kept.expired():
                part.kept = None

    def tensors(self, tensors: Sequence[torch.Tensor], given: Mapping[Source, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        """The tensors by their names in the loop, those of `direct` aside.

        Args:
            tensors: the closed-over ones.
            given: those of all other sources.
        """
        found: list[tuple[str, torch.Tensor]] = []
        known: dict[Node, torch.Tensor] = {}
        for part in self._fixed:
            assert part.needs is not None
            needed = [tensors[place] for place in part.needs]
            kept = part.kept  # another thread may replace it
            if kept is None or not kept.holds(needed):
                kept = part.kept = _Kept(needed, self._made(part, tensors, given, {}))
            self._name(part, kept.made, found, known)
        if self._varying is not None:
            self._name(self._varying, self._made(self._varying, tensors, given, known), found, known)
        return found

    def _made(
        self, part: _Part, tensors: Sequence[torch.Tensor], given: Mapping[Source, torch.Tensor], known: Mapping[Node, torch.Tensor]
    ) -> list[torch.Tensor]:
        """What the part's names stand for, and behind that the tensors of its nodes."""
        inputs = [
            known[source] if isinstance(source, Node) else tensors[source.place].detach() if source.kind == "tensor" else given[source]
            for source in part.inputs
        ]
        made = list(part.function(*inputs))
        named = [
            self._pack(tensor) if is_packed else tensor.detach().contiguous()
            for node, tensor in zip(part.nodes, made, strict=True)
            for _, is_packed in self._names.get(node, ())
        ]
        return [*named, *made]

    def _name(self, part: _Part, made: list[torch.Tensor], found: list[tuple[str, torch.Tensor]], known: dict[Node, torch.Tensor]) -> None:
        names = [name for node in part.nodes for name, _ in self._names.get(node, ())]
        found += zip(names, made, strict=False)
        if part is not self._varying:
            known.update(zip(part.nodes, made[len(names) :], strict=True))

    def _tensors_needed(self, graph: Graph) -> dict[Node, tuple[int, ...] | None]:
        """For each node the closed-over tensors that it is made of; None where it is made of something else too."""
        found: dict[Node, tuple[int, ...] | None] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                source = self._source_of[node]
                found[node] = (source.place,) if source.kind == "tensor" else None
            else:
                parts = [found[operand] for operand in node.all_input_nodes]
                found[node] = None if None in parts else tuple(sorted({place for part in parts for place in part or ()}))
        return found

    def _kept_inputs(self, varying: Sequence[Node]) -> list[Node]:
        """The nodes made of closed-over tensors alone that the varying ones are made of: they outlive the call."""
        found: dict[Node, None] = {}
        for node in _ancestors(varying, lambda node: self._needs[node] is not None):
            for operand in node.all_input_nodes:
                if self._needs[operand] is not None and operand.op == "call_function" and isinstance(operand.meta.get("val"), torch.Tensor):
                    found[operand] = None
        return list(found)

    def _part(self, nodes: list[Node], needs: tuple[int, ...] | None, stays: set[Node]) -> _Part:
        """The nodes as a function of sources and of nodes that stay."""
        graph, inputs, copies = Graph(), [], {}
        wanted = _ancestors(nodes, stays.__contains__)
        for node in self._module.graph.nodes:
            if node in wanted and (node in stays or node.op == "placeholder"):
                inputs.append(node if node in stays else self._source_of[node])
                copies[node] = graph.placeholder(f"i{len(inputs)}")
        for node in self._module.graph.nodes:
            if node in wanted and node not in copies:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in nodes))
        return _Part(nodes, inputs, GraphModule(self._module, graph).forward, needs)


_prologues: weakref.WeakSet[Prologue] = weakref.WeakSet()


def _ancestors(nodes: Sequence[Node], ends: Callable[[Node], bool]) -> set[Node]:
    """The nodes and what they are made of, as far back as where it ends."""
    found: set[Node] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            if not ends(node):
                todo += node.all_input_nodes
    return found
