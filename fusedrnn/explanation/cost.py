"""What a step costs. In: the stages of a lowered step, or a graph that cannot be lowered; out: its phases, FLOPs and bytes, from shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch.fx import Graph, Node

from ..capture.program import INVARIANT
from ..lowering import pointwise
from ..lowering.source import LoopSource
from ..optimise.graph import aten, made_of, operator_name, value
from ..optimise.locality import shape
from .facts import Cost, Phase, Product
from .names import THROUGH, Names, Sizes, is_tensor, location, through

_PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}
_POINTWISE = {aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.masked_fill.Scalar, aten.masked_fill.Tensor}
_FREE = {*THROUGH, aten.permute.default, aten.t.default, aten.transpose.int, aten.select.int, aten.slice.Tensor, aten.sym_size.int,
         aten.split.Tensor, aten.split_with_sizes.default, aten.full.default, aten.zeros.default, aten.ones.default, aten.arange.default,
         aten.zeros_like.default, aten.scalar_tensor.default}  # fmt: skip


def is_elementwise(node: Node) -> bool:
    made = node.target in pointwise.TABLE or node.target in _POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ())
    return made and node.target not in _FREE


def _is_other(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target not in _FREE and not is_elementwise(node)


def product(node: Node, left: Node, weight: Node, ahead: bool, names: Names, sizes: Sizes) -> Product:
    *rows, k = sizes.of(left)
    m: int | str = math.prod(int(size) for size in rows) if all(isinstance(size, int) for size in rows) else " x ".join(map(str, rows))
    return Product(m, k, sizes.of(weight)[-1], names.text(weight), ahead, location(node), "" if ahead else _needs(left, names))


def _needs(node: Node, names: Names) -> str:
    """What keeps a product of a node in the step."""
    seen: dict[Node, None] = {}
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen[node] = None
            waiting.extend(reversed(node.all_input_nodes))
    sources = [names.source_of[node] for node in seen if node in names.source_of]
    carried = [names.source(source) for source in sources if source.kind not in (*INVARIANT, "time", "finished")]
    if carried:
        return ", ".join(carried)
    if any(node.target in _PRODUCTS for node in seen):
        return "another product"
    return "a look-up that only a step that runs may make"


def phases(source: LoopSource, names: Names, sizes: Sizes) -> tuple[list[Phase], list[Product]]:
    """The phases of a step, and the products that are made for several steps at once."""
    stages = source.stages
    made = [(p.after, product(p.node, p.left, p.weight, p.ahead, names, sizes)) for p in stages.products]
    products = {p.node for p in stages.products}
    found = []
    for number in range(stages.phases):
        inside = [
            node for node, phase in stages.phase_of.items() if phase == number and node.op == "call_function" and node not in products
        ]
        others = Counter(
            operator_name(node) for node in inside if not is_elementwise(node) and node.target not in _FREE and is_tensor(node)
        )
        found.append(
            Phase(
                [p for after, p in made if after == number - 1 and not p.ahead],
                sum(is_elementwise(node) and bool(shape(node)) for node in inside),
                [name if count == 1 else f"{count} x {name}" for name, count in others.items()],
            )
        )
    return found, [p for _, p in made if p.ahead]


def after(source: LoopSource, names: Names, sizes: Sizes) -> list[Product]:
    """The products of emits that are made after the loop. Their weights are named as in the graph of the step."""
    named = {node.name: node for node in names.source_of}
    found = []
    for module in source.sunk.modules.values():
        for node in module.graph.nodes:
            if node.target in _PRODUCTS:
                left, weight = node.args[-2:]
                of_step = named.get(_matrix(weight).name)
                text = names.text(weight) if of_step is None else names.text(of_step) + (".T" if _matrix(weight) is not weight else "")
                (m, k), n = sizes.of(left), sizes.of(weight)[-1]
                found.append(Product(m, k, n, text, False, location(node), ""))
    return found


def cost(
    graph: Graph, sources: Iterable[Any], state: Iterable[Any], emits: Iterable[Any], sizes: Sizes, ahead: Collection[Node] = (),
    later: Iterable[Product] = (),
) -> Cost | None:  # fmt: skip
    """The cost of a graph; None where a size is not known.

    Args:
        state, emits: the sizes and dtypes of one row's carried state and emit: (sizes, dtype).
        ahead: the products that are made for several steps at once.
        later: those that are made after the loop.
    """
    invariant = made_of(graph, sources, INVARIANT)
    products = elements = before = 0
    weights: dict[Node, int] = {}
    try:
        for node in graph.nodes:
            if node in invariant or node.op != "call_function" or not is_tensor(node):
                continue
            if node.target in _PRODUCTS:
                left, right = node.args[-2:]
                flops = 2 * _count(sizes.of(left)) * int(sizes.of(right)[-1])
                products += flops
                if node in ahead:
                    before += flops
                    continue
                for operand in (left, right):
                    if operand in invariant and len(shape(operand)) == 2:
                        weights[_matrix(operand)] = _bytes(operand, sizes)
            elif is_elementwise(node) and any(size == sizes.batch for size in sizes.of(node)):
                elements += _count(sizes.of(node))
        emitted, carried = (
            sum(_count(sizes.number(size) for size in dims) * dtype.itemsize for dims, dtype in leaves) for leaves in (emits, state)
        )
        behind = sum(2 * int(product.m) * int(product.k) * int(product.n) for product in later)
    except ValueError:  # a size that is still a symbol
        return None
    batch = max(sizes.batch, 1)
    return Cost(
        (products + behind) // batch, before // batch, behind // batch, elements // batch, sum(weights.values()), carried, emitted
    )  # fmt: skip


def _matrix(node: Any) -> Node:
    """What a weight is a view of, so that it counts once."""
    while node.target in (aten.t.default, aten.permute.default, aten.transpose.int):
        node = node.args[0]
    return through(node)  # type: ignore[no-any-return]


def _count(sizes: Iterable[int | str]) -> int:
    return math.prod(int(size) for size in sizes)


def _bytes(node: Node, sizes: Sizes) -> int:
    return _count(sizes.number(size) for size in shape(node)) * int(value(node).dtype.itemsize)
