"""When and where a step is computed. In: a `Step` and how its columns are shared out; out: phases, exchanges between programs, tiles.

A barrier parts two phases. What a program needs whole of a vector that the programs made together is exchanged behind one: the left side
of a product, the best of an argmax, a vector read at other columns. The product of a carried leaf is made right behind the barrier that
its next value passes, for the next step, together with this step's products of the same vector: one read, one tile.
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
from .tiles import Exchange, Products, Sharing, Tile, Tiling


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
        tiling = Tiling(self.step, self.sharing, self.chunk, self.stack, found.phase_of, {*found.reductions}, [*found.moved.values()])
        apart: list[Products] = []
        for (key, dtype, _), products in groups.items():
            exchange = key if isinstance(key, Exchange) else None
            source = stripped(products[0].left, self.step)
            for joined in tiling.joined(products):
                is_carried = [stripped(product.left, self.step) in self.leaf_of for product in joined]
                carried = [product.node for product, is_leaf in zip(joined, is_carried, strict=True) if is_leaf and exchange is not None]
                phase = exchange.phase + 1 if exchange is not None else max(found.phase_of[product.node] for product in joined)
                apart.append(Products(exchange, source, joined, phase, dtype, carried))
        found.tiles = tiling.tiles(apart)


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
