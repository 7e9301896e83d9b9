"""The phases of a step as C++ functions. In: a graph, its stages and its rows; out: the text of each phase and the names it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from ..capture import ops
from ..capture.program import Program, Target
from ..optimise.graph import aten, placeholders, value
from ..optimise.locality import Locality, Rows, shape
from . import operators, pointwise
from .block import Block, Names
from .operators import Lowering, Unlowered, row_shape, size_text
from .pointwise import C_TYPES, HALVES, rounded, wide
from .stages import Product, Stages, in_order
from .values import Value, count, linear, read, stored

_THROUGH = {
    aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.permute.default, aten.t.default, aten.transpose.int, aten.expand.default, aten.select.int, aten.slice.Tensor,
    aten.alias.default, aten.detach.default, ops.guard,
}  # fmt: skip


@dataclass(frozen=True)
class Buffer:
    """Memory of a group: a name, the sizes of one row (or of what belongs to no row), a dtype, and whether it is for several steps."""

    name: str
    dims: tuple[str, ...]
    dtype: torch.dtype
    of_rows: bool
    ahead: bool = False

    @property
    def kind(self) -> str:
        return C_TYPES[self.dtype]

    @property
    def per_row(self) -> str:
        return count(self.dims)


@dataclass
class Phases:
    """What the loop around the phases has to provide.

    Attributes:
        texts: the functions.
        ahead: the function that computes the left sides of products for a step to come; None where there is none.
        arenas: the bytes of temporaries that each needs, as C expressions.
        externals: the entry of each tensor that is known before the loop.
        weights: the entry of each packed matrix.
        carried: the buffer of each carried leaf; its next value goes to the buffer with ``n`` appended.
        crossing: buffers of what one phase leaves to another.
        products: for each product the buffer of its left side (None: a carried leaf) and that of its result.
        emits: (target, entry, C type) of each emit and write.
        symbols: the sizes that the text names.
    """

    texts: list[str] = field(default_factory=list)
    ahead: str | None = None
    arenas: list[list[str]] = field(default_factory=list)
    externals: dict[Node, str] = field(default_factory=dict)
    weights: dict[Node, str] = field(default_factory=dict)
    carried: dict[Node, Buffer] = field(default_factory=dict)
    crossing: dict[Node, Buffer] = field(default_factory=dict)
    products: dict[Node, tuple[Buffer | None, Buffer]] = field(default_factory=dict)
    emits: list[tuple[Target, str, str]] = field(default_factory=list)
    symbols: dict[str, Any] = field(default_factory=dict)


def write_phases(program: Program, graph: torch.fx.Graph, found: Stages, locality: Locality | None) -> Phases:
    """The phases of a step. Raises `Unlowered`."""
    return _Writer(program, graph, found, locality).phases()


class _Writer:
    def __init__(self, program: Program, graph: torch.fx.Graph, found: Stages, locality: Locality | None) -> None:
        self.program, self.graph, self.stages, self.locality = program, graph, found, locality
        self.names = Names()
        self.made = Phases()
        self.shared: set[Node] = set()  # products whose left side is the next value of a carried leaf
        self.source_of = dict(zip(placeholders(graph), program.sources, strict=True))

    def phases(self) -> Phases:
        made = self.made
        made.externals = {node: f"p{i}" for i, node in enumerate(self.stages.before)}
        made.weights = {node: f"w{i}" for i, node in enumerate(self.stages.weights)}
        for i, node in enumerate(self.stages.carried):
            kind = self.source_of[node].kind
            if kind.endswith(" array"):
                reader = next((user for user in node.users if user.target is ops.read), node)
                raise Unlowered(reader, "a TensorArray that the loop writes")
            if kind != "time":
                made.carried[node] = Buffer(f"c{i}", self.dims(node), value(node).dtype, self.is_of_rows(node))
        for i, product in enumerate(self.stages.products):
            dtype = wide(value(product.node).dtype)
            left = None if product.carried is not None else Buffer(f"l{i}", self.dims(product.left), dtype, True, product.ahead)
            made.products[product.node] = (left, Buffer(f"g{i}", self.dims(product.node), dtype, True, product.ahead))
        self.next_of = self._next_leaves()
        self._share_left_sides()
        if any(product.ahead for product in self.stages.products):
            made.ahead = self._function(_AHEAD)
        for number in range(self.stages.phases):
            made.texts.append(self._function(number))
        return made

    def rows(self, node: Any) -> Rows | None:
        return self.locality.of(node) if self.locality is not None else None

    def is_of_rows(self, node: Any) -> bool:
        return self.locality is None or self.rows(node) is not None

    def dims(self, node: Any) -> tuple[str, ...]:
        for size in shape(node):
            self._note(size)
        return tuple(map(size_text, row_shape(node, self.rows(node))))

    def _note(self, size: Any) -> None:
        for symbol in getattr(size, "free_symbols", ()):
            self.made.symbols.setdefault(str(symbol), symbol)

    def _next_leaves(self) -> dict[Node, Any]:
        """For each carried leaf the node of its next value."""
        by_target = {(t.kind, t.place): node for t, node in zip(self.program.targets, self.stages.outputs, strict=True)}
        sources = {node: self.source_of[node] for node in self.made.carried}
        return {node: by_target.get((source.kind, source.place), node) for node, source in sources.items()}

    def _share_left_sides(self) -> None:
        """A product whose left side becomes a carried leaf reads it there."""
        made = self.made
        for product in self.stages.products:
            left, result = made.products[product.node]
            if left is None or product.ahead:
                continue
            source = in_order(product.left)
            for leaf, node in self.next_of.items():
                buffer = made.carried[leaf]
                after = isinstance(node, Node) and in_order(node) is source and self._phase_of(node) == product.after
                if after and buffer.dtype == left.dtype and buffer.of_rows and buffer.per_row == left.per_row:
                    made.products[product.node] = (Buffer(f"{buffer.name}n", left.dims, left.dtype, True), result)
                    self.shared.add(product.node)
                    break

    def _sinks(self, phase: int) -> list[tuple[str, Any, Any]]:
        """What a phase has to leave behind: (kind, node, detail)."""
        if phase == _AHEAD:
            return [("left", product.left, product) for product in self.stages.products if product.ahead]
        found: list[tuple[str, Any, Any]] = [("left", p.left, p) for p in self.stages.products if self._computes_left(p, phase)]
        found += [("carried", node, leaf) for leaf, node in self.next_of.items() if self._phase_of(node) == phase]
        for target, node in zip(self.program.targets, self.stages.outputs, strict=True):
            if target.kind in ("finished", "past", "emit", "stored", "index", "value") and self._phase_of(node) == phase:
                found.append((target.kind, node, target))
        return found

    def _computes_left(self, product: Product, phase: int) -> bool:
        return product.after == phase and not product.ahead and product.node not in self.shared

    def _phase_of(self, node: Any) -> int:
        return self.stages.phase_of.get(node, 0)

    def _needed(self, phase: int) -> dict[Node, None]:
        """The nodes that a phase computes, in the graph's order."""
        needed: set[Node] = set()
        waiting = [node for _, node, _ in self._sinks(phase)]
        while waiting:
            node = waiting.pop()
            if node in needed or self._is_given(node):
                continue
            needed.add(node)
            waiting.extend(node.all_input_nodes)
        return {node: None for node in self.graph.nodes if node in needed}

    def _is_given(self, node: Node) -> bool:
        made = self.made
        return node.op in ("placeholder", "get_attr") or any(node in given for given in (made.externals, made.products, made.crossing))

    def _function(self, number: int) -> str:
        needed = self._needed(number)
        later = set() if number == _AHEAD else {node for phase in range(number + 1, self.stages.phases) for node in self._needed(phase)}
        sinks = self._sinks(number)
        arena: list[str] = []
        self.uniform = Block(self.names, arena, 1)
        self.row = Block(self.names, arena, 2)
        self.values: dict[Node, Any] = {}
        uses: dict[Node, int] = {}
        nested: dict[Node, int] = {}  # how many expressions are within one another
        for node in reversed(needed):
            uses[node] = self._uses(node, needed, uses) + sum(sunk is node for _, sunk, _ in sinks)
        for node in needed:
            lowered = self._lowered(node)
            nested[node] = 1 + max((nested.get(operand, 0) for operand in node.all_input_nodes), default=0)
            if isinstance(lowered, Value) and node.target not in _THROUGH:
                if node in later and self._worth_keeping(node):
                    lowered = self._crossed(node, lowered)
                elif not lowered.cheap and (uses[node] > 1 or self._is_read_often(node, needed) or nested[node] > _MOST_NESTED):
                    lowered = self._block(node).keep(lowered)
            if isinstance(lowered, Value) and lowered.pointer is not None:
                nested[node] = 0
            self.values[node] = lowered
        for kind, node, detail in sinks:
            self._sink(kind, node, detail)
        self.made.arenas.append(arena)
        return self._text(number, arena)

    def _uses(self, node: Node, needed: dict[Node, None], uses: dict[Node, int]) -> int:
        """How often an element of a node is read, through views too: pieces that do not overlap read each of theirs once."""
        users = [user for user in node.users if user in needed]
        if len(users) > 1 and all(user.target is aten.slice.Tensor and user.args[0] is node and uses[user] == 1 for user in users):
            sizes = [count(self.dims(user)) for user in users]
            total = count(self.dims(node))
            if total.isdigit() and all(size.isdigit() for size in sizes) and sum(map(int, sizes)) <= int(total):
                return 1
        return sum(uses[user] if user.target in _THROUGH else 1 for user in users)

    def _worth_keeping(self, node: Node) -> bool:
        """Whether a later phase reads what this one computed rather than computing it again."""
        return self.is_of_rows(node) and node not in self.stages.invariant and node.target is not ops.read

    def _crossed(self, node: Node, lowered: Value) -> Value:
        buffer = Buffer(f"x{len(self.made.crossing)}", lowered.dims, lowered.dtype, True)
        self.made.crossing[node] = buffer
        made = self._in(buffer)
        self.row.fill(str(made.pointer), lowered.dims, lowered.dtype, lowered.load)
        return made

    def _is_read_often(self, node: Node, needed: dict[Node, None]) -> bool:
        """Whether some reader asks for an element more than once: it is larger, or goes over its operand repeatedly."""
        mine = count(self.dims(node))
        for user in node.users:
            made = user.meta.get("val")
            if user not in needed or not isinstance(made, torch.Tensor):
                continue
            if count(self.dims(user)) != mine and user.target not in operators.ONE_PASS:
                return True
        return False

    def _block(self, node: Node) -> Block:
        return self.row if self.is_of_rows(node) or any(self.is_of_rows(operand) for operand in node.all_input_nodes) else self.uniform

    def _lowered(self, node: Node) -> Any:
        for made in (node, *node.all_input_nodes):  # every size that the text may name
            known = made.meta.get("val")
            if isinstance(known, (torch.SymInt, torch.SymFloat)):
                self._note(known.node.expr)
            for tensor in known if isinstance(known, (tuple, list)) else (known,):
                if isinstance(tensor, torch.Tensor):
                    for size in tensor.shape:
                        self._note(getattr(getattr(size, "node", None), "expr", None))
        if node.target not in operators.RULES and node.target not in pointwise.TABLE:
            return None  # a size, which is read from what it is the size of
        return operators.lower(Lowering(node, self._block(node), self._value, self.rows, "R"))

    def _value(self, node: Node) -> Any:
        if node not in self.values:
            self.values[node] = self._given(node)
        return self.values[node]

    def _in(self, buffer: Buffer) -> Value:
        if buffer.ahead:
            row = "slot[r]" if self.locality is not None else "0"
            return stored(f"({buffer.name} + (ahead_by * many + {row}) * ({buffer.per_row}))", buffer.dims, buffer.dtype)
        pointer = f"({buffer.name} + r * ({buffer.per_row}))" if buffer.of_rows and self.locality is not None else buffer.name
        return stored(pointer, buffer.dims, buffer.dtype)

    def _given(self, node: Node) -> Any:
        """What a phase finds ready."""
        made = self.made
        if node in made.crossing:
            return self._in(made.crossing[node])
        if node in made.products:
            dtype, sums = value(node).dtype, self._in(made.products[node][1])
            return sums if dtype not in HALVES else Value(sums.dims, dtype, lambda at: rounded(sums.load(at), dtype), cheap=False)
        if node in made.carried:
            return self._in(made.carried[node])
        if node in made.externals:
            return self._external(node)
        if node.op == "placeholder" and self.source_of[node].kind == "time":
            return Value((), torch.int32, lambda _: "(int32_t)t")
        return self._lowered(node)  # an invariant that is read through: a view, or a fill

    def _external(self, node: Node) -> Value:
        name, rows, dtype, dims = self.made.externals[node], self.rows(node), value(node).dtype, self.dims(node)
        if rows is None:
            return stored(name, dims, dtype)
        if rows.dim == 0:
            return stored(f"({name} + R * ({count(dims)}))", dims, dtype)
        if rows.inner != 1:
            raise Unlowered(node, "a closed-over tensor with the batch flattened into a dimension")
        full = [size_text(size) for size in shape(node)]
        return Value(dims, dtype, lambda at: read(f"{name}[{linear([*at[: rows.dim], 'R', *at[rows.dim :]], full)}]", dtype))

    def _sink(self, kind: str, node: Any, detail: Any) -> None:
        made: Value = self._value(node)
        block = self.row if self.is_of_rows(node) else self.uniform
        if kind == "left":
            left = self.made.products[detail.node][0]
            assert left is not None
            block.fill(str(self._in(left).pointer), left.dims, left.dtype, made.load)
        elif kind == "carried":
            buffer = self.made.carried[detail]
            after = self._in(Buffer(f"{buffer.name}n", buffer.dims, buffer.dtype, buffer.of_rows))
            (self.row if buffer.of_rows else block).fill(str(after.pointer), made.dims, made.dtype, made.load)
        elif kind in ("finished", "past"):
            self._sink_flags("fin" if kind == "finished" else "late", made)
        elif kind == "index":
            block.line(f"j{detail.place}[at_t] = {made.load(())};")
            self.made.emits.append((detail, f"j{detail.place}", "int64_t"))
        else:
            name = {"emit": "e", "stored": "z", "value": "y"}[kind] + str(detail.place)
            of_rows = self.locality is not None and self.rows(node) is not None
            offset = f"(at_t * B + R) * ({count(made.dims)})" if of_rows else f"at_t * ({count(made.dims)})"
            if of_rows:
                self._note(self.locality.batch)  # type: ignore[union-attr]
            block.fill(f"({name} + {offset})", made.dims, made.dtype, made.load)
            self.made.emits.append((detail, name, C_TYPES[made.dtype]))

    def _sink_flags(self, name: str, made: Value) -> None:
        if self.locality is None:
            self.row.fill(name, made.dims, torch.bool, made.load)
        else:
            self.row.line(f"{name}[r] = {made.load(())};")

    def _text(self, number: int, arena: Sequence[str]) -> str:
        body = [*self.uniform.lines]
        if self.row.lines:
            body += [
                "    for (int64_t r = r0; r < r1; ++r) {",
                "        const int64_t R = s.map[r];",
                "        (void)R;",
                *self.row.lines,
                "    }",
            ]
        name = "ahead" if number == _AHEAD else f"phase{number}"
        head = [
            f"void {name}(const Outer& o, Group& s, const int64_t t, const int64_t r0, const int64_t r1, char* const arena) {{",
            "    const int64_t at_t = t - 1 - o.base;",
            "    int64_t bad = 0, *const fault = &bad;",
            "    const int64_t ahead_by = t - s.from, many = s.many, *const slot = s.slot;",
            "    (void)at_t, (void)fault, (void)arena, (void)r0, (void)r1, (void)ahead_by, (void)many, (void)slot;",
        ]
        head.append("@LOCALS@")
        offset = "0"
        for place, size in enumerate(arena):
            head.append(f"    const int64_t at{place} = {offset};")
            offset = f"at{place} + frnn::rounded_up({size})"
        # A step to come may never be: its fault counts when it is there.
        body.append("    if (bad) " + ("s.fault_at = t < s.fault_at ? t : s.fault_at;" if number == _AHEAD else "s.fault = 1;"))
        return "\n".join([*head, *body, "}"])


_MOST_NESTED = 64  # a compiler takes 256 brackets within one another (clang), and Python some hundred calls
_AHEAD = -2  # the number of the function that runs ahead of the steps
