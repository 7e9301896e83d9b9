"""What a loop needs before its first step. In: the closed-over tensors; out: tensors made of them, kept until one of them changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.multiprocessing.reductions import StorageWeakRef

from ..capture import ops
from ..capture.program import Source

_is_gone: Any = torch.UntypedStorage._expired  # of the memory that a StorageWeakRef keeps the address of
Version = tuple[Any, ...]
Made = Callable[[torch.Tensor], torch.Tensor]


def version(tensor: torch.Tensor) -> Version | None:
    """Equal while a tensor has not changed; None where it cannot tell."""
    return None if tensor.is_inference() else (tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride())


class _Kept:
    """What was made of some tensors, good while their memory lives and has not changed: freed memory may become another tensor's."""

    def __init__(self, tensors: Sequence[torch.Tensor], made: list[torch.Tensor]) -> None:
        self._memory = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]  # type: ignore[no-untyped-call]
        self._of = [(version(tensor), memory.cdata) for tensor, memory in zip(tensors, self._memory, strict=True)]
        self.made = made

    def holds(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Whether these are the same tensors, unchanged."""
        for tensor, (before, memory) in zip(tensors, self._of, strict=True):
            if before is None or version(tensor) != before or _is_gone(memory):
                return False
        return True

    def expired(self) -> bool:
        return any(_is_gone(memory) for _, memory in self._of)


@dataclass
class _Part:
    """Nodes that are computed together.

    Attributes:
        entries: of the loop that the nodes fill, in their order; what is made begins with those.
        inputs: what the function takes: closed-over tensors (by place), other sources and nodes that are kept.
        function: makes the nodes' tensors.
        needs: the closed-over tensors that they are made of; None where they are made of something else too.
        kept: versions of those, their memory, and what was made then.
    """

    nodes: list[Node]
    entries: list[int]
    inputs: list[Source | Node]
    function: Callable[..., Sequence[torch.Tensor]]
    needs: tuple[int, ...] | None
    kept: _Kept | None = None


@dataclass
class _Fixed:
    """What was made of the closed-over tensors alone, in the last call.

    Attributes:
        kept: nothing, while that holds: only the tensors' versions.
        entries: the tensors by their entries.
        known: the tensors by their nodes.
    """

    kept: _Kept
    entries: list[tuple[int, torch.Tensor]]
    known: dict[Node, torch.Tensor]


@dataclass
class _Varying:
    """What every call makes anew.

    Attributes:
        part: those nodes that have to be computed; None where there are none.
        given: entries that are a source other than a closed-over tensor as it is.
        tables: entries that are a table alone, as the first step's tokens are rows of it too, and the node that it is.
    """

    part: _Part | None
    given: list[tuple[int, Source]]
    tables: list[tuple[int, Node]]


class Prologue:
    """The part of a graph that is the same at every step.

    Args:
        module: holds the graph's constants.
        sources: of its placeholders, in order.
        entries: the nodes that the loop reads, with the places of their addresses in what it is called with.
        packed: those that it reads in another form, which ``pack`` makes.

    Attributes:
        direct: (entry, place) of each closed-over tensor that is read as it is.
    """

    def __init__(
        self, module: GraphModule, sources: Sequence[Source], entries: Mapping[Node, int], packed: Mapping[Node, int], pack: Made
    ) -> None:
        self._module, self._pack = module, pack
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        self._source_of = dict(zip(placeholders, sources, strict=True))
        self._needs = self._tensors_needed(module.graph)
        self._entries: dict[Node, list[tuple[int, bool]]] = {}
        for wanted, is_packed in ((entries, False), (packed, True)):
            for node, entry in wanted.items():
                self._entries.setdefault(node, []).append((entry, is_packed))
        # A closed-over tensor that is read as it is has nothing to be computed.
        self.direct = [
            (entry, self._source_of[node].place)
            for node, entry in entries.items()
            if node in self._source_of and self._source_of[node].kind in ("tensor", "slot")
        ]
        direct = {entry for entry, _ in self.direct}
        self._entries = {
            node: kept for node, found in self._entries.items() if (kept := [entry for entry in found if entry[0] not in direct])
        }
        varying = [node for node in self._entries if self._needs[node] is None]
        self._stays = set(self._kept_inputs(varying))
        by_needs: dict[tuple[int, ...], list[Node]] = {}
        for node in dict.fromkeys([*self._entries, *self._kept_inputs(varying)]):
            needs = self._needs[node]
            if needs is not None:
                by_needs.setdefault(needs, []).append(node)
        self._fixed = [self._part(nodes, needs, set()) for needs, nodes in by_needs.items()]
        self._needed = sorted({place for needs in by_needs for place in needs})
        self._last: _Fixed | None = None
        self._varying: dict[frozenset[int], _Varying] = {}
        for other in tuple(_prologues):
            other.forget()
        _prologues.add(self)

    def forget(self) -> None:
        """Drop what was made of tensors that are gone."""
        for part in self._fixed:
            if part.kept is not None and part.kept.expired():
                part.kept = None
        if self._last is not None and self._last.kept.expired():
            self._last = None

    def tensors(
        self,
        tensors: Sequence[torch.Tensor],
        rows: frozenset[int],
        given: Callable[[], Mapping[Source, torch.Tensor]],
        *,
        anew: bool = False,
    ) -> list[tuple[int, torch.Tensor]]:
        """The tensors by their entries, those of `direct` aside; some may not be contiguous.

        Args:
            tensors: the closed-over ones.
            rows: the inputs whose first tokens are rows of their embeddings, so that nothing has to be made of the first inputs.
            given: gives those of all other sources.
            anew: make all of it: a CUDA graph that is recorded now shall make it in every replay.
        """
        varying = self._varying_for(rows)
        last = self._fixed_tensors(tensors, anew=True) if anew else self._last  # another thread may replace it
        if last is None or not last.kept.holds([tensors[place] for place in self._needed]):
            last = self._last = self._fixed_tensors(tensors)
        found = list(last.entries)
        for entry, node in varying.tables:
            source = self._source_of.get(node)
            found.append((entry, last.known[node] if source is None else tensors[source.place]))
        if varying.given or varying.part is not None:
            others = given()
            found += [(entry, others[source]) for entry, source in varying.given]
            if varying.part is not None:
                found += zip(varying.part.entries, self._made(varying.part, tensors, others, last.known), strict=False)
        return found

    def looked_at(self, rows: frozenset[int]) -> set[int]:
        """The places of the closed-over tensors that `tensors` makes others of."""
        part = self._varying_for(rows).part
        return {*self._needed, *[source.place for source in (part.inputs if part else []) if isinstance(source, Source)]}

    def _fixed_tensors(self, tensors: Sequence[torch.Tensor], *, anew: bool = False) -> _Fixed:
        found: list[tuple[int, torch.Tensor]] = []
        known: dict[Node, torch.Tensor] = {}
        versions = _Kept([tensors[place] for place in self._needed], [])
        for part in self._fixed:
            assert part.needs is not None
            needed = [tensors[place] for place in part.needs]
            kept = _Kept(needed, self._made(part, tensors, {}, {})) if anew else part.kept  # another thread may replace it
            if kept is None or not kept.holds(needed):
                kept = part.kept = _Kept(needed, self._made(part, tensors, {}, {}))
            found += zip(part.entries, kept.made, strict=False)
            known.update(zip(part.nodes, kept.made[len(part.entries) :], strict=True))
        return _Fixed(versions, found, known)

    def _made(
        self, part: _Part, tensors: Sequence[torch.Tensor], given: Mapping[Source, torch.Tensor], known: Mapping[Node, torch.Tensor]
    ) -> list[torch.Tensor]:
        """What the part's entries stand for, and behind that the tensors of its nodes."""
        inputs = [
            known[source] if isinstance(source, Node) else tensors[source.place].detach() if source.kind == "tensor" else given[source]
            for source in part.inputs
        ]
        with torch.no_grad():
            made = list(part.function(*inputs))
            named = [
                self._pack(tensor) if is_packed else tensor.detach().contiguous()
                for node, tensor in zip(part.nodes, made, strict=True)
                for _, is_packed in self._entries.get(node, ())
            ]
        return [*named, *made]

    def _varying_for(self, rows: frozenset[int]) -> _Varying:
        found = self._varying.get(rows)
        if found is None:
            found = self._varying[rows] = self._varying_with(rows)
        return found

    def _varying_with(self, rows: frozenset[int]) -> _Varying:
        nodes: list[Node] = []
        given: list[tuple[int, Source]] = []
        tables: list[tuple[int, Node]] = []
        for node, entries in self._entries.items():
            if self._needs[node] is not None:
                continue
            table = self._table_alone(node, rows)
            if table is not None:
                tables += [(entry, table) for entry, _ in entries]
            elif node in self._source_of and not any(is_packed for _, is_packed in entries):
                given += [(entry, self._source_of[node]) for entry, _ in entries]
            else:
                nodes.append(node)
        return _Varying(self._part(nodes, None, self._stays) if nodes else None, given, tables)

    def _table_alone(self, node: Node, rows: frozenset[int]) -> Node | None:
        """The table of a node that is one with the first step's rows behind it, if those are not needed."""
        if node.target != ops.table or any(is_packed for _, is_packed in self._entries[node]):
            return None
        table, first = node.all_input_nodes
        made_of = [self._source_of[part] for part in _ancestors([first], lambda _: False) if part in self._source_of]
        needless = all(source.kind == "tensor" or (source.kind == "initial inputs" and source.place in rows) for source in made_of)
        known = table in self._stays or (table in self._source_of and self._source_of[table].kind == "tensor")
        return table if needless and known else None

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
        entries = [entry for node in nodes for entry, _ in self._entries.get(node, ())]
        return _Part(nodes, entries, inputs, GraphModule(self._module, graph).forward, needs)


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
