"""When and where a step is computed. In: a `Step` and how its columns are shared out; out: phases, exchanges between programs, tiles.

A barrier parts two phases. What a program needs whole of a vector that the programs made together is exchanged behind one: the left side
of a product, the best of an argmax, a vector read at other columns. The product of a carried leaf is made right behind the barrier that
its next value passes, for the next step, together with this step's products of the same vector: one read, one tile.

A tile has 64 rows or more, whatever a program owns. Where several vectors are multiplied and each needs few rows, they are stacked: the
rows of all in one tile, which multiplies the vectors side by side; of the result the blocks count in which a vector meets its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from ...optimise.graph import value
from .columns import C, Columns
from .probe import asked
from .step import CarriedLeaf, Product, Step, stripped


@dataclass(frozen=True)
class Sharing:
    """How the columns of vectors are shared out among the programs of a group.

    Attributes:
        programs: of a group.
        replicated: the widths that every program computes for itself.
        least_rows: of a product's tile, a power of two.
    """

    programs: int
    replicated: frozenset[int] = frozenset()
    least_rows: int = 16

    def block(self, width: int) -> int:
        """The columns of a vector that one program owns, a power of two."""
        return max(power_of_two(width), 16) if self.is_whole(width) else power_of_two(-(-width // self.programs))

    def is_whole(self, width: int) -> bool:
        """Whether every program has all columns."""
        return self.programs == 1 or width == 1 or width in self.replicated


@dataclass(eq=False)
class Exchange:
    """A vector that all programs of a group need whole.

    Attributes:
        name: in the source.
        node: what is published; of a leaf its next value.
        leaf: the carried leaf that this is.
        width, dtype: of the vector.
        phase: at whose end it is published.
        place, of: which it is of the vectors that stand side by side in memory of one name.
        slots: how many steps' vectors are kept. A step reads its own, or the last step's up to its first barrier: two, since who writes the
            next but one has passed a barrier behind that. Of a leaf that is read anywhere in the step three.
    """

    name: str
    node: Node
    leaf: CarriedLeaf | None
    width: int
    dtype: torch.dtype
    phase: int
    place: int = 0
    of: int = 1
    slots: int = 2

    def slot(self, which: str) -> str:
        """Where a vector stands: of "this" step, of the step "before", or what the "first" step finds."""
        time = {"this": "time", "before": "(time - 1)", "first": "t0"}[which]
        slot = f"({time} & 1)" if self.slots == 2 else f"({time} % 3)"
        return slot if self.of == 1 else f"({slot} * {self.of} + {self.place})"


@dataclass(eq=False)
class Tile:
    """Products of one vector, or of a stack of vectors, made together.

    Attributes:
        name: in the source.
        exchange: of the vector, or of the first of a stack; None where each program has it whole in registers.
        left: the vector; of a carried leaf its placeholder.
        segments: (product, first row of its columns in the tile), the largest blocks first.
        rows, inner, chunk: the tile is ``[rows, inner]``, padded, and is read ``chunk`` columns at a time.
        phase: in which it is made.
        carried: the products whose results are for the next step.
        resident: it stays on-chip.
        stored: the weight's dtype in memory, where that is one byte; else None.
        in_registers: a resident weight of one byte stays as bytes in registers; else in shared memory, as the vector's dtype.
        window: how many chunks of the vector are read at once.
        stages: how many chunks of a weight that does not stay are under way.
        vectors: how many are stacked.
        share: the rows of each of them.
    """

    name: str
    exchange: Exchange | None
    left: Node
    segments: list[tuple[Product, int]]
    rows: int
    inner: int
    chunk: int
    phase: int
    dtype: torch.dtype
    carried: list[Node] = field(default_factory=list)
    resident: bool = True
    stored: torch.dtype | None = None
    in_registers: bool = False
    window: int = 1
    stages: int = 2
    vectors: int = 1
    share: int = 0

    @property
    def side_by_side(self) -> int:
        """The vectors that are read, a power of two: some of them twice."""
        return power_of_two(self.vectors)

    @property
    def only_carried(self) -> bool:
        """Whether all its products are for the next step."""
        return len(self.carried) == len(self.segments)

    @property
    def chunks(self) -> int:
        return self.inner // self.chunk

    @property
    def in_memory(self) -> torch.dtype:
        """The dtype of the weight as the kernel loads it: the host has converted one that stays in shared memory."""
        return self.dtype if self.stored is None or (self.resident and not self.in_registers) else self.stored

    @property
    def bytes(self) -> int:
        """Of the weight of a program, in memory."""
        return self.rows * self.inner * self.in_memory.itemsize


@dataclass
class Schedule:
    """The phases of a step.

    Attributes:
        phase_of: of each node the earliest phase that can compute it.
        phases: how many.
        exchanges: in the order of their phases.
        reductions: those whose parts are exchanged, with the phase that publishes them.
        barriers: the phases that end in a barrier.
        moved: the vectors that are read at other columns than a program's own.
        fixed: those that a program has at its own columns only: products, carried leaves, and what is made of them.
    """

    step: Step
    sharing: Sharing
    phase_of: dict[Node, int] = field(default_factory=dict)
    phases: int = 1
    exchanges: list[Exchange] = field(default_factory=list)
    reductions: dict[Node, int] = field(default_factory=dict)
    tiles: list[Tile] = field(default_factory=list)
    moved: dict[Node, Exchange] = field(default_factory=dict)
    fixed: set[Node] = field(default_factory=set)

    @property
    def barriers(self) -> list[int]:
        return sorted({exchange.phase for exchange in self.exchanges} | set(self.reductions.values()))


def schedule(step: Step, sharing: Sharing, chunk: int = 128, stack: int = 1) -> Schedule:
    """The schedule of a step.

    Args:
        chunk: how many columns of a weight are read at a time, a power of two.
        stack: how many vectors are stacked, at most.
    """
    return _Scheduler(step, sharing, chunk, stack).schedule()


@dataclass(eq=False)
class _Products:
    """Products of one vector."""

    exchange: Exchange | None
    left: Node
    products: list[Product]
    phase: int
    dtype: torch.dtype
    carried: list[Node]


def power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length() if number > 1 else 1


class _Scheduler:
    def __init__(self, step: Step, sharing: Sharing, chunk: int, stack: int) -> None:
        self.step, self.sharing, self.chunk, self.stack = step, sharing, chunk, stack
        self.found = Schedule(step, sharing)
        self.leaf_of = {leaf.node: leaf for leaf in step.leaves}
        # Where rows retire, a finished row's next value is never seen: the frozen one stands for it.
        self.next_of = {stripped(leaf.after, step): leaf for leaf in step.leaves if step.made.retires or step.made.program.batch == 1}
        self.by_key: dict[tuple[Node, torch.dtype], Exchange] = {}

    def schedule(self) -> Schedule:
        found, step = self.found, self.step
        found.fixed = {leaf.node for leaf in step.leaves if leaf.width is not None}
        for leaf in step.leaves:
            found.phase_of[leaf.node] = 0
        pending: list[tuple[CarriedLeaf, torch.dtype, bool]] = []
        for node in step.nodes:
            phase = max([found.phase_of.get(operand, 0) for operand in node.all_input_nodes], default=0)
            if not isinstance(value(node), torch.Tensor):
                found.phase_of[node] = phase
                continue
            product, reduction = step.products.get(node), step.reductions.get(node)
            if product is not None:
                phase = self._product_phase(product, phase, pending)
                found.fixed |= {node} if step.width(node) is not None else set()
            elif reduction is not None:
                if not self.sharing.is_whole(self._width(reduction.source)):
                    found.reductions[node] = phase
                    phase += 1
            else:
                phase = self._asking_phase(node, phase, pending)
            found.phase_of[node] = phase
        found.phases = max(found.phase_of.values(), default=0) + 1
        for leaf, dtype, is_moved in pending:
            exchange = self._exchange(leaf.after, leaf, dtype, found.phase_of.get(leaf.after, 0))
            if is_moved:
                found.moved[leaf.node] = exchange
                exchange.slots = 3
        self._tiles()
        found.exchanges.sort(key=lambda exchange: exchange.phase)
        return found

    def _width(self, node: Any) -> int:
        width = self.step.width(node)
        assert width is not None
        return width

    def _product_phase(self, product: Product, phase: int, pending: list[tuple[CarriedLeaf, torch.dtype, bool]]) -> int:
        dtype, source = value(product.left).dtype, stripped(product.left, self.step)
        leaf = self.leaf_of.get(source)
        if self.sharing.is_whole(product.inner):
            return phase  # in registers
        if leaf is not None:
            pending.append((leaf, dtype, False))
            return 0
        self._exchange(source, self.next_of.get(source), dtype, phase)
        return phase + 1

    def _asking_phase(self, node: Node, phase: int, pending: list[tuple[CarriedLeaf, torch.dtype, bool]]) -> int:
        """Operands that are read at other columns than the program's own pass a barrier first. What reads none of them at its own columns
        can be computed at any, unless that takes a loop."""
        found, width = self.found, self.step.width(node)
        asks = asked(node, self.step)
        for operand, columns in asks.operands:
            if operand not in found.fixed:
                continue
            if columns == Columns(self._width(operand), C):
                found.fixed |= {node} if width is not None else set()
                continue
            leaf = self.leaf_of.get(operand)
            if leaf is not None:
                pending.append((leaf, value(operand).dtype, True))
                continue
            at = found.phase_of[operand]
            found.moved[operand] = self._exchange(operand, None, value(operand).dtype, at)
            phase = max(phase, at + 1)
        if asks.loops and width is not None:
            found.fixed.add(node)
        return phase

    def _exchange(self, node: Node, leaf: CarriedLeaf | None, dtype: torch.dtype, phase: int) -> Exchange:
        key = (leaf.node if leaf is not None else node, dtype)
        if key not in self.by_key:
            exchange = Exchange(f"x{len(self.by_key)}", node, leaf, self._width(node), dtype, phase)
            self.by_key[key] = exchange
            self.found.exchanges.append(exchange)
        return self.by_key[key]

    def _tiles(self) -> None:
        """Put the products of one vector into one tile."""
        found = self.found
        groups: dict[tuple[Any, ...], list[Product]] = {}
        for product in self.step.products.values():
            source = stripped(product.left, self.step)
            dtype = value(product.left).dtype
            leaf = self.leaf_of.get(source)
            published = self.next_of.get(source)
            exchange = self.by_key.get(((leaf or published).node if leaf or published else source, dtype))  # type: ignore[union-attr]
            if self.sharing.is_whole(product.inner):
                exchange = None
            groups.setdefault((exchange or source, dtype, product.stored), []).append(product)
        apart: list[_Products] = []
        for (key, dtype, _), products in groups.items():
            exchange = key if isinstance(key, Exchange) else None
            source = stripped(products[0].left, self.step)
            for joined in self._joined(products):
                is_carried = [stripped(product.left, self.step) in self.leaf_of for product in joined]
                carried = [product.node for product, is_leaf in zip(joined, is_carried, strict=True) if is_leaf and exchange is not None]
                phase = exchange.phase + 1 if exchange is not None else max(found.phase_of[product.node] for product in joined)
                apart.append(_Products(exchange, source, joined, phase, dtype, carried))
        for stacked in self._stacked(apart):
            found.tiles.append(self._tile(stacked))

    def _stacked(self, apart: list[_Products]) -> list[list[_Products]]:
        """The products by tiles: those of several vectors together, where padding makes that smaller than apart."""
        found: list[list[_Products]] = []
        exchanges = [one.exchange for one in apart]
        left = list(apart)
        while left:
            last = max(left, key=lambda one: one.phase)  # of equals the first
            mates = [one for one in left if one is last or (exchanges.count(one.exchange) == 1 and self._may_join(one, last))]
            stack = mates[: self.stack] if last in mates[: self.stack] and exchanges.count(last.exchange) == 1 else [last]
            together = self._rows(power_of_two(len(stack)) * self._share(stack))
            if len(stack) == 1 or together >= sum(self._rows(self._used(one)) for one in stack):
                stack = [last]
            for one in stack:
                left.remove(one)
                self._delay(one, last.phase)
            found.append(stack)
        return sorted(found, key=lambda stack: apart.index(stack[0]))

    def _may_join(self, one: _Products, last: _Products) -> bool:
        """Whether products may be made beside later ones, of another vector."""

        def kind(of: _Products) -> tuple[Any, ...]:
            return of.dtype, of.products[0].inner, of.products[0].stored, len(of.carried) == len(of.products)

        if one.exchange is None or last.exchange is None or one.products[0].stored is not None or kind(one) != kind(last):
            return False
        if one.phase == last.phase:
            return True
        users = [user for product in one.products for user in product.node.users if user in self.found.phase_of]
        in_time = all(self.found.phase_of[user] >= last.phase for user in users)
        return in_time and not one.carried and one.exchange.leaf is None and one.exchange not in self.found.moved.values()

    def _delay(self, products: _Products, phase: int) -> None:
        if products.phase != phase:
            assert products.exchange is not None
            products.phase, products.exchange.phase = phase, phase - 1
            self.found.phase_of |= {product.node: phase for product in products.products}

    def _used(self, products: _Products) -> int:
        return sum(self.sharing.block(product.width) for product in products.products)

    def _share(self, stack: list[_Products]) -> int:
        """The rows of each vector of a stack."""
        return power_of_two(max(self._used(one) for one in stack))

    def _joined(self, products: list[Product]) -> list[list[Product]]:
        """The products of one vector by tiles: together, unless padding to a power of two would make that larger than apart."""
        by_block: dict[int, list[Product]] = {}
        for product in products:
            by_block.setdefault(self.sharing.block(product.width), []).append(product)
        apart = sum(self._rows(block * len(some)) for block, some in by_block.items())
        together = self._rows(sum(block * len(some) for block, some in by_block.items()))
        return [products] if together <= apart else list(by_block.values())

    def _rows(self, used: int) -> int:
        return max(power_of_two(used), self.sharing.least_rows)

    def _tile(self, stack: list[_Products]) -> Tile:
        first, count = stack[0], len(stack)
        share, segments = self._share(stack), []
        for place, one in enumerate(stack):
            begin = place * share
            blocks = sorted(((self.sharing.block(product.width), product) for product in one.products), key=lambda pair: -pair[0])
            for block, product in blocks:
                segments.append((product, begin))
                begin += block
        if count > 1:
            slots = max(one.exchange.slots for one in stack if one.exchange is not None)
            for place, one in enumerate(stack):
                assert first.exchange is not None
                assert one.exchange is not None
                one.exchange.name, one.exchange.place, one.exchange.of, one.exchange.slots = first.exchange.name, place, count, slots
        width = first.products[0].inner
        inner = chunk = max(power_of_two(width), 16)
        if first.exchange is not None:
            chunk = min(self.chunk, inner)
            inner = -(-width // chunk) * chunk
        rows = self._rows(power_of_two(count) * share) if count > 1 else self._rows(self._used(first))
        return Tile(
            f"w{len(self.found.tiles)}", first.exchange, first.left, segments, rows, inner, chunk, first.phase, first.dtype,
            [node for one in stack for node in one.carried], stored=first.products[0].stored, window=inner // chunk, vectors=count,
            share=share,
        )  # fmt: skip


def needs_one_group(step: Step) -> str | None:
    """Why all rows have to run in one group; None where groups may end on their own."""
    if step.made.program.batch == 1:
        return None
    if step.made.locality is not None and step.made.locality.over_rows:
        return "rows depend on one another"
    if not step.made.retires:
        return "what finished rows do can be seen"
    shared = next((leaf for leaf in step.leaves if leaf.returned and not leaf.by_row), None)
    return None if shared is None else "a leaf of no row goes on until the last row ends"
