"""Rows that are at steps of their own. In: a step and what of it is the same for all rows, such as the time; out: the step with a value of
that for each row.

A value ``[*S]`` that depends on it becomes ``[B, *S]``; where it meets a value of rows its batch goes where theirs is. Comparisons are
made row by row, ``x[time]`` becomes a gather, a draw takes the row's own time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import sympy
import torch
from torch.fx import Graph, Node

from ..capture import ops
from .graph import aten, call, fake_mode, outputs, placeholders, value
from .locality import FILLS, POINTWISE, Locality, Mixes, shape

_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_CONVERSIONS = (aten._to_copy.default, torch.ops.prims.convert_element_type.default)
_KEEP = (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, *_CONVERSIONS)  # no operand is converted to another's dtype


def per_row(graph: Graph, given: Iterable[Node], batch: Any, locality: Locality) -> dict[Node, Node]:
    """Change a step in place; what depends on the given placeholders, and belongs to no row, gets a value for each row.

    Args:
        graph: a step.
        given: placeholders of no row; they become ``[B, *S]``.
        batch: the batch size, as a size of the graph.
        locality: of the graph as it is.

    Returns:
        The node ``[B, *S]`` of each value that has become one.

    Raises:
        Mixes: of a node that has no value for each row.
    """
    return _PerRow(graph, batch, locality).changed(list(given))


class _PerRow:
    def __init__(self, graph: Graph, batch: Any, locality: Locality) -> None:
        self.graph, self.batch, self.locality = graph, batch, locality
        self.lifted: dict[Node, Node] = {}
        self.size: Any = None  # the batch size as a node, or a number
        self.ids: Node | None = None

    def changed(self, given: list[Node]) -> dict[Node, Node]:
        graph, first = self.graph, next(node for node in self.graph.nodes if node.op != "placeholder")
        for node in given:
            made = value(node)
            with fake_mode(graph):
                node.meta["val"] = torch.empty((self.batch, *made.shape), dtype=made.dtype, device=made.device)
            self.lifted[node] = node
        if not given:
            return {}
        with graph.inserting_before(first):
            self.size = call(graph, aten.sym_size.int, given[0], 0)
        for node in list(graph.nodes):
            if node.op == "call_function" and any(operand in self.lifted for operand in node.all_input_nodes) and node is not self.size:
                with graph.inserting_before(node):
                    self._change(node)
        return self.lifted

    def _change(self, node: Node) -> None:
        if node.target is aten.sym_size.int:
            made = self._of(node)
            node.args = (made, node.args[1] % (value(made).ndim - 1) + 1)
        elif self.locality.of(node) is None:
            rule = _rule(node)
            if rule is None:
                raise Mixes(node, "has no value for each row of what is at another step in each row")
            made = rule(self, node)
            if value(made).dtype != value(node).dtype:
                raise Mixes(node, "would have another dtype with a value for each row")
            self.lifted[node] = made
        else:
            self._meet(node)

    def _meet(self, node: Node) -> None:
        """A value of rows that takes one of none: that gets its batch where the rows are."""
        if node.target is ops.read:
            made = self._read_of_rows(node)
        elif node.target is ops.draw and node.args[0] not in self.lifted:
            operands: list[Any] = [self.lifted.get(operand, operand) if isinstance(operand, Node) else operand for operand in node.args]
            made = call(self.graph, ops.draw, *operands, like=node)
        elif node.target is aten.expand.default or _is_pointwise(node):
            made = self._pointwise(node)
        elif node.target in FILLS:
            return
        else:
            raise Mixes(node, "takes what is at another step in each row")
        if value(made).dtype != value(node).dtype or shape(made) != shape(node):
            raise Mixes(node, "would have another dtype or shape with a value for each row")
        node.replace_all_uses_with(made)
        self.locality.rows[made] = self.locality.of(node)

    # Rules of values of no row.

    def _pointwise(self, node: Node) -> Node:
        """An operator whose operands are broadcast."""
        rank, rows = len(shape(node)), self.locality.of(node)
        tensors = [value(operand) for operand in node.args if isinstance(operand, Node) and isinstance(value(operand), torch.Tensor)]
        originals = [value(operand) if operand not in self.lifted else self._original(operand) for operand in node.all_input_nodes]
        common = torch.result_type(*originals) if len(tensors) == 2 and node.target not in _KEEP else None

        def aligned(operand: Any) -> Any:
            if operand not in self.lifted:
                return operand
            made = self.lifted[operand]
            if common is not None and value(made).dtype != common:  # a number of one element takes the dtype of what it meets
                made = call(self.graph, aten._to_copy.default, made, dtype=common, like=node)
            sizes = list(value(made).shape[1:])
            sizes = [1] * (rank - len(sizes)) + sizes
            at = 0 if rows is None else rows.dim
            if rows is not None:
                if rows.inner != 1 or sizes[at] != 1:
                    raise Mixes(node, "joins what is at another step in each row with a dimension of no row")
                del sizes[at]
            if sizes != list(value(made).shape[1:]):
                made = call(self.graph, aten.reshape.default, made, [self.size, *self._sizes(sizes, node)], like=node)
            if at:
                made = call(self.graph, aten.permute.default, made, [*range(1, at + 1), 0, *range(at + 1, len(sizes) + 1)], like=node)
            return made

        if node.target is aten.expand.default:
            wanted = list(node.args[1]) if rows is not None else [self.size, *node.args[1]]  # type: ignore[misc,arg-type]
            return call(self.graph, aten.expand.default, aligned(node.args[0]), wanted, like=node)
        return call(self.graph, node.target, *[aligned(operand) for operand in node.args], like=node, **node.kwargs)

    def _original(self, operand: Node) -> Any:
        """A tensor like the one that there was for all rows."""
        made = value(self.lifted[operand])
        with fake_mode(self.graph):
            return torch.empty(made.shape[1:], dtype=made.dtype, device=made.device)

    def _sizes(self, sizes: list[Any], node: Node) -> list[Any]:
        if any(isinstance(size, torch.SymInt) for size in sizes):
            raise Mixes(node, "has a size that is not known, and another step in each row")
        return sizes

    def _view(self, node: Node) -> Node:
        return call(self.graph, aten.reshape.default, self._of(node), [self.size, *self._sizes(list(value(node).shape), node)], like=node)

    def _permute(self, node: Any) -> Node:
        rank = len(shape(node))
        order = list(range(rank))
        if node.target is aten.permute.default:
            order = [dim % rank for dim in node.args[1]]
        elif rank == 2:
            order = [1, 0]
        return call(self.graph, aten.permute.default, self._of(node), [0, *[dim + 1 for dim in order]], like=node)

    def _along(self, node: Any) -> Node:
        """Of one dimension, the second argument."""
        rank = value(self._of(node)).ndim - 1
        return call(self.graph, node.target, self._of(node), node.args[1] % rank + 1, *node.args[2:], like=node, **node.kwargs)

    def _reduced(self, node: Any) -> Node:
        """Over some dimensions, or all."""
        operand = self._of(node)
        rank = value(operand).ndim - 1
        if rank == 0:  # one element
            return call(self.graph, aten._to_copy.default, operand, dtype=value(node).dtype, like=node)
        target, given = _OVER_ALL.get(node.target, node.target), node.args[1] if len(node.args) > 1 else ()
        dims = [given] if isinstance(given, int) else list(given)
        moved = [dim % rank + 1 for dim in dims] or list(range(1, rank + 1))
        return call(self.graph, target, operand, moved, *node.args[2:], like=node, **node.kwargs)

    def _embedding(self, node: Any) -> Node:
        if node.args[0] in self.lifted:
            raise Mixes(node, "looks up in what is at another step in each row")
        return call(self.graph, aten.embedding.default, node.args[0], self.lifted[node.args[1]], like=node)

    def _mm(self, node: Any) -> Node:
        left, right = node.args
        if right in self.lifted:
            raise Mixes(node, "multiplies with what is at another step in each row")
        made = self.lifted[left]
        many, inner = value(made).shape[1:]
        if many == 1:
            flat = call(self.graph, aten.reshape.default, made, [self.size, inner], like=node)
            product = call(self.graph, aten.mm.default, flat, right, like=node)
            return call(self.graph, aten.reshape.default, product, [self.size, 1, value(node).shape[1]], like=node)
        raise Mixes(node, "multiplies several rows of what is at another step in each row of the batch")

    def _read(self, node: Any) -> Node:
        """``x[i]`` of an x of no row."""
        x, index, dim = node.args
        if index not in self.lifted:
            return call(self.graph, ops.read, self.lifted[x], index, dim + 1, like=node)
        place = self._within(x, index, dim, node)
        if x in self.lifted:
            if dim:
                raise Mixes(node, "looks up in another dimension than the first of what is at another step in each row")
            return call(self.graph, aten.index.Tensor, self.lifted[x], [self._row_ids(node), place], like=node)
        made = call(self.graph, aten.index_select.default, x, dim, place, like=node)
        rank = value(made).ndim
        if dim:
            made = call(self.graph, aten.permute.default, made, [dim, *[other for other in range(rank) if other != dim]], like=node)
        return made

    def _read_of_rows(self, node: Any) -> Node:
        """``x[i]`` of an x of rows: a gather."""
        x, index, dim = node.args
        rows = self.locality.of(x)
        if index not in self.lifted or x in self.lifted or rows is None or rows.inner != 1 or abs(rows.dim - dim) != 1:
            raise Mixes(node, "looks up step by step along a dimension that is not beside the batch")
        indices: list[Node | None] = [None] * min(rows.dim, dim)
        pair = [self._row_ids(node), self._within(x, index, dim, node)]
        return call(self.graph, aten.index.Tensor, x, [*indices, *(pair if rows.dim < dim else pair[::-1])], like=node)

    def _within(self, x: Node, index: Node, dim: int, node: Node) -> Node:
        """The places that `ops.read` looks at: past the end the last one, before the front the first one."""
        at = call(self.graph, aten._to_copy.default, self.lifted[index], dtype=torch.int64, like=node)
        x, dim = (self.lifted[x], dim + 1) if x in self.lifted else (x, dim)
        extent = value(x).shape[dim]
        size: Any = extent if isinstance(extent, int) else call(self.graph, aten.sym_size.int, x, dim, like=node)
        last: Any = extent - 1 if isinstance(extent, int) else self._minus_one(size, node)
        from_end = call(self.graph, aten.add.Tensor, at, size, like=node)
        at = call(self.graph, aten.where.self, call(self.graph, aten.lt.Scalar, at, 0, like=node), from_end, at, like=node)
        return call(self.graph, aten.clamp.default, at, 0, last, like=node)

    def _minus_one(self, size: Node, node: Node) -> Node:
        made = self.graph.call_function(operator.sub, (size, 1))
        made.meta["val"] = value(size) - 1
        if "stack_trace" in node.meta:
            made.meta["stack_trace"] = node.meta["stack_trace"]
        return made

    def _row_ids(self, node: Node) -> Node:
        device = value(self.lifted[next(iter(self.lifted))]).device
        return call(self.graph, aten.arange.default, self.size, dtype=torch.int64, device=device, like=node)

    def _fill(self, node: Any) -> Node:
        operands = [self.lifted.get(operand, operand) for operand in node.args]
        if node.target in (aten.full_like.default, aten.zeros_like.default, aten.ones_like.default):
            return call(self.graph, node.target, *operands, like=node, **node.kwargs)
        if node.target is aten.expand.default:
            return self._pointwise(node)
        raise Mixes(node, "is filled for what is at another step in each row")

    def _of(self, node: Any) -> Node:
        return self.lifted[node.args[0]]


_Rule = Callable[[_PerRow, Node], Node]
_OVER_ALL = {
    aten.sum.default: aten.sum.dim_IntList, aten.mean.default: aten.mean.dim,
    aten.any.default: aten.any.dims, aten.all.default: aten.all.dims,
    aten.max.default: aten.amax.default, aten.min.default: aten.amin.default,
}  # fmt: skip
_RULES: dict[Any, _Rule] = {
    **dict.fromkeys([*_VIEWS, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims], _PerRow._view),
    **dict.fromkeys([aten.permute.default, aten.t.default], _PerRow._permute),
    **dict.fromkeys([aten.select.int, aten.slice.Tensor], _PerRow._along),
    **dict.fromkeys([*_OVER_ALL, aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.any.dims, aten.all.dims],
                    _PerRow._reduced),
    aten.embedding.default: _PerRow._embedding, aten.mm.default: _PerRow._mm, ops.read: _PerRow._read,
}  # fmt: skip


def _is_pointwise(node: Node) -> bool:
    return (torch.Tag.pointwise in getattr(node.target, "tags", ()) or node.target in POINTWISE) and node.target not in FILLS


def _rule(node: Node) -> _Rule | None:
    if node.target in FILLS:
        return _PerRow._fill
    return _RULES.get(node.target) or (_PerRow._pointwise if _is_pointwise(node) else None)


def depends_on_place(graph: Graph, locality: Locality) -> Node | None:
    """A node that makes something of where a row stands in the batch, other than to find what is the row's own."""
    for node in graph.nodes:
        if node in locality.row_ids:
            for user in node.users:
                indices: Any = user.args[1] if user.target in (aten.index.Tensor, aten.index_put.default) else ()
                if user not in locality.row_ids and node not in indices and user.target is not aten.sym_size.int:
                    found: Node = user
                    return found
    return None


def batch_of(graph: Graph, expression: sympy.Expr) -> Any:
    """The batch size as a size of the graph's tensors."""
    for node in placeholders(graph):
        for size, wanted in zip(value(node).shape, shape(node), strict=True):
            if wanted == expression:
                return size
    raise LookupError(f"no input of {len(outputs(graph))} outputs has the batch size {expression}")
