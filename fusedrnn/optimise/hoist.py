"""Work that does not wait for the state, moved out of its way. In: a program; out: one whose inputs are not carried but looked up.

The cell's input of a step was made by loop_fn one step before. Where loop_fn made it from the time and from what is known before the
loop, it can be made at any moment (`inputs_from_time`); where it looked a token up in an embedding, the token is enough
(`inputs_from_tokens`), and a product with the looked-up row is a row of the product with the table (`products_of_rows`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from ..capture import ops
from ..capture.program import Program, Source, Target
from .graph import aten, call, copied, made_of, output, outputs, placeholders, replace, sort, value
from .shapes import static

_MOST_TABLE = 1 << 24  # bytes of a table of products that is worth its memory


@dataclasses.dataclass
class Moved:
    """What a rewrite did, for `explain`: one line each.

    Attributes:
        tables: of an input carried as a token: the size of its embedding.
        embeddings: of those whose embedding is closed over: its place among the closed-over tensors.
    """

    hoisted: list[str] = dataclasses.field(default_factory=list)
    folded: list[str] = dataclasses.field(default_factory=list)
    tables: dict[int, object] = dataclasses.field(default_factory=dict)
    embeddings: dict[int, int] = dataclasses.field(default_factory=dict)


def hoist(program: Program, *, differentiable: bool = False) -> tuple[Program, Moved]:
    """The program, a copy, with its inputs looked up where that frees a product from the loop.

    Args:
        differentiable: the program will be differentiated: look-ups whose derivative is not that of a table's rows stay (``padding_idx``).
    """
    graph = copied(program.module.graph)
    work = _Work(program, graph, differentiable)
    work.inputs_from_tokens()
    work.inputs_from_time()
    work.products_of_rows()
    graph.eliminate_dead_code()
    graph.lint()
    module = torch.fx.GraphModule(program.module, graph)
    changed = dataclasses.replace(program, module=module, sources=tuple(work.sources), targets=tuple(work.targets), plans={})
    return changed, work.moved


def tokens(program: Program) -> tuple[Program, Moved]:
    """The program, a copy, with the token carried in the place of an input that is an embedding's row. What else is known before a step
    stays in the step, where the step of one row is not the step of another."""
    graph = copied(program.module.graph)
    work = _Work(program, graph, False)
    work.inputs_from_tokens()
    work.products_of_rows()
    graph.eliminate_dead_code()
    graph.lint()
    module = torch.fx.GraphModule(program.module, graph)
    changed = dataclasses.replace(program, module=module, sources=tuple(work.sources), targets=tuple(work.targets), plans={})
    return changed, work.moved


class _Work:
    def __init__(self, program: Program, graph: Graph, differentiable: bool) -> None:
        self.program, self.graph, self.differentiable = program, graph, differentiable
        self.sources, self.targets = list(program.sources), list(program.targets)
        self.moved = Moved()
        self.of_source = dict(zip(program.sources, placeholders(graph), strict=True))
        self.output = output(graph)
        self.invariant = self._closure({"tensor", "seed"})

    @property
    def outputs(self) -> list[Node]:
        return outputs(self.graph)

    def _closure(self, kinds: set[str]) -> set[Node]:
        """The nodes that depend on these kinds of sources only."""
        source_of = {node: source for source, node in self.of_source.items()}
        return made_of(self.graph, [source_of[node] for node in placeholders(self.graph)], kinds)

    def _inputs(self) -> list[tuple[Source, Node, int]]:
        """The carried inputs that a product may wait for: source, placeholder, place of the next value among the outputs."""
        found = []
        for source, placeholder in list(self.of_source.items()):
            target = Target(source.kind, source.place)
            if source.kind in ("inputs", "token") and target in self.targets and self._feeds_product(placeholder):
                found.append((source, placeholder, self.targets.index(target)))
        return found

    def _feeds_product(self, node: Node) -> bool:
        waiting, seen = [node], {node}
        while waiting:
            for user in waiting.pop().users:
                if user.target in (aten.mm.default, aten.addmm.default, aten.bmm.default):
                    return True
                if user.op == "call_function" and user not in seen and user.target not in (aten.argmax.default,):
                    seen.add(user)
                    waiting.append(user)
        return False

    def _placeholder(self, source: Source, like: Node, dtype: torch.dtype | None = None, shape: object = None) -> Node:
        """A new input of the graph."""
        last = placeholders(self.graph)[-1]
        with self.graph.inserting_after(last):
            node = self.graph.placeholder(f"{source.kind.replace(' ', '_')}_{source.place}")
        made = value(like)
        with made.fake_mode:
            node.meta["val"] = made if dtype is None else torch.empty(tuple(shape), dtype=dtype, device=made.device)  # type: ignore[arg-type]
        self.sources.append(source)
        self.of_source[source] = node
        return node

    def _drop(self, source: Source, placeholder: Node, target: int) -> None:
        """The input is no longer carried."""
        self.graph.erase_node(placeholder)
        del self.sources[self.sources.index(source)]
        del self.of_source[source]
        outputs = self.outputs
        del outputs[target]
        del self.targets[target]
        self.output.args = (outputs,)

    def inputs_from_tokens(self) -> None:
        """Carry the token whose embedding the next input is, instead of the embedding."""
        for source, placeholder, target in self._inputs():
            made = self.outputs[target]
            if source.kind != "inputs" or value(made).ndim != 2:
                continue
            table, token = self._looked_up(made, placeholder)
            if table not in self.invariant or value(token).ndim != 1:
                continue
            self.moved.tables[source.place] = value(table).shape[0]
            closed_over = next((known for known, node in self.of_source.items() if node is table and known.kind == "tensor"), None)
            if closed_over is not None:
                self.moved.embeddings[source.place] = closed_over.place
            first = self._placeholder(Source("initial inputs", source.place), placeholder)
            carried = self._placeholder(Source("token", source.place), placeholder, torch.int64, value(placeholder).shape[:1])
            with self.graph.inserting_before(self._after(first, carried, table)):
                rows = call(self.graph, ops.table, table, first, like=made)
                looked_up = call(self.graph, aten.embedding.default, rows, carried, like=made)
            with self.graph.inserting_after(made):
                size = call(self.graph, ops.within, token, table, like=made)
            outputs = self.outputs
            outputs[target] = size
            self.output.args = (outputs,)
            placeholder.replace_all_uses_with(looked_up)
            self.targets[target] = Target("token", source.place)
            self.graph.erase_node(placeholder)
            del self.sources[self.sources.index(source)]
            del self.of_source[source]
            self.invariant |= {first, rows}

    def _looked_up(self, made: Node, placeholder: Node) -> tuple[Any, Any]:
        """The table and the tokens whose rows a value is; (None, None) for any other value."""
        if made.target == aten.embedding.default:
            return (made.args[0], made.args[1]) if self._is_plain(made) else (None, None)
        read: Any = made.args[0] if made.target == aten.unsqueeze.default and made.args[1] == 0 else None
        if not isinstance(read, Node) or read.target != ops.read or read.args[2] != 0:
            return None, None
        # In a batch of one an embedding is a read: an index past the end is the last one.
        table, index = read.args[:2]
        size = static(value(table).shape[0])
        if not size or value(table).ndim != 2:
            return None, None
        if made in self._closure({"tensor", "seed", "time"}) and not self._folds(placeholder, table):  # type: ignore[arg-type]
            return None, None  # its product is rather made ahead
        with self.graph.inserting_before(made):
            negative = call(self.graph, aten.lt.Scalar, index, 0, like=made)
            from_end = call(self.graph, aten.add.Tensor, index, size, like=made)
            index = call(self.graph, aten.where.self, negative, from_end, index, like=made)
            index = call(self.graph, aten.clamp.default, index, None, size - 1, like=made)
            return table, call(self.graph, aten.view.default, index, [1], like=made)

    def _is_plain(self, look_up: Node) -> bool:
        """Whether the derivative of a look-up is that of its rows, where that matters."""
        return not self.differentiable or all(option in (-1, False) for option in look_up.args[2:])

    def _folds(self, node: Node, table: Node) -> bool:
        """Whether a product with a node may become a row of a table's product."""
        for user in node.users:
            if user.target in (ops.quiet, ops.guard) and self._folds(user, table):
                return True
            if user.target in (aten.mm.default, aten.addmm.default) and user.args[-1] in self.invariant:
                return self._is_worth(table, user.args[-1])  # type: ignore[arg-type]
        return False

    def _after(self, *nodes: Node) -> Node:
        """The first node behind all of these and behind the placeholders."""
        wanted = {*nodes, *placeholders(self.graph)}
        last = [node for node in self.graph.nodes if node in wanted][-1]
        following: Node = last.next
        return following

    def inputs_from_time(self) -> None:
        """Make an input that depends on the time alone in the step that needs it."""
        clock = self.of_source.get(Source("time"))
        timed = self._closure({"tensor", "seed", "time", "initial inputs"})
        if clock is None:
            return
        for source, placeholder, _ in self._inputs():
            target = self.targets.index(Target(source.kind, source.place))  # anew: an input that is dropped moves those behind it
            made = self.outputs[target]
            if made not in timed or not self._cannot_fail(made):
                continue
            first = self._placeholder(Source("initial inputs" if source.kind == "inputs" else "initial token", source.place), placeholder)
            before, copies = self._one_step_earlier(made, clock)
            with self.graph.inserting_before(before.next):
                is_first = call(self.graph, aten.eq.Scalar, clock, 1, like=made)
                now = call(self.graph, aten.where.self, is_first, first, copies.get(made, made), like=made)
            # What reads the input stands behind the placeholders: so must what makes it.
            placeholder.replace_all_uses_with(now)
            self._drop(source, placeholder, target)
            sort(self.graph)
            timed |= {first, now, *copies.values()}

    def _cannot_fail(self, node: Node) -> bool:
        """Whether a value can be made for a step that may never be: no look-up in it can fail."""
        return all(part in self.invariant or part.target not in ops.MAY_FAIL for part in self._ancestors(node))

    def _one_step_earlier(self, made: Node, clock: Node) -> tuple[Node, dict[Node, Node]]:
        """A copy of what makes a value, for the time before."""
        last = placeholders(self.graph)[-1]
        with self.graph.inserting_after(last):
            earlier = call(self.graph, aten.sub.Tensor, clock, 1, like=made)
        copies: dict[Node, Node] = {clock: earlier}
        place = earlier
        needed = self._ancestors(made)
        for node in list(self.graph.nodes):
            if node in needed and node not in self.invariant and node.op == "call_function" and node is not earlier:
                with self.graph.inserting_after(place):
                    place = self.graph.node_copy(node, lambda n: copies.get(n, n))
                copies[node] = place
        return place, copies

    def _ancestors(self, node: Node) -> set[Node]:
        found: set[Node] = set()
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting.extend(node.all_input_nodes)
        return found

    def products_of_rows(self) -> None:
        """A product with a row of a table, as a row of the product with the table."""
        sort(self.graph)
        for node in list(self.graph.nodes):
            if node.target == aten.addmm.default:
                bias, left, weight = node.args
                build: Callable[[Node], Node] = lambda rows, bias=bias, node=node: call(self.graph, aten.add.Tensor, rows, bias, like=node)  # type: ignore[misc]  # noqa: E731
                if node.kwargs.get("beta", 1) != 1 or node.kwargs.get("alpha", 1) != 1:
                    continue
            elif node.target == aten.mm.default:
                left, weight = node.args
                build = lambda rows: rows  # noqa: E731
            else:
                continue
            while isinstance(left, Node) and left.target in (ops.quiet, ops.guard):
                left = left.args[0]
            if not isinstance(left, Node) or left.target != aten.embedding.default or weight not in self.invariant:
                continue
            if not self._is_plain(left):
                continue
            table, token = left.args[:2]
            if table not in self.invariant or value(token).ndim != 1 or not self._is_worth(table, weight):  # type: ignore[arg-type]
                continue
            with self.graph.inserting_before(node):
                rows = self._product(table, weight, node)  # type: ignore[arg-type]
                looked_up = call(self.graph, aten.embedding.default, rows, token, like=node)
                replace_by = build(looked_up)
            replace(node, replace_by)
            self.moved.folded.append(f"a product [{value(weight).shape[0]}, {value(weight).shape[1]}] with an embedding's row")

    def _is_worth(self, table: Node, weight: Node) -> bool:
        source = table.args[0] if table.target == ops.table else table
        size = static(value(source).shape[0])
        return size is not None and size * value(weight).shape[1] * value(weight).element_size() <= _MOST_TABLE

    def _product(self, table: Node, weight: Node, like: Node) -> Node:
        if table.target != ops.table:
            made = call(self.graph, aten.mm.default, table, weight, like=like)
        else:
            parts = [call(self.graph, aten.mm.default, part, weight, like=like) for part in table.args]
            self.invariant |= set(parts)
            made = call(self.graph, ops.table, *parts, like=like)
        self.invariant.add(made)
        return made
