"""A step as a persistent kernel sees it. In: an optimised program; out: its leaves, products, reductions and what is made before the loop.

A value is a vector, whose columns are shared out among the programs of a group, or a number, which every program has. What depends on
nothing but the time and holds a product is made before the loop, for all steps at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import sympy
import torch
from torch.fx import Node

from ...capture import ops
from ...capture.program import INVARIANT, Program, Source, Target
from ...capture.sizes import expression
from ...optimise.graph import TRANSPARENT, aten, outputs, placeholders, value
from ...optimise.locality import Rows, shape
from ..operators import row_shape
from ..pipeline import Optimised, optimised
from . import rules, types  # noqa: F401  importing the rules enters them
from .arguments import take_arguments_apart
from .batch import fold, take_folds_apart
from .pointwise import TABLE
from .quantised import bytes_of, take_scales_apart
from .reductions import REDUCTIONS, Reduction, reduction_of, take_conversions_apart
from .rule import RULES, Unlowered
from .sorting import rank, ranked, ranked_place, take_sorts_apart
from .views import AT_PLACES, order_of

STORED = ("emit", "stored", "index", "value")  # the targets of which every step is kept
UNKNOWN = (1 << 31) - 1  # a size that no index is divided by
_LOOPS = {  # made for all steps at once where they can be
    aten.mm.default, aten.bmm.default, aten.cumsum.default, aten.cumprod.default, aten.prod.dim_int, aten.scatter.src, aten.scatter.value,
    aten.scatter_add.default, aten.index_put.default, fold, rank, ranked, ranked_place, *REDUCTIONS,
}  # fmt: skip


@dataclass(frozen=True)
class CarriedLeaf:
    """A value that one step leaves to the next.

    Attributes:
        node: the placeholder that the step reads.
        source: what it is.
        after: the node of its next value.
        width: as `Step.width`.
        by_row: it has the batch dimension: it freezes with its row where rows retire.
    """

    node: Node
    source: Source
    after: Node
    width: int | None
    by_row: bool

    @property
    def returned(self) -> bool:
        return self.source.kind in ("state", "loop_state")


@dataclass(frozen=True)
class Product:
    """``left [B, inner] @ weight [inner, width]``: a vector of this step, or of the last one where ``left`` is a carried leaf.

    Attributes:
        stored: the weight's dtype in memory, where that is one byte; else None.
    """

    node: Node
    left: Node
    weight: Node
    inner: int
    width: int
    stored: torch.dtype | None = None


@dataclass
class Step:
    """One step.

    Attributes:
        made: the optimised program.
        nodes: what a step computes, in order.
        invariant: the nodes that are the same at every step.
        timed: the nodes that depend on those and the time alone.
        hoisted: the nodes that are made before the loop for all steps.
        leaves: what is carried.
        products: by their nodes.
        reductions: of all columns of a row to a number, by their nodes.
        outputs: (target, node) of flags, emits and stored vectors.
        parts: of a vector that is only put together to be stored: (part, its first column).
        known: the sizes that the kernel is made for, by their symbols.
    """

    made: Optimised
    nodes: list[Node] = field(default_factory=list)
    invariant: set[Node] = field(default_factory=set)
    timed: set[Node] = field(default_factory=set)
    hoisted: list[Node] = field(default_factory=list)
    leaves: list[CarriedLeaf] = field(default_factory=list)
    products: dict[Node, Product] = field(default_factory=dict)
    reductions: dict[Node, Reduction] = field(default_factory=dict)
    outputs: list[tuple[Target, Node]] = field(default_factory=list)
    parts: dict[Node, list[tuple[Node, int]]] = field(default_factory=dict)
    known: Mapping[str, int] = field(default_factory=dict)
    _dims: dict[Node, tuple[int, ...]] = field(default_factory=dict)

    def rows(self, node: Any) -> Rows | None:
        """Where the batch is; None for what belongs to no row."""
        return self.made.locality.of(node) if self.made.locality is not None else None

    def number(self, node: Any, size: Any) -> int:
        """A size that the kernel is made for.

        Raises:
            Unlowered: it may differ from call to call.
        """
        return int(self._known(node, size))

    def real(self, node: Any, made: torch.SymFloat) -> float:
        """A number made of sizes that the kernel is made for; raises as `number`."""
        return float(self._known(node, made))

    def _known(self, node: Any, size: Any) -> sympy.Expr:
        expr = sympy.sympify(size if isinstance(size, (sympy.Expr, int)) else expression(size))
        if not expr.is_number:
            expr = expr.xreplace(
                {symbol: sympy.Integer(self.known[str(symbol)]) for symbol in expr.free_symbols if str(symbol) in self.known}
            )
        if not expr.is_number:
            raise Unlowered(node, "a size that may differ from call to call: a kernel is made for one")
        return expr

    def dims(self, node: Any) -> tuple[int, ...]:
        """The sizes of one row of what a node makes; `UNKNOWN` for the first one of what is there before the loop, if it is.

        Raises:
            Unlowered: one of them may differ from call to call.
        """
        if not isinstance(value(node), torch.Tensor):
            return ()
        if node not in self._dims:
            sizes = row_shape(node, self.rows(node))
            first = [self.bound(sizes[0])] if sizes and self.is_known(node) else []
            self._dims[node] = (*first, *[self.number(node, size) for size in sizes[len(first) :]])
        return self._dims[node]

    def bound(self, size: Any) -> int:
        """A size, if it is known, else `UNKNOWN`."""
        known = all(str(symbol) in self.known for symbol in sympy.sympify(size).free_symbols)
        return self.number(None, size) if known else UNKNOWN

    def width(self, node: Any) -> int | None:
        """How many columns a row of it has; None for a number, one a row or one for all."""
        columns = math.prod(self.dims(node))
        if not columns:
            raise Unlowered(node, "a vector without columns")
        return None if columns == 1 else columns

    def place(self, node: Any, dim: int) -> int:
        """A dimension of torch's tensor as one of a row."""
        rank, rows = value(node).ndim, self.rows(node)
        dim = dim % rank if rank else 0
        return dim - (rows is not None and rows.inner == 1 and dim > rows.dim)

    def is_rows(self, node: Any, dim: int) -> bool:
        """Whether a dimension of torch's tensor is the batch."""
        rows = self.rows(node)
        return rows is not None and dim % value(node).ndim == rows.dim

    def is_row_ids(self, node: Any) -> bool:
        """Whether element b along the batch is b itself."""
        return self.made.locality is not None and node in self.made.locality.row_ids

    def extent(self, node: Any, dim: int) -> int:
        """The size of a dimension of torch's tensor that is not the batch."""
        return self.number(node, value(node).shape[dim])

    def is_known(self, node: Any) -> bool:
        """Whether it is there before the loop."""
        return node in self.invariant or node in self.hoisted

    def stored(self, node: Any) -> list[tuple[Any, int]]:
        """What is stored of an output: itself, or its parts, with their first columns."""
        return self.parts.get(node, [(node, 0)])


def prepared(program: Program) -> Optimised:
    """A captured program after the passes, as `step_of` takes it: made once, and only read from then on.

    Raises:
        Unlowered: of `lowering.operators`.
    """
    known: Optimised | None = program.plans.get("prepared")
    if known is not None:
        return known
    made = optimised(program, program.batch, split=True, wide=True, fixed=True, together=True)
    take_conversions_apart(made)
    take_scales_apart(made)
    take_folds_apart(made)
    take_sorts_apart(made)
    take_arguments_apart(made)
    program.plans["prepared"] = made
    return made


def step_of(made: Optimised, known: Mapping[str, int] = MappingProxyType({})) -> Step:
    """The step of an optimised program.

    Args:
        known: sizes that the kernel may be made for, by their symbols.

    Raises:
        Unlowered: the persistent kernel cannot hold it.
    """
    return _Reader(made, known).step()


def sizes_of(made: Optimised) -> list[str]:
    """The symbols of the sizes that rows of the step's values have, or that say where a view begins: a kernel is made for their numbers."""
    reader = _Reader(made, {})
    found = reader.step_nodes()
    found += [node for node in outputs(made.module.graph) if isinstance(node, Node) and node not in found]  # made before the loop
    symbols: set[Any] = set()
    for node in found:
        if isinstance(value(node), torch.Tensor):
            symbols |= {symbol for size in row_shape(node, reader.found.rows(node)) for symbol in sympy.sympify(size).free_symbols}
        for number in map(value, node.all_input_nodes):
            if isinstance(number, torch.SymFloat) or (isinstance(number, torch.SymInt) and node.target in AT_PLACES):
                symbols |= expression(number).free_symbols
    return sorted(str(symbol) for symbol in symbols - sympy.sympify(made.program.batch).free_symbols)


def stripped(node: Node, step: Step) -> Node:
    """The node that holds the same elements of each row in the same order, in the same dtype."""
    while node.op == "call_function" and (node.target in TRANSPARENT or _keeps_order(node, step)):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _keeps_order(node: Node, step: Step) -> bool:
    """A permutation that moves the batch and dimensions of size 1 only."""
    if node.target not in (aten.permute.default, aten.t.default, aten.numpy_T.default, aten.transpose.int):
        return False
    source: Any = node.args[0]
    order = [place for place in order_of(node, step.rows(source)) if step.dims(source)[place] != 1]
    return order == sorted(order)


class _Reader:
    def __init__(self, made: Optimised, known: Mapping[str, int]) -> None:
        self.made, self.found = made, Step(made, known=known)
        self.source_of = dict(zip(placeholders(made.module.graph), made.program.sources, strict=True))

    def step_nodes(self, apart: bool = False) -> list[Node]:
        """What a step reads and computes, in order; fills in what is the same at every step, and what is hoisted.

        Args:
            apart: let concatenations be stored part by part.
        """
        graph = self.made.module.graph
        ends = outputs(graph)
        timed = self.found.timed = self._classify()
        self._hoist(timed, ends)
        roots: list[Node] = []
        for target, node in zip(self.made.program.targets, ends, strict=True):
            if isinstance(node, Node):
                if apart and target.kind in STORED:
                    self._take_apart(node)
                roots += [part for part, _ in self.found.stored(node)] if target.kind in STORED else [node]
        needed = self._needed(roots)
        carried = [node for node, source in self.source_of.items() if source.kind not in (*INVARIANT, "time", "finished")]
        return [*carried, *[node for node in graph.nodes if node in needed]]

    def step(self) -> Step:
        made, found = self.made, self.found
        program, graph = made.program, made.module.graph
        if made.locality is None and program.batch != 1:
            mixes = made.mixes
            fixes = f"the step holds for a batch of {program.batch} only, and its rows cannot be told apart"
            refused = Unlowered(None, "rows depend on one another: " + mixes.reason if mixes else fixes)
            refused.location = mixes.location if mixes else program.fixed_at
            raise refused
        pairs = list(zip(program.targets, outputs(graph), strict=True))
        found.nodes = [node for node in self.step_nodes(apart=True) if node.op != "placeholder"]
        by_target = {(target.kind, target.place): node for target, node in pairs}
        for node, source in self.source_of.items():
            if source.kind in INVARIANT or source.kind in ("time", "finished"):
                continue
            if source.kind.endswith(" array"):
                reader = next(iter(node.users), None)
                if reader is not None:
                    raise Unlowered(reader, "a TensorArray that the loop writes and reads")
                continue
            by_row = bool(value(node).ndim) and (made.locality is None or made.locality.of(node) is not None)
            after = by_target.get((source.kind, source.place), node)
            if not isinstance(after, Node):
                raise Unlowered(node, "its next value is a constant")
            found.leaves.append(CarriedLeaf(node, source, after, found.width(node), by_row))
        found.outputs = [(target, node) for target, node in pairs if target.kind in ("finished", "past", *STORED)]
        for node in found.nodes:
            self._check(node)
        for node in (*found.hoisted, *[leaf.node for leaf in found.leaves]):
            self._check_dtype(node)
        return found

    def _classify(self) -> set[Node]:
        """Find what is the same at every step; returns what depends on that and the time alone."""
        invariant, timed = self.found.invariant, set()
        for node in self.made.module.graph.nodes:
            if node.op == "placeholder":
                kind = self.source_of[node].kind
                if kind in INVARIANT:
                    invariant.add(node)
                elif kind == "time":
                    timed.add(node)
            elif node.op == "get_attr" or (node.op == "call_function" and isinstance(value(node), (torch.SymInt, torch.SymFloat))):
                invariant.add(node)  # constants, sizes and what is made of sizes
            elif node.op == "call_function":
                operands = node.all_input_nodes
                if all(operand in invariant for operand in operands):
                    invariant.add(node)
                elif all(operand in timed or operand in invariant for operand in operands) and node.target not in ops.MAY_FAIL:
                    timed.add(node)
        return timed

    def _hoist(self, timed: set[Node], ends: list[Any]) -> None:
        """The timed nodes that a step reads and that hold a product, or what no rule knows."""
        heavy: set[Node] = set()
        for node in self.made.module.graph.nodes:
            if node in timed and node.op == "call_function":
                known = node.target in TABLE or (node.target in RULES and node.target not in _LOOPS)
                if not known or any(operand in heavy for operand in node.all_input_nodes) or self._is_odd(node):
                    heavy.add(node)
        for node in self.made.module.graph.nodes:
            if node in heavy and (node in ends or any(user not in timed and user.op != "output" for user in node.users)):
                self.found.hoisted.append(node)

    def _is_odd(self, node: Node) -> bool:
        try:
            self.found.width(node)
        except Unlowered:
            return True
        return False

    def _take_apart(self, node: Node) -> None:
        """Store a concatenation part by part, so that no program needs columns of it that are others'."""
        found, step = list[tuple[Node, int]](), self.found
        waiting, column = [node], 0
        while waiting:
            part = inner = waiting.pop(0)
            while inner.op == "call_function" and inner.target in TRANSPARENT and step.rows(inner) == step.rows(inner.args[0]):
                inner = inner.args[0]  # type: ignore[assignment]
            if self._is_joined(inner):
                waiting = [*inner.args[0], *waiting]  # type: ignore[misc]
            else:
                found.append((part, column))
                column += step.width(part) or 1
        if len(found) > 1:
            step.parts[node] = found

    def _is_joined(self, node: Node) -> bool:
        """Whether a row of a concatenation has its parts one behind the other."""
        step = self.found
        if node.target is not aten.cat.default or step.is_known(node) or step.rows(node) != Rows(0):
            return False
        parts: Any = node.args[0]
        rank, dtype = value(node).ndim, value(node).dtype
        if any(value(part).dtype != dtype or value(part).ndim != rank for part in parts):
            return False
        place = step.place(node, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]
        return all(size == 1 for size in step.dims(node)[:place])

    def _needed(self, roots: list[Node]) -> set[Node]:
        """What a step computes: back from its outputs to what is given."""
        given = {*self.found.invariant, *self.found.hoisted}
        needed: set[Node] = set()
        waiting = list(roots)
        while waiting:
            node = waiting.pop()
            if node in needed or node in given or node.op == "placeholder":
                continue
            needed.add(node)
            waiting.extend(node.all_input_nodes)
        return needed

    def _check(self, node: Node) -> None:
        """Raise for what cannot be lowered; note products and reductions."""
        if not isinstance(value(node), torch.Tensor):
            return
        self._check_dtype(node)
        width = self.found.width(node)
        reduction = reduction_of(node)
        if reduction is not None:
            if width is None and self.found.width(reduction.source) is not None:
                self.found.reductions[node] = reduction
        elif node.target is aten.mm.default:
            left, weight = node.args
            inner = self.found.width(left)
            is_weight = weight in self.found.invariant and left not in self.found.invariant
            if is_weight and inner == self.found.number(node, shape(left)[1]) != 1 and value(node).dtype.is_floating_point:
                columns = self.found.number(node, shape(weight)[1])
                codes = bytes_of(weight)
                stored = None if codes is None else value(codes).dtype
                self.found.products[node] = Product(node, left, codes or weight, inner, columns, stored)  # type: ignore[arg-type]
        elif node.target not in RULES and node.target not in TABLE:
            raise Unlowered(node, "the persistent kernel has no rule for it")

    def _check_dtype(self, node: Node) -> None:
        dtype = value(node).dtype
        if dtype not in types.REGISTERS:
            raise Unlowered(node, f"{str(dtype).removeprefix('torch.')} numbers")
