"""Products of vectors that the programs of a group exchange, as lines of a kernel. In: tiles; out: lines, and names of the products."""

from __future__ import annotations

from torch.fx import Node

from .ahead import ReadingAhead
from .schedule import Schedule
from .tiles import Tile


class Multiplying(ReadingAhead):
    """`ReadingAhead` with products.

    Args:
        some: as of `fusedrnn.lowering.gpu.source.kernel_source`.

    Attributes:
        read_rows: the lines that name the rows of exchanged vectors.
    """

    def __init__(self, schedule: Schedule, batch_tile: int, some: bool) -> None:
        super().__init__(schedule, batch_tile)
        self.some = some
        self.read_rows: dict[str, str] = {}

    def is_ahead(self, tile: Tile) -> bool:
        """Whether a tile's carried products are made in the step before, beside products of that step."""
        return tile.exchange is not None and bool(tile.carried) and tile.phase < self.schedule.phases

    def multiplied(self, phase: int, *, only_carried: bool) -> list[str]:
        """The products of what the last phase published: those whose tiles are all for the next step, or the others."""
        lines: list[str] = []
        for tile in self.schedule.tiles:
            if tile.exchange is not None and tile.phase == phase and tile.only_carried == only_carried:
                names = {node: f"{self._fresh_once(node)}_next" for node in tile.carried}
                self.read_and_multiply(tile, "this", lines, names)
        return lines

    def read_and_multiply(self, tile: Tile, which: str, lines: list[str], names: dict[Node, str]) -> None:
        """Write the products of a vector.

        Args:
            which: the step whose vector it is, as of `Exchange.slot`.
            names: of the products that are for the next step.
        """
        exchange = tile.exchange
        assert exchange is not None
        z = self._fresh(f"{tile.name}_z")
        at = f"{exchange.name} + {exchange.slot(which)} * padded * {exchange.width}"
        sizes, side = f"{exchange.width}, {tile.inner}, {tile.chunk}", tile.side_by_side
        flat, some = self._rows_of(tile)
        acc = f"tl.zeros(({tile.rows}, {side * self.bb}), tl.float32)"
        if tile.resident:
            text = f"multiply({tile.name}, {at}, {flat}, k{tile.chunk}, {acc}, {sizes}, {tile.window}"
        else:
            text = f"streamed({tile.name}_at, {self._far(tile)}, m{tile.rows}, k{tile.chunk}, {at}, {flat}, {acc}, {sizes}, {tile.stages}"
        text = f"{text}, {self._kind(tile)}{', True' if some else ''})"
        lines.append(f"{z} = {text if tile.vectors == 1 else f'met({text}, {tile.share}, {side}, {self.bb})'}")
        self._take_apart(tile, z, 0, tile.rows, lines, names)

    def _rows_of(self, tile: Tile) -> tuple[str, bool]:
        """The rows of an exchanged vector, or of a stack side by side, in the memory that they pass; whether only some are there."""
        side, bb = tile.side_by_side, self.bb
        if side == 1 and not self.some:
            return "flat", False
        name, place, row = f"flat_of{tile.vectors}", f"tl.arange(0, {side * bb}) // {bb}", f"grp * {bb} + tl.arange(0, {side * bb}) % {bb}"
        at, there = f"{place} * padded + {row}" if side > 1 else "flat", []
        if self.some:
            there.append(f"(first_row + {row if side > 1 else 'flat'} < B)")
        if side != tile.vectors:
            there.append(f"({place} < {tile.vectors})")
        mask = " & ".join(there)
        self.read_rows[name] = f"{name} = tl.where({mask}, {at}, -1)" if there else f"{name} = {at}"
        return name, bool(there)
