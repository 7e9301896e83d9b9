"""How one operator of a step graph is written in C++. In: a node and its operands as `Value`s; out: its value. One rule an operator."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch.fx import Node
from torch.utils._sympy.printers import CppPrinter

from ..capture import ops
from ..capture.sizes import expression
from ..optimise.graph import aten, value
from ..optimise.locality import Rows, shape
from . import pointwise
from .block import Block
from .pointwise import cast, computed_in, literal, narrowed, rounded
from .values import Index, Value, linear, read, stored

_printer = CppPrinter()


def size_text(size: Any) -> str:
    """A size as a C expression."""
    expr = sympy.sympify(size if isinstance(size, sympy.Expr) else expression(size))
    return str(int(expr)) if expr.is_Integer else f"({_printer.doprint(expr)})"


class Lowering:
    """One node being lowered.

    Attributes:
        node: the node.
        block: where statements go: within a row's loop, or before it for what belongs to no row.
        operand: gives the `Value` of an operand.
        rows: the `Rows` of a node, None for one of no row.
        row: the C name of the row's number in the batch.
    """

    def __init__(self, node: Node, block: Block, operand: Callable[[Node], Value], rows: Callable[[Any], Rows | None], row: str) -> None:
        self.node: Any = node  # fx types arguments as a union that no rule can use
        self.block, self.operand, self.rows, self.row = block, operand, rows, row

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        args = self.node.args
        return args[place] if len(args) > place else self.node.kwargs.get(name, default)

    def dims_of(self, node: Any) -> tuple[str, ...]:
        """The sizes of one row of what a node makes."""
        return tuple(map(size_text, row_shape(node, self.rows(node))))

    @property
    def dims(self) -> tuple[str, ...]:
        return self.dims_of(self.node)

    @property
    def dtype(self) -> torch.dtype:
        return value(self.node).dtype  # type: ignore[no-any-return]

    def place(self, dim: int, node: Any = None) -> int:
        """A dimension of torch's tensor as a dimension of one row of it."""
        node = self.node if node is None else node
        rank = len(shape(node))
        dim = dim % rank if rank else 0
        rows = self.rows(node)
        return dim - (rows is not None and rows.inner == 1 and dim > rows.dim)

    def kept(self, node: Any) -> Value:
        return self.block.keep(self.operand(node))

    def scalar(self, argument: Any, dtype: torch.dtype) -> str:
        """A Python number, a size or a 0-d tensor as an expression."""
        if isinstance(argument, Node):
            made = value(argument)
            if isinstance(made, torch.Tensor):
                return cast(self.operand(argument).load(()), made.dtype, dtype)
            return f"({computed_in(dtype)})({size_text(made)})"
        if isinstance(argument, torch.SymInt):
            return f"({computed_in(dtype)})({size_text(argument)})"
        return literal(argument, dtype)

    def aligned(self, node: Node, index: Index) -> list[str]:
        """The index of a broadcast operand for an index of the result."""
        dims = self.dims_of(node)
        mine, theirs = self.rows(self.node), self.rows(node)
        index = list(index)
        if mine is not None and mine.inner == 1 and theirs is None:
            # The result's row has no batch dimension; the operand may have one of size 1 in its place.
            full = [*index[: mine.dim], "0", *index[mine.dim :]]
            index = full[len(full) - len(dims) :] if dims else []
        else:
            index = index[len(index) - len(dims) :] if dims else []
        return ["0" if size == "1" else position for position, size in zip(index, dims, strict=True)]

    def read(self, argument: Any, index: Index, dtype: torch.dtype) -> str:
        """An element of a broadcast operand, or a number, as another dtype."""
        if isinstance(argument, Node) and isinstance(value(argument), torch.Tensor):
            return cast(self.operand(argument).load(self.aligned(argument, index)), value(argument).dtype, dtype)
        return self.scalar(argument, dtype)


def row_shape(node: Any, rows: Rows | None) -> list[Any]:
    """The sizes of one row: the batch dimension goes, or leaves what was flattened into it."""
    sizes: list[Any] = list(shape(node))
    if rows is None:
        return sizes
    if rows.inner == 1:
        return sizes[: rows.dim] + sizes[rows.dim + 1 :]
    return sizes[: rows.dim] + [rows.inner] + sizes[rows.dim + 1 :]


# Readers that ask for each element of their operands once, though their result has another size.
ONE_PASS = {
    aten.sum.default, aten.sum.dim_IntList, aten.prod.default, aten.prod.dim_int, aten.mean.default, aten.mean.dim,
    aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims, aten.cumsum.default, aten.cat.default,
    aten.slice.Tensor, aten.select.int,
}  # fmt: skip
Rule = Callable[[Lowering], Value]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return register


def is_lowered(node: Node) -> bool:
    """Whether there is a rule for what a node calls."""
    return node.op != "call_function" or node.target in RULES or node.target in pointwise.TABLE or not _makes_tensor(node)


def _makes_tensor(node: Node) -> bool:
    made = node.meta.get("val")
    return isinstance(made, (torch.Tensor, tuple, list))


def lower(lowering: Lowering) -> Value:
    """The value of a node."""
    target = lowering.node.target
    return RULES[target](lowering) if target in RULES else _pointwise(lowering)


def _pointwise(self: Lowering) -> Value:
    kind, write = pointwise.TABLE[self.node.target]
    operands = list(self.node.args)
    names = [argument.name for argument in self.node.target._schema.arguments]
    alpha = operands.pop(names.index("alpha")) if "alpha" in names[: len(operands)] else self.node.kwargs.get("alpha", 1)
    if kind == "result":
        dtype = self.dtype
    elif kind == "bool":
        dtype = torch.bool
    else:
        made = [value(argument) if isinstance(argument, Node) else argument for argument in operands]
        dtype = torch.result_type(*made) if len(made) == 2 else made[0].dtype

    def load(index: Index) -> str:
        texts = []
        for argument in operands:
            if kind == "bool" and isinstance(argument, Node):
                texts.append(self.read(argument, index, torch.bool))
            else:
                texts.append(self.read(argument, index, dtype))
        if alpha != 1:
            scaled = 0 if "rsub" in str(self.node.target) else 1
            texts[scaled] = narrowed(f"({texts[scaled]} * {self.scalar(alpha, dtype)})", dtype)
        return narrowed(write(*texts), self.dtype)

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten.div.Tensor_mode, aten.div.Scalar_mode)
def _div_mode(self: Lowering) -> Value:
    mode = self.node.kwargs.get("rounding_mode")
    name = {"floor": "floor_divide", "trunc": "trunc_divide"}.get(mode)
    a, b = self.node.args[:2]

    def load(index: Index) -> str:
        x, y = self.read(a, index, self.dtype), self.read(b, index, self.dtype)
        return narrowed(f"frnn::{name}({x}, {y})" if name else f"({x} / {y})", self.dtype)

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(self: Lowering) -> Value:
    condition, yes, no = self.node.args

    def load(index: Index) -> str:
        return f"({self.read(condition, index, torch.bool)} ? {self.read(yes, index, self.dtype)} : {self.read(no, index, self.dtype)})"

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(self: Lowering) -> Value:
    x, mask, fill = self.node.args

    def load(index: Index) -> str:
        return f"({self.read(mask, index, torch.bool)} ? {self.scalar(fill, self.dtype)} : {self.read(x, index, self.dtype)})"

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_max.default, aten.clamp_min.Tensor, aten.clamp_max.Tensor)
def _clamp(self: Lowering) -> Value:
    low = self.argument(1, "min")
    high = self.argument(2, "max")
    if self.node.target in (aten.clamp_max.default, aten.clamp_max.Tensor):
        low, high = None, self.argument(1, "max")

    def load(index: Index) -> str:
        text = self.read(self.node.args[0], index, self.dtype)
        text = text if low is None else f"frnn::maximum({text}, {self.read(low, index, self.dtype)})"
        return text if high is None else f"frnn::minimum({text}, {self.read(high, index, self.dtype)})"

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten._to_copy.default, torch.ops.prims.convert_element_type.default, aten.clone.default, aten.detach.default, aten.alias.default,
      aten.lift_fresh_copy.default, aten.lift_fresh.default, ops.guard)  # fmt: skip
def _copy(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    operand = self.operand(source)
    if operand.dtype == self.dtype:
        return operand
    return Value(self.dims, self.dtype, lambda index: cast(operand.load(index), operand.dtype, self.dtype), cheap=operand.cheap)


@rule(aten.copy.default, aten.fill.Tensor, aten.fill.Scalar)
def _overwritten(self: Lowering) -> Value:
    return Value(self.dims, self.dtype, lambda index: self.read(self.node.args[1], index, self.dtype))


@rule(ops.quiet)
def _quiet(self: Lowering) -> Value:
    x, finished = self.node.args

    def load(index: Index) -> str:
        element = self.operand(x).load(index)
        done = self.operand(finished).load(index[:1] if self.rows(self.node) is None else ())
        return f"({done} && !frnn::isfinite({element}) ? 0 : {element})"

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten.full.default, aten.full_like.default, aten.zeros.default, aten.ones.default, aten.zeros_like.default, aten.ones_like.default,
      aten.scalar_tensor.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
      aten.empty.memory_format, aten.empty_like.default)  # fmt: skip
def _filled(self: Lowering) -> Value:
    name = self.node.target._schema.name.removeprefix("aten::")
    if name in ("full", "full_like"):
        number: Any = self.argument(1, "fill_value")
    elif name == "scalar_tensor":
        number = self.node.args[0]
    elif name == "new_full":
        number = self.argument(2, "fill_value")
    else:
        number = 1 if "ones" in name else 0
    return Value(self.dims, self.dtype, lambda _: self.scalar(number, self.dtype))


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _arange(self: Lowering) -> Value:
    args = list(self.node.args)
    start, step = (args[0], args[2] if len(args) > 2 else 1) if self.node.target != aten.arange.default else (0, 1)
    kind = computed_in(self.dtype)

    def load(index: Index) -> str:
        at = self.row if self.rows(self.node) is not None else index[0]
        return f"({kind})({self.scalar(start, self.dtype)} + ({kind}){at} * {self.scalar(step, self.dtype)})"

    return Value(self.dims, self.dtype, load)


# Views: the same elements under other indices.


def _reindexed(self: Lowering, operand: Value, index_of: Callable[[list[str]], list[str]]) -> Value:
    return Value(self.dims, self.dtype, lambda index: operand.load(index_of(list(index))), cheap=operand.cheap)


@rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim,
      aten.squeeze.dims)  # fmt: skip
def _view(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    operand = self.operand(source)
    before = [place for place, size in enumerate(operand.dims) if size != "1"]
    after = [place for place, size in enumerate(self.dims) if size != "1"]
    if operand.pointer is None and [operand.dims[place] for place in before] == [self.dims[place] for place in after]:

        def index_of(index: list[str]) -> list[str]:
            found = ["0"] * len(operand.dims)
            for old, new in zip(before, after, strict=True):
                found[old] = index[new]
            return found

        return _reindexed(self, operand, index_of)
    kept = self.block.keep(operand)
    assert kept.pointer is not None
    return stored(kept.pointer, self.dims, self.dtype)


@rule(aten.permute.default, aten.t.default, aten.transpose.int, aten.numpy_T.default)
def _permute(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    rank = len(shape(source))
    if self.node.target in (aten.t.default, aten.numpy_T.default):
        order = list(reversed(range(rank)))
    elif self.node.target == aten.transpose.int:
        order = list(range(rank))
        a, b = (dim % rank for dim in self.node.args[1:3])
        order[a], order[b] = order[b], order[a]
    else:
        order = [dim % rank for dim in self.node.args[1]]
    rows = self.rows(source)
    if rows is not None and rows.inner == 1:
        order = [dim - (dim > rows.dim) for dim in order if dim != rows.dim]
    operand = self.operand(source)
    if order == list(range(len(order))):
        return operand

    def index_of(index: list[str]) -> list[str]:
        found = [""] * len(order)
        for new, old in enumerate(order):
            found[old] = index[new]
        return found

    return _reindexed(self, operand, index_of)


@rule(aten.expand.default)
def _expand(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    operand = self.operand(source)
    return Value(self.dims, self.dtype, lambda index: operand.load(self.aligned(source, index)), cheap=operand.cheap)


@rule(aten.select.int)
def _select(self: Lowering) -> Value:
    source, dim, at = self.node.args
    operand, place = self.operand(source), self.place(dim, source)
    position = self.scalar(at, torch.int64)
    if not isinstance(at, int) or at < 0:
        position = f"frnn::wrapped({position}, {operand.dims[place]})"
    return _reindexed(self, operand, lambda index: [*index[:place], position, *index[place:]])


@rule(aten.slice.Tensor)
def _slice(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    dim, start, step = self.argument(1, "dim", 0), self.argument(2, "start"), self.argument(4, "step", 1)
    rows = self.rows(source)
    operand = self.operand(source)
    if rows is not None and dim % len(shape(source)) == rows.dim:
        return operand  # all of the batch
    place = self.place(dim, source)
    begin = "0" if start is None else self.scalar(start, torch.int64)
    if not (start is None or (isinstance(start, int) and start >= 0)):
        begin = f"frnn::bounded({begin}, {operand.dims[place]})"

    def index_of(index: list[str]) -> list[str]:
        at = index[place] if step == 1 else f"{index[place]} * {step}"
        return [*index[:place], at if begin in ("0", "(int64_t)0LL") else f"{begin} + {at}", *index[place + 1 :]]

    return _reindexed(self, operand, index_of)


@rule(aten.flip.default)
def _flip(self: Lowering) -> Value:
    source, dims = self.node.args
    operand = self.operand(source)
    places = {self.place(dim, source) for dim in dims}
    return _reindexed(self, operand, lambda index: [f"{operand.dims[p]} - 1 - {i}" if p in places else i for p, i in enumerate(index)])


@rule(aten.cat.default)
def _cat(self: Lowering) -> Value:
    parts: Any = self.node.args[0]
    parts = [part for part in parts if len(shape(part)) == len(shape(self.node))]  # torch lets an empty vector join anything
    place = self.place(self.argument(1, "dim", 0))
    pointer = self.block.space(self.dims, self.dtype)
    offset = "0"
    for part in parts:
        operand = self.operand(part)
        with self.block.loop(operand.dims, hint="#pragma GCC ivdep") as index:
            into = [f"{offset} + {i}" if p == place else i for p, i in enumerate(index)]
            element = cast(operand.load(index), operand.dtype, self.dtype)
            self.block.line(f"{pointer}[{linear(into, self.dims)}] = {_write(element, self.dtype)};")
        offset = f"{offset} + {operand.dims[place]}"
    return stored(pointer, self.dims, self.dtype)


def _write(element: str, dtype: torch.dtype) -> str:
    from .values import write

    return write(element, dtype)


# Look-ups. An index outside of its tensor stops the loop, which then says who looked where.


def checked(self: Lowering, index: Node, size: str, *, wraps: bool = True) -> Value:
    """The values of an index tensor within 0 and size, kept; a fault is noted where one was not."""
    operand = self.operand(index)
    pointer = self.block.space(operand.dims, torch.int64)
    wrap = f"frnn::wrapped(at_, {size})" if wraps else "at_"
    with self.block.loop(operand.dims) as at:
        self.block.line(
            f"{{ int64_t at_ = {operand.load(at)}; at_ = {wrap}; if (at_ < 0 || at_ >= {size}) {{ *fault = 1; at_ = 0; }} "
            f"{pointer}[{linear(at, operand.dims)}] = at_; }}"
        )
    return stored(pointer, operand.dims, torch.int64)


@rule(ops.read)
def _read(self: Lowering) -> Value:
    source, index, dim = self.node.args
    operand, place = self.operand(source), self.place(dim, source)
    size = operand.dims[place]
    name = self.block.names("r")
    self.block.line(f"const int64_t {name} = frnn::read_at({self.scalar(index, torch.int64)}, {size}, fault);")

    def load(at: Index) -> str:
        element = operand.load([*at[:place], name, *at[place:]])
        return element if size.isdigit() and size != "0" else f"({size} ? {element} : ({computed_in(self.dtype)})0)"

    return Value(self.dims, self.dtype, load)


@rule(aten.embedding.default)
def _embedding(self: Lowering) -> Value:
    table: Any = self.node.args[0]
    index: Any = self.node.args[1]
    operand = self.operand(table)
    rows = checked(self, index, operand.dims[0], wraps=False)
    return Value(self.dims, self.dtype, lambda at: operand.load([rows.load(at[:-1]), at[-1]]))


@rule(ops.within)
def _within(self: Lowering) -> Value:
    index, table = self.node.args
    return checked(self, index, size_text(shape(table)[0]), wraps=False)


@rule(aten.index_select.default)
def _index_select(self: Lowering) -> Value:
    source, dim, index = self.node.args
    operand, place = self.operand(source), self.place(dim, source)
    rows = checked(self, index, operand.dims[place], wraps=False)
    if self.rows(index) is not None:
        return Value(self.dims, self.dtype, lambda at: operand.load([*at[:place], rows.load(()), *at[place:]]))
    return Value(self.dims, self.dtype, lambda at: operand.load([*at[:place], rows.load([at[place]]), *at[place + 1 :]]))


@rule(aten.gather.default)
def _gather(self: Lowering) -> Value:
    source, dim, index = self.node.args
    operand, place = self.operand(source), self.place(dim, source)
    if not operand.dims:
        return operand
    picked = checked(self, index, operand.dims[place], wraps=False)
    return Value(self.dims, self.dtype, lambda at: operand.load([picked.load(at) if p == place else i for p, i in enumerate(at)]))


@rule(aten.index.Tensor)
def _index(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    indices: Any = self.node.args[1]
    operand, rows = self.operand(source), self.rows(source)
    given = [(place, index) for place, index in enumerate(indices) if index is not None]
    rank = max(len(shape(index)) for _, index in given)
    adjacent = [place for place, _ in given] == list(range(given[0][0], given[0][0] + len(given)))
    start = given[0][0] if adjacent else 0
    full_rank = len(shape(self.node))
    mine = self.rows(self.node)
    sizes = [size_text(size) for size in shape(source)]
    picked = {place: (index, checked(self, index, sizes[place])) for place, index in given if rows is None or place != rows.dim}

    def load(at: Index) -> str:
        # The index as torch sees it, with a stand-in where the batch is.
        full = list(at)
        if mine is not None and mine.inner == 1:
            full.insert(mine.dim, "")
        assert len(full) == full_rank
        broadcast, rest = full[start : start + rank], full[:start] + full[start + rank :]
        found: list[str] = []
        taken = 0
        for place in range(len(sizes)):
            if any(place == p for p, _ in given):
                if rows is not None and place == rows.dim:
                    continue
                index, positions = picked[place]
                dims = shape(index)
                mine_of_index = broadcast[rank - len(dims) :]
                of_rows = self.rows(index)
                inside = [i for p, i in enumerate(mine_of_index) if not (of_rows is not None and of_rows.inner == 1 and p == of_rows.dim)]
                inside = ["0" if size == "1" else i for i, size in zip(inside, positions.dims, strict=True)]
                found.append(positions.load(inside))
            else:
                if not (rows is not None and place == rows.dim):
                    found.append(rest[taken])
                taken += 1
        return operand.load(found)

    return Value(self.dims, self.dtype, load)


@rule(aten.index_put.default)
def _index_put(self: Lowering) -> Value:
    source, indices, values = self.node.args[:3]
    accumulate = bool(self.argument(3, "accumulate", False))
    operand, rows = self.operand(source), self.rows(source)
    sizes = [size_text(size) for size in shape(source)]
    pointer = self.block.space(self.dims, self.dtype)
    self.block.fill(pointer, self.dims, self.dtype, operand.load)
    given = [(place, index) for place, index in enumerate(indices) if index is not None]
    if any(index is None for index in indices[: len(given)]):
        raise Unlowered(self.node, "indices that skip a dimension")
    picked = [checked(self, index, sizes[place]) for place, index in given if rows is None or place != rows.dim]
    rest = [size for place, size in enumerate(sizes) if place >= len(given)]
    rank = max((len(p.dims) for p in picked), default=0)
    broadcast = list(next((p.dims for p in picked if len(p.dims) == rank), ()))
    for p in picked:
        for back in range(1, len(p.dims) + 1):
            if p.dims[-back] != "1":
                broadcast[-back] = p.dims[-back]
    with self.block.loop([*broadcast, *rest]) as at:
        into = []
        for p in picked:
            mine = at[rank - len(p.dims) : rank]
            into.append(p.load(["0" if size == "1" else i for i, size in zip(mine, p.dims, strict=True)]))
        into += at[rank:]
        dims = self.dims_of(values)
        own = ["0" if size == "1" else i for i, size in zip(at[len(at) - len(dims) :], dims, strict=True)] if dims else []
        element = cast(self.operand(values).load(own), value(values).dtype, self.dtype)
        where = f"{pointer}[{linear(into, self.dims)}]"
        element = f"{read(where, self.dtype)} + {element}" if accumulate else element
        self.block.line(f"{where} = {_write(element, self.dtype)};")
    return stored(pointer, self.dims, self.dtype)


@rule(aten.scatter.src, aten.scatter.value, aten.scatter_add.default)
def _scatter(self: Lowering) -> Value:
    source, dim, index, what = self.node.args
    operand, place = self.operand(source), self.place(dim, source)
    pointer = self.block.space(self.dims, self.dtype)
    self.block.fill(pointer, self.dims, self.dtype, operand.load)
    picked = checked(self, index, operand.dims[place], wraps=False)
    with self.block.loop(picked.dims) as at:
        into = [picked.load(at) if p == place else i for p, i in enumerate(at)]
        tensor = isinstance(what, Node) and isinstance(value(what), torch.Tensor) and self.node.target != aten.scatter.value
        element = cast(self.operand(what).load(at), value(what).dtype, self.dtype) if tensor else self.scalar(what, self.dtype)
        where = f"{pointer}[{linear(into, self.dims)}]"
        element = f"{read(where, self.dtype)} + {element}" if self.node.target == aten.scatter_add.default else element
        self.block.line(f"{where} = {_write(element, self.dtype)};")
    return stored(pointer, self.dims, self.dtype)


@rule(aten.slice_scatter.default, aten.select_scatter.default)
def _window(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    what: Any = self.node.args[1]
    operand, new = self.operand(source), self.operand(what)
    pointer = self.block.space(self.dims, self.dtype)
    self.block.fill(pointer, self.dims, self.dtype, operand.load)
    dim = self.argument(2, "dim", 0)
    rows = self.rows(self.node)
    place = self.place(dim, source)
    whole = rows is not None and dim % len(shape(source)) == rows.dim
    if self.node.target == aten.select_scatter.default:
        at_: Any = self.node.args[3]
        position = f"frnn::wrapped({self.scalar(at_, torch.int64)}, {self.dims[place]})"
        with self.block.loop(new.dims) as at:
            into = [*at[:place], position, *at[place:]]
            self.block.line(f"{pointer}[{linear(into, self.dims)}] = {_write(cast(new.load(at), new.dtype, self.dtype), self.dtype)};")
    else:
        start, step = self.argument(3, "start"), self.argument(5, "step", 1)
        begin = "0" if start is None or whole else f"frnn::bounded({self.scalar(start, torch.int64)}, {self.dims[place]})"
        with self.block.loop(new.dims) as at:
            into = [i if whole or p != place else f"{begin} + {i} * {step}" for p, i in enumerate(at)]
            self.block.line(f"{pointer}[{linear(into, self.dims)}] = {_write(cast(new.load(at), new.dtype, self.dtype), self.dtype)};")
    return stored(pointer, self.dims, self.dtype)


@rule(aten.constant_pad_nd.default)
def _pad(self: Lowering) -> Value:
    source, pads = self.node.args[:2]
    fill = self.argument(2, "value", 0)
    operand = self.operand(source)
    pointer = self.block.space(self.dims, self.dtype)
    self.block.fill(pointer, self.dims, self.dtype, lambda _: self.scalar(fill, self.dtype))
    rank = len(shape(source))
    before = {self.place(rank - 1 - k, source): pads[2 * k] for k in range(len(pads) // 2)}
    if any(isinstance(pad, int) and pad < 0 for pad in pads):
        raise Unlowered(self.node, "a negative padding")
    with self.block.loop(operand.dims) as at:
        into = [f"{before.get(p, 0)} + {i}" for p, i in enumerate(at)]
        self.block.line(f"{pointer}[{linear(into, self.dims)}] = {_write(operand.load(at), self.dtype)};")
    return stored(pointer, self.dims, self.dtype)


# Reductions along dimensions of one row.


def _reduced(self: Lowering, dims: Any, keepdim: bool) -> tuple[set[int], Callable[[Sequence[str], Sequence[str]], list[str]]]:
    """Which dimensions of a row go, and the operand's index from that of the result and of what goes."""
    source: Any = self.node.args[0]
    rank = len(shape(source))
    rows = self.rows(source)
    named = range(rank) if dims is None or (isinstance(dims, (list, tuple)) and not dims) else [dims] if isinstance(dims, int) else dims
    gone = {self.place(dim, source) for dim in named if rank and not (rows is not None and rows.inner == 1 and dim % rank == rows.dim)}
    total = len(self.dims_of(source))

    def index(kept: Sequence[str], inner: Sequence[str]) -> list[str]:
        kept_left, inner_left = list(kept), list(inner)
        found = []
        for place in range(total):
            if place in gone:
                found.append(inner_left.pop(0))
                if keepdim:
                    kept_left.pop(0)
            else:
                found.append(kept_left.pop(0))
        return found

    return gone, index


_SUMS = {"sum": ("0", "{a} + {x}", "+"), "prod": ("1", "{a} * {x}", "*")}


def _accumulated(self: Lowering, dims: Any, keepdim: bool, start: str, step: str, simd: str, finish: str, dtype: torch.dtype) -> Value:
    """Reduce by repeating ``step`` on an accumulator ``{a}`` and an element ``{x}``."""
    source: Any = self.node.args[0]
    operand = self.operand(source)
    gone, index = _reduced(self, dims, keepdim)
    pointer = self.block.space(self.dims, self.dtype)
    inner_dims = [size for place, size in enumerate(operand.dims) if place in gone]
    kind = computed_in(dtype)
    with self.block.loop(self.dims) as kept:
        name = self.block.names("a")
        self.block.line(f"{kind} {name} = {start};")
        hint = f"#pragma omp simd reduction({simd}:{name})" if simd and kind in ("float", "double") else ""
        with self.block.loop(inner_dims, hint=hint) as inner:
            element = cast(operand.load(index(kept, inner)), operand.dtype, dtype)
            self.block.line(f"{name} = {step.format(a=name, x=element)};")
        size = " * ".join(inner_dims) or "1"
        result = (
            cast(finish.format(a=name, n=f"(int64_t)({size})"), dtype, self.dtype) if finish != "{a}" else cast(name, dtype, self.dtype)
        )
        self.block.line(f"{pointer}[{linear(kept, self.dims)}] = {_write(rounded(result, self.dtype), self.dtype)};")
    return stored(pointer, self.dims, self.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in pointwise.HALVES else dtype


@rule(aten.sum.default, aten.sum.dim_IntList, aten.prod.default, aten.prod.dim_int)
def _sum(self: Lowering) -> Value:
    start, step, simd = _SUMS["sum" if "sum" in str(self.node.target) else "prod"]
    whole = self.node.target in (aten.sum.default, aten.prod.default)
    dims, keepdim = (None, False) if whole else (self.argument(1, "dim"), self.argument(2, "keepdim", False))
    return _accumulated(self, dims, keepdim, start, step, simd, "{a}", _wide(self.dtype))


@rule(aten.mean.default, aten.mean.dim)
def _mean(self: Lowering) -> Value:
    whole = self.node.target == aten.mean.default
    dims, keepdim = (None, False) if whole else (self.argument(1, "dim"), self.argument(2, "keepdim", False))
    return _accumulated(self, dims, keepdim, "0", "{a} + {x}", "+", "{a} / {n}", _wide(self.dtype))


@rule(aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims)
def _any(self: Lowering) -> Value:
    any_ = "any" in str(self.node.target)
    whole = self.node.target in (aten.any.default, aten.all.default)
    dims, keepdim = (None, False) if whole else (self.argument(1, "dim"), self.argument(2, "keepdim", False))
    start, step = ("false", "{a} || {x}") if any_ else ("true", "{a} && {x}")
    return _accumulated(self, dims, keepdim, start, step, "", "{a}", torch.bool)


@rule(aten.amax.default, aten.amin.default, aten.max.default, aten.min.default)
def _extreme(self: Lowering) -> Value:
    most = "max" in str(self.node.target)
    whole = self.node.target in (aten.max.default, aten.min.default)
    dims, keepdim = (None, False) if whole else (self.argument(1, "dim"), self.argument(2, "keepdim", False))
    source: Any = self.node.args[0]
    self_keep = self.kept(source)  # read twice
    del self_keep
    start = f"frnn::lowest<{computed_in(self.dtype)}>()" if most else f"frnn::highest<{computed_in(self.dtype)}>()"
    step = "frnn::maximum({x}, {a})" if most else "frnn::minimum({x}, {a})"
    return _accumulated(self, dims, keepdim, start, step, "", "{a}", self.dtype)


@rule(aten.argmax.default, aten.argmin.default)
def _argmax(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    dims, keepdim = self.argument(1, "dim"), self.argument(2, "keepdim", False)
    operand = self.kept(source)
    if dims is None and len(operand.dims) > 1:
        assert operand.pointer is not None
        operand = stored(operand.pointer, (" * ".join(operand.dims),), operand.dtype)
    if dims is None:
        gone, index = {0}, (lambda kept, inner: list(inner))
    else:
        gone, index = _reduced(self, dims, keepdim)
    inner_dims = [size for place, size in enumerate(operand.dims) if place in gone] or ["1"]
    return _best(self, operand, self.dims, inner_dims, index, self.node.target == aten.argmax.default)


def _best(
    self: Lowering,
    operand: Value,
    dims: Sequence[str],
    inner_dims: Sequence[str],
    index: Callable[[Sequence[str], Sequence[str]], list[str]],
    most: bool,
) -> Value:
    """The places of the first extreme, or the first NaN, along ``inner_dims``."""
    pointer = self.block.space(dims, torch.int64)
    kind = computed_in(operand.dtype)
    with self.block.loop(dims) as kept:
        best = self.block.names("m")
        extreme = "maximum" if most else "minimum"
        start = f"frnn::{'lowest' if most else 'highest'}<{kind}>()"
        self.block.line(f"{kind} {best} = {start};")
        hint = f"#pragma omp simd reduction({'max' if most else 'min'}:{best})" if kind in ("float", "double") else ""
        odd = self.block.names("n")
        if kind in ("float", "double"):
            self.block.line(f"int {odd} = 0;")
            hint += f" reduction(|:{odd})"
        with self.block.loop(inner_dims, hint=hint) as inner:
            element = operand.load(index(kept, inner) if operand.dims else ())
            if kind in ("float", "double"):
                self.block.line(f"{best} = {element} {'>' if most else '<'} {best} ? {element} : {best}; {odd} |= {element} != {element};")
            else:
                self.block.line(f"{best} = frnn::{extreme}({element}, {best});")
        where = f"{pointer}[{linear(kept, dims)}]"
        self.block.line(f"{where} = 0;")
        found = self.block.names("j")
        element = operand.load(index(kept, [found]) if operand.dims else ())
        test = f"{odd} ? {element} != {element} : {element} == {best}" if kind in ("float", "double") else f"{element} == {best}"
        self.block.line(f"for (int64_t {found} = 0; {found} < {inner_dims[0]}; ++{found}) if ({test}) {{ {where} = {found}; break; }}")
    return stored(pointer, dims, torch.int64)


@rule(aten.cumsum.default, aten.cumprod.default)
def _cumulated(self: Lowering) -> Value:
    source, dim = self.node.args[:2]
    operand, place = self.operand(source), self.place(dim, source)
    if not operand.dims:
        return operand
    start, step = ("0", "+") if self.node.target == aten.cumsum.default else ("1", "*")
    pointer = self.block.space(self.dims, self.dtype)
    kind = computed_in(_wide(self.dtype))
    others = [size if p != place else "1" for p, size in enumerate(self.dims)]
    with self.block.loop(others) as at:
        name, along = self.block.names("a"), self.block.names("j")
        self.block.line(f"{kind} {name} = {start};")
        into = [along if p == place else i for p, i in enumerate(at)]
        element = cast(operand.load(into), operand.dtype, _wide(self.dtype))
        self.block.line(
            f"for (int64_t {along} = 0; {along} < {self.dims[place]}; ++{along}) {{ {name} = {name} {step} {element}; "
            f"{pointer}[{linear(into, self.dims)}] = {_write(name, self.dtype)}; }}"
        )
    return stored(pointer, self.dims, self.dtype)


class Pair(tuple[Value, ...]):
    """The values of an operator with several results."""


def _ordered(self: Lowering, place: int, source: Any, descending: bool, most: str) -> Any:
    """Values and indices along a dimension, in order; the first ``most`` of them. Equal ones keep their order, NaN is the largest."""
    operand = self.kept(source)
    if not operand.dims:
        zero = Value((), torch.int64, lambda _: "(int64_t)0")
        return Pair((operand, zero))
    dims = [most if p == place else size for p, size in enumerate(operand.dims)]
    values, indices = self.block.space(dims, operand.dtype), self.block.space(dims, torch.int64)
    order = self.block.space([operand.dims[place]], torch.int64)
    others = [size if p != place else "1" for p, size in enumerate(operand.dims)]
    with self.block.loop(others) as at:

        def key(name: str, at: list[str] = at) -> str:
            return operand.load([name if p == place else i for p, i in enumerate(at)])

        self.block.line(
            f"frnn::sort({order}, (int64_t)({operand.dims[place]}), "
            f"[&](int64_t a_, int64_t b_) {{ return frnn::{'after' if descending else 'before'}({key('a_')}, {key('b_')}); }});"
        )
        along = self.block.names("j")
        into = linear([along if p == place else i for p, i in enumerate(at)], dims)
        self.block.line(
            f"for (int64_t {along} = 0; {along} < {most}; ++{along}) {{ {indices}[{into}] = {order}[{along}]; "
            f"{values}[{into}] = {_write(key(f'{order}[{along}]'), operand.dtype)}; }}"
        )
    return Pair((stored(values, dims, operand.dtype), stored(indices, dims, torch.int64)))


@rule(aten.sort.default, aten.sort.stable)
def _sort(self: Lowering) -> Any:
    source: Any = self.node.args[0]
    stable = self.node.target == aten.sort.stable
    dim = self.node.kwargs.get("dim", -1) if stable else self.argument(1, "dim", -1)
    descending = self.node.kwargs.get("descending", False) if stable else self.argument(2, "descending", False)
    place = self.place(dim, source)
    dims = self.dims_of(source)
    return _ordered(self, place, source, bool(descending), dims[place] if dims else "1")


@rule(aten.topk.default)
def _topk(self: Lowering) -> Any:
    source, k = self.node.args[:2]
    place = self.place(self.argument(2, "dim", -1), source)
    return _ordered(
        self, place, source, bool(self.argument(3, "largest", True)), self.scalar(k, torch.int64) if not isinstance(k, int) else str(k)
    )


@rule(aten.max.dim, aten.min.dim)
def _max_dim(self: Lowering) -> Any:
    source: Any = self.node.args[0]
    operand, place = self.kept(source), self.place(self.argument(1, "dim"), source)
    if not operand.dims:
        return Pair((operand, Value((), torch.int64, lambda _: "(int64_t)0")))
    behind = place + bool(self.argument(2, "keepdim", False))  # of the result's index what follows the dimension
    dims = [*operand.dims[:place], *["1"] * (behind - place), *operand.dims[place + 1 :]]

    def index(kept: Sequence[str], inner: Sequence[str]) -> list[str]:
        return [*kept[:place], inner[0], *kept[behind:]]

    at = _best(self, operand, dims, [operand.dims[place]], index, self.node.target == aten.max.dim)
    return Pair((Value(tuple(dims), operand.dtype, lambda kept: operand.load(index(kept, [at.load(kept)]))), at))


@rule(operator.getitem)
def _getitem(self: Lowering) -> Value:
    source, place = self.node.args
    pair: Any = self.operand(source)
    return pair[place]  # type: ignore[no-any-return]


# Products of one row's matrices; products with weights are calls of the runtime, see `source`.


@rule(aten.bmm.default)
def _bmm(self: Lowering) -> Value:
    a, b = self.node.args[:2]
    return _matrix_product(self, self.kept(a), self.kept(b), batched=True)


@rule(aten.mm.default)
def _mm(self: Lowering) -> Value:
    a, b = self.node.args[:2]
    left, right = self.kept(a), self.kept(b)
    if len(left.dims) == 1:  # a row of the batch times a matrix of no row
        left = stored(str(left.pointer), ("1", *left.dims), left.dtype)
        product = _matrix_product(self, left, right, batched=False, dims=("1", *self.dims))
        return stored(str(product.pointer), self.dims, self.dtype)
    if len(right.dims) == 1:
        right = stored(str(right.pointer), (*right.dims, "1"), right.dtype)
        product = _matrix_product(self, left, right, batched=False, dims=(*self.dims, "1"))
        return stored(str(product.pointer), self.dims, self.dtype)
    return _matrix_product(self, left, right, batched=False)


def _matrix_product(self: Lowering, a: Value, b: Value, *, batched: bool, dims: tuple[str, ...] | None = None) -> Value:
    dims = self.dims if dims is None else dims
    wide = _wide(self.dtype)
    pointer = self.block.space(dims, wide)
    kind = computed_in(wide)
    # In a row the batch dimension of a bmm is gone, unless other dimensions were flattened into it.
    lead = dims[: len(dims) - 2]
    inner = a.dims[-1]
    with self.block.loop(lead) as at:
        with self.block.loop(dims[-2:], hint="#pragma GCC ivdep") as (m, n):
            self.block.line(f"{pointer}[{linear([*at, m, n], dims)}] = 0;")
        m, k, n = (self.block.names("i") for _ in range(3))
        left = cast(a.load([*at, m, k]), a.dtype, wide)
        right = cast(b.load([*at, k, n]), b.dtype, wide)
        where = f"{pointer}[{linear([*at, m, n], dims)}]"
        self.block.line(f"for (int64_t {m} = 0; {m} < {dims[-2]}; ++{m}) for (int64_t {k} = 0; {k} < {inner}; ++{k}) {{")
        self.block.line(f"    const {kind} left_ = {left};")
        self.block.line("#pragma GCC ivdep")
        self.block.line(f"    for (int64_t {n} = 0; {n} < {dims[-1]}; ++{n}) {where} += left_ * {right};")
        self.block.line("}")
    made = stored(pointer, dims, wide)
    if wide == self.dtype:
        return made
    return self.block.keep(Value(dims, self.dtype, lambda at: rounded(made.load(at), self.dtype)))


@rule(ops.draw)
def _draw(self: Lowering) -> Value:
    seed, _, time, site, lineage = self.node.args
    clock = self.scalar(time, torch.int32)
    key = self.operand(seed)

    def load(index: Index) -> str:
        row_key, column = (key.load(()), index[0]) if self.rows(self.node) is not None else (key.load(index[:1]), index[1])
        return f"(int64_t)frnn::philox((uint64_t){row_key}, (uint32_t){column}, (uint32_t){clock}, {site}u, {lineage}u)"

    return Value(self.dims, self.dtype, load, cheap=False)


class Unlowered(Exception):
    """There is no rule for a node.

    Attributes:
        reason: which operator.
        location: ``file:line`` of the user's code.
    """

    def __init__(self, node: Node, what: str = "") -> None:
        name = getattr(node.target, "__name__", str(node.target))
        super().__init__(f"the native executor has no {name}{' for ' + what if what else ''}")
        self.reason = str(self)
        self.location = node.meta.get("stack_trace")
