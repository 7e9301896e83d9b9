"""Where the rows of a batch are in a step. In: a graph and the symbol of its batch size; out: for each node the dimension of its rows, or
the node that mixes rows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sympy
import torch
from torch.fx import Graph, Node

from ..capture import ops
from ..capture.program import Program
from ..capture.sizes import expression
from .graph import aten, location, operator_name, value


@dataclass(frozen=True)
class Rows:
    """Which dimension of a tensor is the batch.

    Attributes:
        dim: its place.
        inner: how many consecutive entries of that dimension belong to one row: 1, or more where another dimension was flattened into it.
    """

    dim: int
    inner: Any = 1


class Mixes(Exception):
    """A node whose result for one row depends on other rows.

    Attributes:
        reason: which operator, and how.
        location: ``file:line`` of the user's code.
    """

    def __init__(self, node: Node, how: str) -> None:
        super().__init__(f"{operator_name(node)} {how}")
        self.reason = str(self)
        self.location = location(node)


def shape(node: Any) -> list[sympy.Expr]:
    """The sizes of what a node makes, as expressions."""
    return [expression(size) for size in value(node).shape]


class Locality:
    """The rows of each node.

    Attributes:
        rows: of each node that makes a tensor: where its batch is; None: it belongs to no row.
        row_ids: the nodes whose element b along the batch is b itself.
        over_rows: the nodes that make one value of all rows.
    """

    def __init__(
        self,
        program: Program,
        graph: Graph,
        batch: sympy.Expr,
        chosen: Mapping[Node, int | None] = MappingProxyType({}),
        together: bool = False,
    ) -> None:
        """Raises `Mixes`.

        Args:
            chosen: which dimension of these placeholders and constants is the batch, or that none is.
            together: a node may make one value of all rows.
        """
        self.batch, self.chosen, self.together = batch, chosen, together
        self.over_rows: set[Node] = set()
        self.rows: dict[Node, Rows | None] = {}
        self.row_ids: set[Node] = set()
        sources = iter(program.sources)
        for node in graph.nodes:
            if node.op == "placeholder":
                self.rows[node] = self._of_placeholder(node, next(sources).kind)
            elif node.op == "get_attr":
                dim = chosen.get(node)
                self.rows[node] = None if dim is None else Rows(dim)
            elif node.op == "call_function" and isinstance(node.meta.get("val"), (torch.Tensor, tuple, list)):
                self.rows[node] = self._of_call(node)

    def of(self, node: Any) -> Rows | None:
        return self.rows.get(node) if isinstance(node, Node) else None

    def _of_placeholder(self, node: Node, kind: str) -> Rows | None:
        if node in self.chosen:
            dim = self.chosen[node]
            return None if dim is None else Rows(dim)
        sizes = shape(node)
        places = [place for place, size in enumerate(sizes) if size == self.batch]
        if len(places) > 1 and kind not in ("tensor", "loop_state"):
            places = [0]
        if len(places) > 1:
            raise Mixes(node, "has the batch size in two dimensions")
        if not places and any(self.batch in size.free_symbols for size in sizes):
            raise Mixes(node, "has a size that depends on the batch size")
        return Rows(places[0]) if places else None

    def _of_call(self, node: Node) -> Rows | None:
        rule = _RULES.get(node.target)
        operands = [operand for operand in node.all_input_nodes if self.rows.get(operand) is not None]
        if rule is not None:
            return rule(self, node)
        if not operands or node.target in _NEW:
            return self._of_made(node) if isinstance(value(node), torch.Tensor) else None
        if torch.Tag.pointwise in getattr(node.target, "tags", ()) or node.target in POINTWISE:
            return self._of_broadcast(node, [operand for operand in node.all_input_nodes if operand in self.rows])
        raise Mixes(node, "is not known to keep rows apart")

    def _of_made(self, node: Node) -> Rows | None:
        """Of tensors of no row a tensor that may have the batch size: a fill."""
        places = [place for place, size in enumerate(shape(node)) if size == self.batch]
        if any(self.batch in size.free_symbols for size in shape(node)) and len(places) != 1:
            raise Mixes(node, "has a size that depends on the batch size")
        if places and node.target not in FILLS and any(operand in self.rows for operand in node.all_input_nodes):
            raise Mixes(node, "is not known to keep rows apart")
        return Rows(places[0]) if places else None

    def _of_broadcast_of_indices(self, node: Node, indices: Sequence[Node]) -> Rows | None:
        rank = max(len(shape(index)) for index in indices)
        found = {Rows(rows.dim + rank - len(shape(index)), rows.inner) for index in indices if (rows := self.rows[index]) is not None}
        if len(found) > 1:
            raise Mixes(node, "joins rows of one index with columns of another")
        return found.pop() if found else None

    def _of_broadcast(self, node: Node, operands: Sequence[Node]) -> Rows | None:
        rank = len(shape(node))
        found: Rows | None = None
        for operand in operands:
            rows = self.rows[operand]
            if rows is None:
                continue
            here = Rows(rows.dim + rank - len(shape(operand)), rows.inner)
            if found is not None and found != here:
                raise Mixes(node, "joins rows of one operand with columns of the other")
            found = here
        if found is not None:
            for operand in operands:
                place = found.dim - (rank - len(shape(operand)))
                if self.rows[operand] is None and place >= 0 and shape(operand)[place] != 1:
                    raise Mixes(node, "joins the batch with a dimension of no row")
        return found


def _operand(node: Node, place: int = 0) -> Node:
    found = node.args[place]
    assert isinstance(found, Node)
    return found


def _dims(node: Node, dims: Any, operand: Node) -> set[int]:
    rank = len(shape(operand))
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return set(range(rank))
    return {dim % rank for dim in ([dims] if isinstance(dims, int) else dims)} if rank else set()


def _argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _like_first(self: Locality, node: Any) -> Rows | None:
    rows = self.of(_operand(node))
    if rows is not None and (rows.dim != 0 or rows.inner != 1):
        raise Mixes(node, "has its batch elsewhere than first")
    return rows


def _reduction(dim_at: int = 1, keepdim_at: int = 2) -> Callable[[Locality, Node], Rows | None]:
    def rule(self: Locality, node: Any) -> Rows | None:
        operand = _operand(node)
        rows = self.of(operand)
        if rows is None:
            return None
        dims = _dims(node, _argument(node, dim_at, "dim"), operand)
        if rows.dim in dims:
            if self.together and rows.inner == 1 and node.target in FOLDS:
                self.over_rows.add(node)
                return None
            raise Mixes(node, "reduces over the batch")
        if _argument(node, keepdim_at, "keepdim", False):
            return rows
        return Rows(rows.dim - sum(dim < rows.dim for dim in dims), rows.inner)

    return rule


def _along(dim_at: int = 1, default: int = -1) -> Callable[[Locality, Node], Rows | None]:
    """Of operators that work along one dimension and keep the shape."""

    def rule(self: Locality, node: Any) -> Rows | None:
        operand = _operand(node)
        rows = self.of(operand)
        dim = _argument(node, dim_at, "dim", default)
        if rows is not None and rows.dim in _dims(node, dim, operand):
            raise Mixes(node, "works along the batch")
        for other in node.all_input_nodes:  # indices and values stand beside their rows
            if other in self.rows and self.of(other) != rows and len(shape(other)) > 0:
                raise Mixes(node, "looks rows up in one another")
        return rows

    return rule


def _view(self: Locality, node: Any) -> Rows | None:
    rows = self.of(_operand(node))
    if rows is None:
        return self._of_made(node)
    before, after = shape(_operand(node)), shape(node)
    if any(size != 1 for size in before[: rows.dim]):
        raise Mixes(node, "reshapes a tensor whose first dimension is not the batch")
    leading = 0
    while leading < len(after) and after[leading] == 1 and self.batch != 1:
        leading += 1
    first = after[leading] if leading < len(after) else sympy.Integer(1)
    inner = sympy.cancel(first / self.batch)
    if self.batch in inner.free_symbols or first == 1 or not (inner.is_integer or inner.is_Integer or inner.free_symbols):
        raise Mixes(node, "reshapes across the batch")
    if first == self.batch:
        return Rows(leading)
    return Rows(leading, inner)


def _permute(self: Locality, node: Any) -> Rows | None:
    operand = _operand(node)
    rows, rank = self.of(operand), len(shape(operand))
    if rows is None:
        return None
    if node.target in (aten.t.default, aten.numpy_T.default):
        order = list(reversed(range(rank)))
    elif node.target == aten.transpose.int:
        order = list(range(rank))
        a, b = (int(dim) % rank for dim in node.args[1:3])
        order[a], order[b] = order[b], order[a]
    else:
        order = [dim % rank for dim in node.args[1]]
    place = order.index(rows.dim)
    if rows.inner != 1 and place != rows.dim:
        raise Mixes(node, "moves a dimension that the batch was flattened into")
    return Rows(place, rows.inner)


def _unsqueeze(self: Locality, node: Any) -> Rows | None:
    rows = self.of(_operand(node))
    if rows is None:
        return None
    dim = node.args[1] % len(shape(node))
    return Rows(rows.dim + (dim <= rows.dim), rows.inner)


def _squeeze(self: Locality, node: Any) -> Rows | None:
    operand = _operand(node)
    rows = self.of(operand)
    if rows is None:
        return None
    named = node.args[1] if len(node.args) > 1 else None
    dims = {dim for dim in _dims(node, named, operand) if shape(operand)[dim] == 1}
    return Rows(rows.dim - sum(dim < rows.dim for dim in dims), rows.inner)


def _select(self: Locality, node: Any) -> Rows | None:
    operand = _operand(node)
    rows = self.of(operand)
    if rows is None:
        return None
    dim = _argument(node, 2 if node.target is ops.read else 1, "dim", 0) % len(shape(operand))
    if dim == rows.dim:
        raise Mixes(node, "picks one row for all")
    return Rows(rows.dim - (dim < rows.dim), rows.inner)


def _slice(self: Locality, node: Any) -> Rows | None:
    operand = _operand(node)
    rows = self.of(operand)
    if rows is not None and (_argument(node, 1, "dim", 0) % len(shape(operand))) == rows.dim and shape(node) != shape(operand):
        raise Mixes(node, "cuts a piece out of the batch")
    return rows


def _window(self: Locality, node: Any) -> Rows | None:
    """``x`` with something else in a window of one dimension."""
    x, new = node.args[:2]
    rows, written = self.of(x), self.of(new)
    dim = _argument(node, 2, "dim", 0) % len(shape(x))
    if rows is not None and dim == rows.dim and shape(x) != shape(new):
        raise Mixes(node, "writes some rows only")
    gone = node.target is aten.select_scatter.default
    wanted = None if rows is None else Rows(rows.dim - (gone and dim < rows.dim), rows.inner)
    if written != wanted:
        raise Mixes(node, "writes into one another what belongs to rows and what does not")
    return rows


def _flip(self: Locality, node: Any) -> Rows | None:
    rows = self.of(_operand(node))
    if rows is not None and rows.dim in _dims(node, node.args[1], _operand(node)):
        raise Mixes(node, "reverses the batch")
    return rows


def _expand(self: Locality, node: Any) -> Rows | None:
    rows = self.of(_operand(node))
    added = len(shape(node)) - len(shape(_operand(node)))
    if rows is not None:
        return Rows(rows.dim + added, rows.inner)
    places = [place for place, size in enumerate(shape(node)) if size == self.batch]
    old = shape(_operand(node))
    new = [place for place in places if place < added or old[place - added] == 1]
    return Rows(new[0]) if new else None


def _cat(self: Locality, node: Any) -> Rows | None:
    parts: Any = node.args[0]
    dim = _argument(node, 1, "dim", 0)
    found = self._of_broadcast(node, parts)
    if found is not None and dim % len(shape(node)) == found.dim:
        raise Mixes(node, "joins along the batch")
    for part in parts:
        if found is not None and self.rows[part] is None:
            raise Mixes(node, "joins rows with what belongs to no row")
    return found


def _mm(self: Locality, node: Any) -> Rows | None:
    a, b = (self.of(operand) for operand in node.args[-2:])
    if b is None:
        if a is not None and a.dim != 0:
            raise Mixes(node, "sums over the batch")
        return a
    if a is None and b.dim == 1:
        return b
    raise Mixes(node, "multiplies rows with rows")


def _bmm(self: Locality, node: Any) -> Rows | None:
    a, b = (self.of(operand) for operand in node.args[-2:])
    if a != b or (a is not None and a.dim != 0):
        raise Mixes(node, "multiplies matrices that do not belong to the same row")
    return a


def _embedding(self: Locality, node: Any) -> Rows | None:
    if self.of(node.args[0]) is not None:
        raise Mixes(node, "looks up in what belongs to rows")
    return self.of(node.args[1])


def _index_select(self: Locality, node: Any) -> Rows | None:
    x, index = self.of(node.args[0]), self.of(node.args[2])
    dim = node.args[1] % len(shape(node.args[0]))
    if x is None:
        return None if index is None else Rows(dim)
    if index is not None or x.dim == dim:
        raise Mixes(node, "looks rows up in one another")
    return x


def _index(self: Locality, node: Any) -> Rows | None:
    """``x[i, j, ...]``: of a row if the batch's dimension is indexed by the row itself, or by nothing."""
    x = _operand(node)
    rows = self.of(x)
    indices: list[Node | None] = list(node.args[1])
    given = [(place, index) for place, index in enumerate(indices) if index is not None]
    at = self._of_broadcast_of_indices(node, [index for _, index in given])
    first, rank = given[0][0], max(len(shape(index)) for _, index in given)
    adjacent = [place for place, _ in given] == list(range(first, first + len(given)))
    start = first if adjacent else 0
    if rows is None:
        return None if at is None else Rows(start + at.dim, at.inner)
    for place, index in given:
        if place == rows.dim:
            if index not in self.row_ids or at is None:
                raise Mixes(node, "looks rows up by an index")
            return Rows(start + at.dim)
    if at is not None:
        raise Mixes(node, "joins rows of the index with rows of what is indexed")
    before = sum(1 for place in range(rows.dim) if place not in [p for p, _ in given])
    return Rows(before + (rank if not adjacent or rows.dim > first else 0), rows.inner)


def _index_put(self: Locality, node: Any) -> Rows | None:
    x = _operand(node)
    rows = self.of(x)
    indices: list[Node | None] = list(node.args[1])
    if rows is None:
        if any(self.of(operand) is not None for operand in node.all_input_nodes):
            raise Mixes(node, "writes rows into what belongs to none")
        return None
    if len(indices) > rows.dim and indices[rows.dim] is not None:
        if indices[rows.dim] in self.row_ids:
            return rows
        raise Mixes(node, "writes rows into one another")
    given = [(place, index) for place, index in enumerate(indices) if index is not None]
    if any(self.of(index) is not None for _, index in given):
        raise Mixes(node, "writes to places of one row in all rows")
    new = node.args[2]
    written = self.of(new)
    first, rank = given[0][0], max(len(shape(index)) for _, index in given)
    adjacent = [place for place, _ in given] == list(range(first, first + len(given)))
    before = rows.dim - sum(1 for place, _ in given if place < rows.dim)
    at = before + (rank if not adjacent or rows.dim > first else 0)
    from_the_back = len(shape(x)) - len(given) + rank - at
    if written is not None and written.dim != len(shape(new)) - from_the_back:
        raise Mixes(node, "writes rows into one another")
    if written is None and len(shape(new)) >= from_the_back and shape(new)[-from_the_back] != 1:
        raise Mixes(node, "writes what belongs to no row into rows one by one")
    return rows


def _arange(self: Locality, node: Any) -> Rows | None:
    rows = self._of_made(node)
    if rows is not None:
        if node.target == aten.arange.start_step and node.args[2:] not in ((), (1,)):
            raise Mixes(node, "counts over the batch in other steps than 1")
        if node.target != aten.arange.default and node.args[0] != 0:
            raise Mixes(node, "counts over the batch from another number than 0")
        self.row_ids.add(node)
    return rows


def _keeps_ids(rule: Callable[[Locality, Node], Rows | None]) -> Callable[[Locality, Node], Rows | None]:
    def wrapped(self: Locality, node: Any) -> Rows | None:
        rows = rule(self, node)
        if node.args and node.args[0] in self.row_ids:
            self.row_ids.add(node)
        return rows

    return wrapped


# Reductions whose parts reduce in the same way.
FOLDS = {
    aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.amax.default, aten.max.default, aten.amin.default,
    aten.min.default, aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims,
}  # fmt: skip
FILLS = {
    aten.full.default, aten.zeros.default, aten.ones.default, aten.empty.memory_format, aten.scalar_tensor.default,
    aten.full_like.default, aten.zeros_like.default, aten.ones_like.default, aten.new_zeros.default, aten.new_full.default,
    aten.new_ones.default,
    aten.expand.default, aten.repeat.default,
}  # fmt: skip
_NEW = {aten.new_zeros.default, aten.new_full.default, aten.new_ones.default}  # of what they are made from only the kind counts
POINTWISE = {
    aten._to_copy.default, aten.clone.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default,
    aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.masked_fill.Scalar, aten.masked_fill.Tensor,
    aten.full_like.default, aten.zeros_like.default, aten.ones_like.default, aten.fill.Scalar, aten.fill.Tensor, aten.copy.default,
    aten.empty_like.default, torch.ops.prims.convert_element_type.default,
    aten.floor_divide.default, aten.floor_divide.Scalar, aten.rsub.Tensor, aten.rsub.Scalar,
    aten.__and__.Tensor, aten.__and__.Scalar, aten.__or__.Tensor, aten.__or__.Scalar,
}  # fmt: skip

_RULES: dict[Any, Callable[[Locality, Node], Rows | None]] = {
    **dict.fromkeys([aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.argmax.default, aten.argmin.default,
                     aten.any.dim, aten.any.dims, aten.all.dim, aten.all.dims, aten.prod.dim_int, aten.logsumexp.default], _reduction()),
    **dict.fromkeys([aten.sum.default, aten.mean.default, aten.any.default, aten.all.default, aten.prod.default,
                     aten.max.default, aten.min.default],
                    _reduction(99, 99)),
    aten.var.correction: _reduction(1, 99),
    **dict.fromkeys([aten.max.dim, aten.min.dim], _reduction()),
    aten.sort.default: _along(), aten.sort.stable: _along(99), aten.topk.default: _along(2),
    operator.getitem: lambda self, node: self.of(_operand(node)),
    **dict.fromkeys([aten._softmax.default, aten._log_softmax.default, aten.cumsum.default, aten.cumprod.default,
                     aten.gather.default, aten.scatter.src, aten.scatter.value, aten.scatter_add.default], _along()),
    **dict.fromkeys([aten.view.default, aten._unsafe_view.default, aten.reshape.default], _keeps_ids(_view)),
    **dict.fromkeys([aten.permute.default, aten.t.default, aten.transpose.int, aten.numpy_T.default], _permute),
    aten.unsqueeze.default: _keeps_ids(_unsqueeze),
    **dict.fromkeys([aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims], _keeps_ids(_squeeze)),
    aten.expand.default: _keeps_ids(_expand),
    aten.select.int: _select, ops.read: _select,
    aten.slice.Tensor: _slice, aten.flip.default: _flip, aten.slice_scatter.default: _window, aten.select_scatter.default: _window,
    aten.cat.default: _cat,
    **dict.fromkeys([aten.mm.default], _mm),
    aten.bmm.default: _bmm,
    aten.embedding.default: _embedding, aten.index_select.default: _index_select,
    aten.index.Tensor: _index, aten.index_put.default: _index_put,
    **dict.fromkeys([aten.arange.default, aten.arange.start, aten.arange.start_step], _arange),
    **dict.fromkeys([ops.draw, ops.quiet, ops.guard, ops.within], _like_first),
    ops.table: lambda self, node: None,
}  # fmt: skip
