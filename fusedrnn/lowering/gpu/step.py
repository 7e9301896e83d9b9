"""A step as a persistent kernel sees it. In: an optimised program; out: its leaves, products, reductions and what is made before the loop.

A value is a vector, whose columns are shared out among the programs of a group, or a number, which every program has. What depends on
nothing but the time and holds a product is made before the loop, for all steps at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.fx import Node

from ...capture import ops
from ...capture.program import INVARIANT, Source, Target
from ...optimise.graph import aten, outputs, placeholders, value
from ...optimise.locality import shape
from ..operators import row_shape
from ..pipeline import Optimised
from . import types
from .pointwise import TABLE
from .rule import MOVES, RULES, Unlowered
from .rules import TRANSPARENT

_SIZES = (aten.sym_size.int,)


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
    """``left [B, inner] @ weight [inner, width]``: a vector of this step, or of the last one where ``left`` is a carried leaf."""

    node: Node
    left: Node
    weight: Node
    inner: int
    width: int


@dataclass
class Step:
    """One step.

    Attributes:
        made: the optimised program.
        nodes: what a step computes, in order.
        invariant: the nodes that are the same at every step.
        hoisted: the nodes that are made before the loop for all steps.
        leaves: what is carried.
        products: by their nodes.
        argmaxes: the nodes that are an argmax over the columns of a vector.
        outputs: (target, node) of flags, emits and stored vectors.
    """

    made: Optimised
    nodes: list[Node] = field(default_factory=list)
    invariant: set[Node] = field(default_factory=set)
    hoisted: list[Node] = field(default_factory=list)
    leaves: list[CarriedLeaf] = field(default_factory=list)
    products: dict[Node, Product] = field(default_factory=dict)
    argmaxes: list[Node] = field(default_factory=list)
    outputs: list[tuple[Target, Node]] = field(default_factory=list)

    def width(self, node: Any) -> int | None:
        """How many columns a node has; None for a number, one a row or one for all.

        Raises:
            Unlowered: it has columns in more than one dimension, or a number of columns that is not known.
        """
        made = value(node)
        if not isinstance(made, torch.Tensor):
            return None
        rows = self.made.locality.of(node) if self.made.locality is not None else None
        if rows is not None and rows.inner != 1:
            raise Unlowered(node, "the batch is flattened into another dimension")
        sizes = [size for size in row_shape(node, rows) if size != 1]
        if len(sizes) > 1:
            raise Unlowered(node, f"a tensor of {len(sizes)} dimensions a row: {[*map(str, sizes)]}")
        if sizes and not sympy.sympify(sizes[0]).is_Integer:
            raise Unlowered(node, "a vector whose size may differ from call to call: a kernel is made for one")
        return int(sizes[0]) if sizes else None


def step_of(made: Optimised) -> Step:
    """The step of an optimised program.

    Raises:
        Unlowered: the persistent kernel cannot hold it.
    """
    return _Reader(made).step()


def stripped(node: Node) -> Node:
    """The node that holds the same elements in the same order, in the same dtype."""
    while node.op == "call_function" and node.target in TRANSPARENT and node.target is not aten.expand.default:
        node = node.args[0]  # type: ignore[assignment]
    return node


class _Reader:
    def __init__(self, made: Optimised) -> None:
        self.made, self.found = made, Step(made)
        self.source_of = dict(zip(placeholders(made.module.graph), made.program.sources, strict=True))

    def step(self) -> Step:
        made, found = self.made, self.found
        program, graph = made.program, made.module.graph
        if made.locality is None and program.batch != 1:
            mixes = made.mixes
            fixes = f"the step holds for a batch of {program.batch} only"
            refused = Unlowered(None, "rows depend on one another: " + mixes.reason if mixes else fixes)
            refused.location = mixes.location if mixes else program.fixed_at
            raise refused
        if program.writes:
            raise Unlowered(None, "the loop writes a TensorArray")
        pairs = list(zip(program.targets, outputs(graph), strict=True))
        timed = self._classify()
        self._hoist(timed, [node for _, node in pairs])
        needed = self._needed([node for _, node in pairs if isinstance(node, Node)])
        found.nodes = [node for node in graph.nodes if node in needed]
        by_target = {(target.kind, target.place): node for target, node in pairs}
        for node, source in self.source_of.items():
            if source.kind in INVARIANT or source.kind in ("time", "finished"):
                continue
            if source.kind.endswith(" array"):
                raise Unlowered(node, "the loop carries a TensorArray")
            by_row = bool(value(node).ndim) and (made.locality is None or made.locality.of(node) is not None)
            after = by_target.get((source.kind, source.place), node)
            if not isinstance(after, Node):
                raise Unlowered(node, "its next value is a constant")
            found.leaves.append(CarriedLeaf(node, source, after, found.width(node), by_row))
        found.outputs = [(target, node) for target, node in pairs if target.kind in ("finished", "past", "emit", "stored")]
        for node in found.nodes:
            self._check(node)
        for leaf in found.leaves:
            self._check_dtype(leaf.node)
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
            elif node.op == "get_attr" or node.target in _SIZES:
                invariant.add(node)
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
                known = node.target in RULES or node.target in TABLE or node.target in _SIZES
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
        if node.target is aten.mm.default:
            left, weight = node.args
            inner = self.found.width(left)
            if weight not in self.found.invariant or left in self.found.invariant:
                raise Unlowered(node, "a product of two things that are made in a step, or with the weight on the left")
            if inner is not None:
                if not value(node).dtype.is_floating_point:
                    raise Unlowered(node, "a product of integers")
                columns = shape(weight)[1]
                self.found.products[node] = Product(node, left, weight, inner, int(columns))  # type: ignore[arg-type]
        elif node.target is aten.argmax.default:
            dim = node.args[1] if len(node.args) > 1 else None
            source = node.args[0]
            if width is not None or self.found.width(source) is None or dim is None:
                raise Unlowered(node, "an argmax over something else than the columns of a vector")
            if not value(source).dtype.is_floating_point:
                raise Unlowered(node, "an argmax of integers")
            self.found.argmaxes.append(node)
        elif node.target not in RULES and node.target not in TABLE:
            raise Unlowered(node, "the persistent kernel has no rule for it")

    def _check_dtype(self, node: Node) -> None:
        dtype = value(node).dtype
        if dtype not in types.REGISTERS:
            raise Unlowered(node, f"{str(dtype).removeprefix('torch.')} numbers")


def moves(node: Node) -> bool:
    """Whether a node asks its operands for other columns than its own."""
    return node.target in MOVES
