"""Products by tiles. In: a step's products by their vectors; out: what is multiplied at once.

A tile has 64 rows or more, whatever a program owns. Where several vectors are multiplied and each needs few rows, they are stacked: the
rows of all in one tile, which multiplies the vectors side by side; of the result the blocks count in which a vector meets its own rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from .step import CarriedLeaf, Product, Step, stripped


def power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length() if number > 1 else 1


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


@dataclass(eq=False)
class Products:
    """Products of one vector that stand in one tile.

    Attributes:
        exchange, left, phase, dtype, carried: as of their `Tile`.
    """

    exchange: Exchange | None
    left: Node
    products: list[Product]
    phase: int
    dtype: torch.dtype
    carried: list[Node]


class Tiling:
    """How products are put into tiles.

    Args:
        chunk, stack: as of `fusedrnn.lowering.gpu.schedule.schedule`.
        phase_of: of each node the phase that computes it; that of a product that waits for others is changed.
        reductions: whose parts pass a barrier.
        moved: the exchanges of vectors that are read at other columns than a program's own.
    """

    def __init__(
        self, step: Step, sharing: Sharing, chunk: int, stack: int, phase_of: dict[Node, int], reductions: Collection[Node],
        moved: Collection[Exchange],
    ) -> None:  # fmt: skip
        self.step, self.sharing, self.chunk, self.stack = step, sharing, chunk, stack
        self.phase_of, self.reductions, self.moved = phase_of, reductions, moved

    def tiles(self, apart: list[Products]) -> list[Tile]:
        """The tiles of products, which are given by their vectors."""
        return [self._tile(f"w{place}", stack) for place, stack in enumerate(self._stacked(apart))]

    def _stacked(self, apart: list[Products]) -> list[list[Products]]:
        """The products by tiles: those of several vectors together, where padding makes that smaller than apart."""
        found: list[list[Products]] = []
        exchanges = [one.exchange for one in apart]
        left = list(apart)
        while left:
            last = max(left, key=lambda one: one.phase)  # of equals the first
            others = [one for one in left if one is not last and exchanges.count(one.exchange) == 1 and self._may_join(one, last)]
            stack = sorted([last, *others[: self.stack - 1]], key=apart.index) if exchanges.count(last.exchange) == 1 else [last]
            together = self._rows(power_of_two(len(stack)) * self._share(stack))
            if len(stack) == 1 or together >= sum(self._rows(self._used(one)) for one in stack):
                stack = [last]
            for one in stack:
                left.remove(one)
                self._delay(one, last.phase)
            found.append(stack)
        return sorted(found, key=lambda stack: apart.index(stack[0]))

    def _may_join(self, one: Products, last: Products) -> bool:
        """Whether products may be made beside later ones, of another vector."""

        def kind(of: Products) -> tuple[Any, ...]:
            return of.dtype, of.products[0].inner, of.products[0].stored, len(of.carried) == len(of.products)

        if one.exchange is None or last.exchange is None or one.products[0].stored is not None or kind(one) != kind(last):
            return False
        if one.phase == last.phase:
            return True
        in_time = all(self._needed(product.node) >= last.phase for product in one.products)
        return in_time and not one.carried and one.exchange.leaf is None and one.exchange not in self.moved

    def _needed(self, node: Node) -> int:
        """The phase that needs a product at the latest."""
        exchanged = {*self.step.products, *self.reductions}  # what they read passes the barrier before them
        phases = [self.phase_of[user] - (user in exchanged) for user in node.users if user in self.phase_of]
        is_next = any(stripped(leaf.after, self.step) is node for leaf in self.step.leaves)
        return min([*phases, self.phase_of[node]] if is_next or node in {one.node for one in self.moved} else phases, default=0)

    def _delay(self, products: Products, phase: int) -> None:
        if products.phase != phase:
            assert products.exchange is not None
            products.phase, products.exchange.phase = phase, phase - 1
            self.phase_of.update({product.node: phase for product in products.products})

    def _used(self, products: Products) -> int:
        return sum(self.sharing.block(product.width) for product in products.products)

    def _share(self, stack: list[Products]) -> int:
        """The rows of each vector of a stack."""
        return power_of_two(max(self._used(one) for one in stack))

    def joined(self, products: list[Product]) -> list[list[Product]]:
        """The products of one vector by tiles: together, unless padding to a power of two would make that larger than apart."""
        by_block: dict[int, list[Product]] = {}
        for product in products:
            by_block.setdefault(self.sharing.block(product.width), []).append(product)
        apart = sum(self._rows(block * len(some)) for block, some in by_block.items())
        together = self._rows(sum(block * len(some) for block, some in by_block.items()))
        return [products] if together <= apart else list(by_block.values())

    def _rows(self, used: int) -> int:
        return max(power_of_two(used), self.sharing.least_rows)

    def _tile(self, name: str, stack: list[Products]) -> Tile:
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
            name, first.exchange, first.left, segments, rows, inner, chunk, first.phase, first.dtype,
            [node for one in stack for node in one.carried], stored=first.products[0].stored, window=inner // chunk, vectors=count,
            share=share,
        )  # fmt: skip
