"""Products in one form. In: a step graph whose products are addmm, linear, bmm, mv, of concatenations, either way round; out: `aten.mm`.

The canonical product is ``mm(x, w)`` of the rows x ``[M, K]`` and a matrix w ``[K, N]``, and what is added to it is added outside.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import partial
from typing import Any

from torch.fx import Graph, Node

from .graph import aten, call, placeholders, value
from .products import depends_on, is_half, repeated_matrix
from .shapes import VIEWS, Rule, argument, flattened, rewrite, same, shape, sizes, static, transposed, viewed
from .simplify import simplify


def canonicalise(graph: Graph, weights: Set[Node], split: bool = False, *, differentiable: bool = False, wide: bool = False) -> int:
    """All passes of this module and `simplify`, until none finds anything; how many changes they made.

    Args:
        weights: the placeholders that are closed over: a product with them has the other operand's rows.
        split: also `products_of_slices`.
        differentiable: as `simplify` has it.
        wide: whoever runs the graph keeps sums of half precision in float32, so that a sum in two parts rounds no more than one.
    """
    total = simplify(graph, differentiable=differentiable)
    while changes := _canonicalise_once(graph, weights, split, wide):
        total += changes + simplify(graph, differentiable=differentiable)
    return total


def _canonicalise_once(graph: Graph, weights: Set[Node], split: bool, wide: bool) -> int:
    changes = products_from_addmm(graph, wide) + products_from_bmm(graph) + products_of_transposes(graph, weights)
    return changes + products_of_concatenations(graph, wide) + (products_of_slices(graph) if split else 0)


# Sums outside.


def products_from_addmm(graph: Graph, wide: bool = False) -> int:
    """Make addmm, addmv, addbmm-like products and linear a product and a sum.

    Of half precision, whose sum is rounded once, they stay unless sums are kept ``wide``.
    """
    return rewrite(graph, _FUSED_SUMS[wide])


def _fused_sum(target: Any, wide: bool) -> Rule:
    def rule(node: Node) -> Node | None:
        if is_half(node) and not wide:
            return None
        bias, one, other = node.args
        graph, beta, alpha = node.graph, node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
        made = _scaled(graph, call(graph, target, one, other, like=node), alpha, node)
        if beta == 0:
            return made  # torch leaves the bias unread then, NaN and all
        return call(graph, aten.add.Tensor, made, _scaled(graph, bias, beta, node), like=node)

    return rule


def _scaled(graph: Graph, x: Any, factor: Any, like: Node) -> Node:
    return x if factor == 1 else call(graph, aten.mul.Tensor, x, factor, like=like)


def _linear(wide: bool, node: Node) -> Node | None:
    x, weight, bias = argument(node, 0, "input"), argument(node, 1, "weight"), argument(node, 2, "bias")
    if len(shape(weight)) != 2 or (bias is not None and is_half(node) and not wide):
        return None
    graph = node.graph
    made = call(graph, aten.mm.default, _rows(graph, x, node), transposed(graph, weight, node), like=node)
    made = viewed(graph, made, sizes(graph, shape(node), [x, weight]), node)
    return made if bias is None else call(graph, aten.add.Tensor, made, bias, like=node)


def _rows(graph: Graph, x: Node, like: Node) -> Node:
    return x if len(shape(x)) == 2 else flattened(graph, x, like)


_FUSED_SUMS: dict[bool, dict[Any, Sequence[Rule]]] = {
    wide: {
        aten.addmm.default: [_fused_sum(aten.mm.default, wide)],
        aten.addmv.default: [_fused_sum(aten.mv.default, wide)],
        aten.baddbmm.default: [_fused_sum(aten.bmm.default, wide)],
        aten.linear.default: [partial(_linear, wide)],
    }
    for wide in (False, True)
}


# Products of more or fewer dimensions.


def products_from_bmm(graph: Graph) -> int:
    """Make batched products with one matrix, and products with a vector, products of matrices."""
    return rewrite(graph, {aten.bmm.default: [_bmm_with_one_matrix], aten.mv.default: [_mv], aten.dot.default: [_dot]})


def _bmm_with_one_matrix(node: Node) -> Node | None:
    graph = node.graph
    x, y = _operands(node)
    batch, m, n = shape(node)
    matrix = repeated_matrix(y, node)
    if matrix is not None:
        made = call(graph, aten.mm.default, flattened(graph, x, node), matrix, like=node)
        return viewed(graph, made, sizes(graph, [batch, m, n], [x, y]), node)
    matrix = repeated_matrix(x, node)
    if matrix is None:
        return None
    rows = flattened(graph, call(graph, aten.permute.default, y, [0, 2, 1], like=node), node)
    made = call(graph, aten.mm.default, rows, transposed(graph, matrix, node), like=node)
    made = viewed(graph, made, sizes(graph, [batch, n, m], [x, y]), node)
    return call(graph, aten.permute.default, made, [0, 2, 1], like=node)


def _mv(node: Node) -> Node:
    graph = node.graph
    matrix, vector = _operands(node)
    column = call(graph, aten.unsqueeze.default, vector, 1, like=node)
    return call(graph, aten.squeeze.dim, call(graph, aten.mm.default, matrix, column, like=node), 1, like=node)


def _dot(node: Node) -> Node:
    graph = node.graph
    one, other = _operands(node)
    row, column = call(graph, aten.unsqueeze.default, one, 0, like=node), call(graph, aten.unsqueeze.default, other, 1, like=node)
    return viewed(graph, call(graph, aten.mm.default, row, column, like=node), [], node)


def _operands(node: Node) -> tuple[Node, Node]:
    return node.args[0], node.args[1]  # type: ignore[return-value]


# Concatenations.


def products_of_concatenations(graph: Graph, wide: bool = False) -> int:
    """Make a product of a concatenation the sum of its parts' products. Of half precision it stays unless sums are kept ``wide``."""
    return rewrite(graph, {aten.mm.default: [partial(_of_concatenation, wide)]})


def _of_concatenation(wide: bool, node: Node) -> Node | None:
    graph = node.graph
    x, w = _operands(node)
    parts = [] if is_half(node) and not wide else _column_parts(x)
    dim = 0 if x.target is aten.t.default else -1
    lengths = [static(shape(part)[dim]) for part in parts]
    if not any(lengths) or None in lengths:
        return None
    total, begin = None, 0
    for part, length in zip(parts, lengths, strict=True):
        assert length is not None
        if length:
            rows = _as_rows(node, part, x)
            own = call(graph, aten.slice.Tensor, w, 0, begin, begin + length, like=node)
            made = call(graph, aten.mm.default, rows, own, like=node)
            total = made if total is None else call(graph, aten.add.Tensor, total, made, like=node)
        begin += length
    return total


def _column_parts(x: Node) -> list[Node]:
    """What is concatenated along the last dimension: of x, of what x is a flat view of, or the other way round of its transpose."""
    source: Any = x.args[0] if x.args else None
    if x.target is aten.cat.default:
        return _concatenated(x, len(shape(x)) - 1)
    if x.target is aten.t.default and source.target is aten.cat.default:
        return _concatenated(source, 0)
    if x.target in VIEWS and source.target is aten.cat.default and shape(source) and same(shape(source)[-1:], shape(x)[-1:]):
        return _concatenated(source, len(shape(source)) - 1)
    return []


def _concatenated(cat: Node, dim: int) -> list[Node]:
    parts: list[Node] = list(cat.args[0])  # type: ignore[arg-type]
    rank, dtype = len(shape(cat)), value(cat).dtype
    whole = argument(cat, 1, "dim", 0) % rank == dim and all(len(shape(part)) == rank and value(part).dtype == dtype for part in parts)
    return parts if whole else []


def _as_rows(node: Node, part: Node, x: Node) -> Node:
    return transposed(node.graph, part, node) if x.target is aten.t.default else _rows(node.graph, part, node)


# Columns.


def products_of_slices(graph: Graph) -> int:
    """Make columns of a product, and of sums with one, products with those columns of the matrix; only where no one needs the whole."""
    return rewrite(graph, {aten.slice.Tensor: [_columns_of_slice], aten.select.int: [_columns_of_selection]})


def _columns_of_slice(node: Node) -> Node | None:
    source: Any = node.args[0]
    dim, begin, end = argument(node, 1, "dim", 0), static(argument(node, 2, "start")), static(argument(node, 3, "end"))
    if dim % len(shape(node)) != 1 or begin is None or end is None or argument(node, 4, "step", 1) != 1:
        return None
    width = static(shape(source)[1])
    if width is None or not 0 <= begin <= end <= width or not _only_columns(source):
        return None
    columns: Node = _columns(source, begin, end, node)
    return columns


def _columns_of_selection(node: Node) -> Node | None:
    """Gates as ``gates.view(B, 4, H)[:, k]``."""
    view: Any = node.args[0]
    if view.target not in VIEWS or len(shape(view)) != 3 or len(shape(view.args[0])) != 2 or node.args[1] not in (1, -2):
        return None
    source: Any = view.args[0]
    count, width, place = static(shape(view)[1]), static(shape(view)[2]), node.args[2]
    if not count or width is None or not isinstance(place, int):
        return None
    if not same(shape(view)[:1], shape(source)[:1]) or not _only_columns(source):
        return None
    begin = place % count * width
    columns: Node = _columns(source, begin, begin + width, node)
    return columns


def _only_columns(source: Node) -> bool:
    """Whether a sum has a product in it, and only columns of it are used: then nothing is computed twice."""
    sums = _sum_of_products(source)
    users = {user for node in sums for user in node.users} - set(sums)
    inside = all(set(node.users) <= set(sums) for node in sums if node is not source)
    return bool(sums) and inside and all(_is_columns(user) for user in users)


def _is_columns(user: Node) -> bool:
    if user.target in VIEWS:
        return len(shape(user)) == 3 and bool(user.users) and all(use.target is aten.select.int for use in user.users)
    return user.target is aten.slice.Tensor and argument(user, 1, "dim", 0) % len(shape(user)) == 1


def _sum_of_products(node: Node) -> list[Node]:
    """The additions and products that a value of two dimensions is the sum of; none if there is no product."""
    if node.target is aten.mm.default:
        return [node]
    if node.target not in _ADDITIONS or value(node).dtype != value(node.args[0]).dtype:
        return []
    found = [inner for operand in node.args[:2] if _has_shape_of(node, operand) for inner in _sum_of_products(operand)]  # type: ignore[arg-type]
    return [node, *found] if found else []


_ADDITIONS = (aten.add.Tensor, aten.sub.Tensor)


def _has_shape_of(node: Node, operand: Any) -> bool:
    return isinstance(operand, Node) and len(shape(node)) == 2 and same(shape(operand), shape(node))


def _columns(node: Any, begin: int, end: int, like: Node) -> Any:
    """The columns of a sum, of a bias, of a product."""
    if not isinstance(node, Node):
        return node
    graph, dims = like.graph, shape(node)
    if not dims or static(dims[-1]) == 1:
        return node
    if node.target is aten.mm.default:
        x, w = _operands(node)
        return call(graph, aten.mm.default, x, call(graph, aten.slice.Tensor, w, 1, begin, end, like=like), like=like)
    if node.target in _ADDITIONS and _sum_of_products(node):
        operands = [_columns(operand, begin, end, like) for operand in node.args[:2]]
        return call(graph, node.target, *operands, like=like, **node.kwargs)
    return call(graph, aten.slice.Tensor, node, len(dims) - 1, begin, end, like=like)


# The other way round.


def products_of_transposes(graph: Graph, weights: Set[Node]) -> int:
    """Make ``mm(w, t(x))`` ``t(mm(x, t(w)))`` where x has the rows.

    It has them where w is made of closed-over tensors (``weights``) and constants only and x is not; where both are carried or both closed
    over, if the size of x along its rows is a symbol and that of w is not.
    """
    carried = depends_on(graph, set(placeholders(graph)) - weights)

    def turned(node: Node) -> Node | None:
        if not _rows_are_right(node, carried):
            return None
        left, right = _operands(node)
        x, w = transposed(graph, right, node), transposed(graph, left, node)
        made = call(graph, aten.mm.default, x, w, like=node)
        result = call(graph, aten.t.default, made, like=node)
        carried.update(new for new in (x, w, made, result) if carried.intersection(new.all_input_nodes))
        return result

    return rewrite(graph, {aten.mm.default: [turned]})


def _rows_are_right(node: Node, carried: set[Node]) -> bool:
    left, right = _operands(node)
    if (left in carried) != (right in carried):
        return right in carried
    return static(shape(left)[0]) is not None and static(shape(right)[1]) is None
