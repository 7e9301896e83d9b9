"""The values of a step as lines of a kernel. In: a schedule; out: names, and the lines that make what they name.

A value is written where it is first asked for, at the columns that are asked for, by the rule of its operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch.fx import Node
from torch.utils._sympy.printers import PythonPrinter

from ...capture.sizes import expression
from ...optimise.graph import placeholders, value
from ..operators import row_shape
from . import types
from .columns import C, Columns, counter, is_within, taken_apart, text
from .rule import Lowering, Unlowered
from .rules import READ_THROUGH, lower
from .schedule import Schedule
from .step import CarriedLeaf
from .tiles import Tile
from .views import is_at_a_size

# Names of the kernel's own; a node of the same name gets another.
_RESERVED = {
    "t", "T", "t0", "B", "col", "grp", "rows", "live", "local", "first", "time", "done", "lengths", "going", "late", "target", "bad",
    "half", "step", "padded", "limit", "counter", "error", "tl", "triton", "first_row", "own", "product", "multiply", "resident",
    "streamed", "halves", "met", "arrive", "wait", "tanh", "sigmoid", "expm1", "log1p", "power", "signed", "order_key", "key_index",
    "order", "unordered", "LOWEST32", "floor_divide", "trunc_divide", "remainder", "LOWEST", "PREC", "ASM",
}  # fmt: skip


Names = dict[tuple[Node, Columns | None], str]


class Values:
    """The values of a step as lines of a kernel, each written where it is first asked for.

    Args:
        schedule: the step's.
        batch_tile: the rows of a group.

    Attributes:
        lines: where values are written now; ``prelude``: those before the loop.
        names: of what is written, by node and columns.
        taken: names that are in use.
        widths: of the vectors whose columns the kernel has.
        externals, hoisted: the names of tensors that are known, or made, before the loop.
        symbols: the sizes that the kernel has to know.
        faults: names of what says that a row looked where there is nothing.
    """

    def __init__(self, schedule: Schedule, batch_tile: int) -> None:
        self.schedule, self.step, self.sharing = schedule, schedule.step, schedule.sharing
        self.bb = batch_tile
        self.made = self.step.made
        self.one_row = self.made.program.batch == 1
        self.alone = self.sharing.programs == 1
        self.prelude: list[str] = []
        self.blocks: list[list[str]] = [[]]  # of the step, and of the loops in it that are being written
        self.loops: dict[Any, int] = {}  # which block is that of a loop's counter
        self.lines = self.blocks[0]
        self.names: Names = {}
        self.clock, self.nth = "time", "step"  # the step's time, and its number in the launch
        self.only: tuple[Any, str] | None = None  # a tensor that is loaded under one more condition, as it stands in memory
        self.taken: set[str] = set(_RESERVED)
        self.widths: set[int] = set()
        self.externals: dict[Node, str] = {}
        self.hoisted = {node: f"h{place}" for place, node in enumerate(self.step.hoisted)}
        self.symbols: dict[str, None] = {}
        self.faults: set[str] = set()
        self.tile_of = {product.node: tile for tile in schedule.tiles for product, _ in tile.segments}
        self.tiled: set[Tile] = set()
        self.leaf_of = {leaf.node: leaf for leaf in self.step.leaves}
        self.source_of = dict(zip(placeholders(self.made.module.graph), self.made.program.sources, strict=True))
        self.taken |= (
            {tile.name for tile in schedule.tiles} | {exchange.name for exchange in schedule.exchanges} | set(self.hoisted.values())
        )

    # What rules ask for.

    def width(self, node: Any) -> int | None:
        return self.step.width(node)

    def dims(self, node: Any) -> tuple[int, ...]:
        return self.step.dims(node)

    def place(self, node: Any, dim: int) -> int:
        return self.step.place(node, dim)

    def is_rows(self, node: Any, dim: int) -> bool:
        return self.step.is_rows(node, dim)

    def rows(self, node: Any) -> Any:
        return self.step.rows(node)

    def is_row_ids(self, node: Any) -> bool:
        return self.step.is_row_ids(node)

    def extent(self, node: Any, dim: int) -> int:
        return self.step.extent(node, dim)

    def number(self, node: Any, size: Any) -> int:
        return self.step.number(node, size)

    def real(self, node: Any, made: Any) -> float:
        return self.step.real(node, made)

    def is_known(self, node: Node) -> bool:
        return self.step.is_known(node)

    def size(self, node: Node, dim: int) -> str:
        return self._size(value(node).shape[dim])

    def _size(self, size: Any) -> str:
        expr = sympy.sympify(size if isinstance(size, sympy.Expr) else expression(size))
        if expr.is_Integer:
            return str(int(expr))
        for symbol in sorted(map(str, expr.free_symbols)):
            self.symbols[symbol] = None
            self.taken.add(symbol)
        return str(expr) if expr.is_Symbol else f"({PythonPrinter().doprint(expr)})"

    def fault(self, condition: str, columns: Columns | None) -> None:
        if condition not in self.faults:
            self.faults.add(condition)
            if columns is not None and columns.width:
                condition = f"tl.max(tl.where(({condition}) & {columns.mask}, 1, 0), 0)[None, :] > 0"
            self.lines.append(f"bad = tl.where(({condition}) & (done == 0), 1, bad)")

    def accumulate(self, size: int, dtype: str, first: str, columns: Columns | None, update: Callable[[Any, str], str]) -> str:
        rows = self.sharing.block(columns.width) if columns is not None and columns.width else 1
        name, count = self._fresh("sum"), counter(len(self.loops), size)
        shape = f"({rows}, {self.bb})"
        is_number = first in ("0", "0.0", "1", "1.0", "LOWEST", "LOWEST32")
        made = f"tl.full({shape}, {first}, {dtype})" if is_number else f"({first}).to({dtype}) + tl.zeros({shape}, {dtype})"
        self.lines.append(f"{name} = {made}")
        outer, inner = self.lines, list[str]()
        self.loops[count] = len(self.blocks)
        self.blocks.append(inner)
        self.lines = inner
        new = update(count, name)
        self.blocks.pop()
        self.lines = outer
        self.lines += [f"for {count} in range(0, {size}):", *[f"    {line}" for line in inner], f"    {name} = {new}"]
        return name

    def demand(self, node: Node, columns: Columns | None) -> str:
        """The name of a node's value at columns; it is written if it is not there yet."""
        if columns is not None and columns.width:
            self.widths.add(columns.width)
        key = (node, columns)
        if key not in self.names:
            outer = self.lines
            if outer is not self.prelude:  # where its loops are, and no deeper
                self.lines = self.blocks[max([self.loops[count] for count in columns.loops], default=0) if columns is not None else 0]
            self.names[key] = self._written(node, columns)
            self.lines = outer
        return self.names[key]

    def _written(self, node: Node, columns: Columns | None) -> str:
        made = value(node)
        if not isinstance(made, torch.Tensor):
            return self._size(made)
        if node in self.hoisted:
            return self._assign(node, columns, self._loaded(node, columns))
        if node in self.step.invariant:
            return self._invariant(node, columns)
        own = columns is None or (columns.width == self.width(node) and columns.at == C)
        if node in self.schedule.fixed and not own:
            return self._assign(node, columns, self._moved(node, columns))
        if node.op == "placeholder":
            return self._placeholder(node)
        if node in self.tile_of:
            return self._product(node)
        if node in self.step.reductions:
            return self._reduced(node)
        return self._assign(node, columns, lower(Lowering(node, columns, self)))

    def _placeholder(self, node: Node) -> str:
        kind = self.source_of[node].kind
        if kind == "time":
            return self.clock
        if kind == "finished":
            return "(done > 0)"
        leaf = self.leaf_of[node]
        name = self._leaf_name(leaf)
        return f"({name} != 0)" if value(node).dtype == torch.bool else name

    def _invariant(self, node: Node, columns: Columns | None) -> str:
        """Loaded or computed once, before the loop; in a loop of the step every time."""
        outer = self.lines
        if columns is None or not columns.loops:
            self.lines = self.prelude
        through = node.op == "call_function" and node.target in READ_THROUGH and not is_at_a_size(node)
        made = self._assign(node, columns, lower(Lowering(node, columns, self)) if through else self._loaded(node, columns))
        self.lines = outer
        return made

    # Memory.

    def _loaded(self, node: Node, columns: Columns | None) -> str:
        if columns is None:
            return self.load(node, [sympy.Integer(0)] * len(self._row_sizes(node)), 0)
        return self.load(node, taken_apart(columns.at, self.dims(node), columns.width), columns.width)

    def _row_sizes(self, node: Node) -> list[Any]:
        return row_shape(node, self.rows(node))

    def load(self, node: Node, index: Sequence[Any], width: int, by_row: bool = False) -> str:
        rows, sizes, terms, uses = self.rows(node), list(value(node).shape), [], False
        places = iter(zip(index, self._row_sizes(node), strict=True))
        for dim in range(len(sizes)):
            is_rows = rows is not None and dim == rows.dim
            if is_rows and rows.inner == 1:
                terms.append(self._scaled("rows", sizes[dim + 1 :]))
                continue
            at, size = next(places)
            if is_rows:
                terms.append(self._scaled("rows", [size, *sizes[dim + 1 :]]))
            if isinstance(at, str):
                terms.append(self._scaled(f"({at}).to(tl.int64)", sizes[dim + 1 :]))
                uses |= bool(width) and f"c{width}" in at
            elif at != 0:
                uses |= C in at.free_symbols
                made = text(at, width)
                if not is_within(at, self.step.bound(size), width):
                    made = f"tl.minimum(tl.maximum({made}, 0), {self._size(size)} - 1)"
                terms.append(self._scaled(made, sizes[dim + 1 :]))
        name = self.hoisted.get(node) or self._external_name(node)
        if node in self.hoisted:
            terms.append(self._scaled(self.nth, sizes))
        masks = (["live"] if by_row or rows is not None else []) + ([f"in{width}"] if uses else [])
        alone = self.only is not None and self.only[0] is node
        masks += [self.only[1]] if self.only is not None and alone else []
        mask = f", mask={' & '.join(masks)}, other=0" if masks else ""
        loading = f"tl.load({' + '.join([name, *terms])}{mask})"
        return loading if alone else types.loaded(loading, value(node).dtype)

    def _scaled(self, index: str, sizes: Sequence[Any]) -> str:
        strides = [self._size(size) for size in sizes if expression(size) != 1]
        return " * ".join([index, *strides])

    def _external_name(self, node: Node) -> str:
        if node not in self.externals:
            self.externals[node] = self._fresh(f"p_{node.name}")
        return self.externals[node]

    def _moved(self, node: Node, columns: Columns | None) -> str:
        """A vector that has passed a barrier, at any columns."""
        exchange = self.schedule.moved.get(node)
        if exchange is None or columns is None:
            raise Unlowered(node, "is read at columns that its program does not have")
        slot = exchange.slot("before" if exchange.leaf is not None else "this")
        at = columns.index
        if not columns.within(exchange.width):
            at = f"tl.minimum(tl.maximum({at}, 0), {exchange.width - 1})"
        uses = C in columns.at.free_symbols
        mask = f", mask={columns.mask}, other=0" if uses else ""
        address = f"{exchange.name} + ({slot} * padded + local) * {exchange.width} + {at}"
        return types.loaded(f'tl.load({address}{mask}, cache_modifier=".cg")', exchange.dtype)

    # Text.

    def _fresh(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _assign(self, node: Node, columns: Columns | None, text: str) -> str:
        name = self._fresh(node.name if columns is None or columns.at == C else f"{node.name}_at")
        self.lines.append(f"{name} = {text}")
        return name

    def _own(self, node: Node) -> Columns | None:
        width = self.width(node)
        return None if width is None else Columns(width)

    def _at_own(self, node: Any) -> str:
        """A value, at the program's own columns if it is a vector."""
        return self.demand(node, self._own(node))

    def _leaf_name(self, leaf: CarriedLeaf) -> str:
        name = self.names.get((leaf.node, Columns(-1)))
        if name is None:
            name = self.names[leaf.node, Columns(-1)] = self._fresh(f"{leaf.source.kind.replace(' ', '_')}_{leaf.source.place}")
        return name

    def _next_of(self, leaf: CarriedLeaf) -> str:
        """The name of a leaf's next value, frozen where its row is finished."""
        key = (leaf.node, Columns(-2))
        if key not in self.names:
            new, old, dtype = self._at_own(leaf.after), self._leaf_name(leaf), value(leaf.node).dtype
            if dtype == torch.bool:
                new = f"tl.where({new}, 1, 0)"
            if leaf.by_row and self.made.retires:
                text = f"tl.where(done > 0, {old}, {new})"
            elif leaf.by_row or leaf.width is not None or self.one_row:
                text = f"tl.where(live, {new}, {old})"
            else:
                text = new
            name = self._fresh(f"{old}_next")
            self.lines.append(f"{name} = ({text}).to({types.carried_in(dtype)})")
            self.names[key] = name
        return self.names[key]

    def _product(self, node: Node) -> str:
        """The products of a tile whose vector this program has whole; the others are there already."""
        tile = self.tile_of[node]
        if tile.exchange is not None:
            raise Unlowered(node, "a product that is asked for before its vector is exchanged")
        if tile not in self.tiled:
            self.tiled.add(tile)
            vector = self.demand(tile.left, Columns(tile.segments[0][0].inner))
            inside = f"in{tile.segments[0][0].inner}"
            whole = tile.segments[0][0].inner == tile.inner
            masked = f"tl.where(live, {vector}, 0.0)" if whole else f"tl.where({inside} & live, {vector}, 0.0)"
            self.lines.append(f"{tile.name}_x = own(({masked}).to({types.MEMORY[tile.dtype]}), {self._precision(tile)})")
            z = self._fresh(f"{tile.name}_z")
            self.lines.append(f"{z} = product({tile.name}, {tile.name}_x, {self._zeros(tile)}, {self._kind(tile)})")
            self._take_apart(tile, z, 0, tile.rows, self.lines, {})
        return self.names[node, self._own(node)]

    def _fresh_once(self, node: Node) -> str:
        """The name under which the result of a carried product goes from one step to the next."""
        key = (node, Columns(-3))
        if key not in self.names:
            self.names[key] = self._fresh(node.name)
        return self.names[key]

    def _precision(self, tile: Tile) -> str:
        return '"tf32"' if tile.dtype in types.HALVES else "PREC"

    def _kind(self, tile: Tile) -> str:
        """What the functions of `fusedrnn.kernels.gpu.products` have to know of a weight."""
        return f"{types.MEMORY[tile.dtype]}, {tile.stored is not None}, {self._precision(tile)}, ASM"

    def _far(self, tile: Tile) -> int:
        return self.sharing.programs * tile.rows * tile.inner

    def _take_apart(self, tile: Tile, z: str, begin: int, rows: int, lines: list[str], names: dict[Node, str]) -> None:
        inside = [(product, at) for product, at in tile.segments if begin <= at < begin + rows]
        if not inside:
            return
        block = self.sharing.block(inside[0][0].width)
        if len(inside) == 1 and block == rows:
            product = inside[0][0]
            name = names.get(product.node) or self._fresh(product.node.name)
            if product.width == 1:  # one column: its row of the tile
                z = f"tl.sum(tl.where(m{rows}[:, None] == 0, {z}, 0.0), 0)[None, :]"
            lines.append(f"{name} = {z}")
            if product.node not in names:
                self.names[product.node, self._own(product.node)] = name
            return
        upper, lower_half = self._fresh(f"{z}_u"), self._fresh(f"{z}_l")
        lines.append(f"{upper}, {lower_half} = halves({z}, {rows // 2}, {self.bb})")
        self._take_apart(tile, upper, begin, rows // 2, lines, names)
        self._take_apart(tile, lower_half, begin + rows // 2, rows // 2, lines, names)

    def _reduced(self, node: Node) -> str:
        """The reduction of a vector of which this program has all columns."""
        if node in self.schedule.reductions:
            raise Unlowered(node, "a reduction that is asked for before its barrier")
        return self._decoded(node, self._part(node))

    def _part(self, node: Node) -> str:
        """The reduction of this program's columns, ``[rows]``."""
        reduction = self.step.reductions[node]
        width = self.width(reduction.source)
        element = reduction.encoded(self._at_own(reduction.source), f"c{width}")
        return reduction.over(f"tl.where(in{width} & live, {element}, {reduction.identity})")

    def _decoded(self, node: Node, key: str) -> str:
        reduction = self.step.reductions[node]
        size = self.width(reduction.source)
        assert size is not None
        return self._assign(node, None, reduction.decoded(f"({key})[None, :]", size, value(node).dtype))

    def _zeros(self, tile: Tile) -> str:
        return f"tl.zeros(({tile.rows}, {self.bb}), tl.float32)"
