"""A plan as a value: what the launcher, the lowering and `explain` read. In: the planner's choices; out: themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels.gpu.launch import Options
from ..lowering.gpu.schedule import Schedule
from .cost import Cost, shared_bytes


@dataclass(frozen=True)
class Plan:
    """The layout of a persistent kernel.

    Attributes:
        schedule: the phases, with the programs of a group and the blocks of columns.
        batch_tile: the rows of a group, a power of two.
        most_groups: that fit on the device at once; more rows run one after another.
        precision: of float32 products: "ieee" (emulated), "hilo" (full) or "tf32".
        options: of the compiler.
        cost: of a step, by the model.
        device: whose limits it fits.
        ahead: what the first phase reads is asked for a step earlier.
    """

    schedule: Schedule
    batch_tile: int
    most_groups: int
    precision: str
    options: Options
    cost: Cost
    device: str
    ahead: bool = True

    @property
    def microseconds(self) -> float:
        """Of a step, by the model."""
        return self.cost.total

    @property
    def programs(self) -> int:
        return self.schedule.sharing.programs

    @property
    def resident(self) -> bool:
        """Whether all weights stay on-chip."""
        return all(tile.resident for tile in self.schedule.tiles)

    def groups(self, batch: int) -> int:
        """The groups of one launch."""
        return min(-(-batch // self.batch_tile), self.most_groups)

    def lines(self, batch: int) -> list[str]:
        """The plan as text, for the source's header and `explain`."""
        schedule, cost = self.schedule, self.cost
        groups = self.groups(batch)
        lines = [
            f"A loop as one launch: {groups} groups of {self.programs} programs, {self.batch_tile} rows a group "
            f"({self.options.warps} warps, {self.device}).",
            f"{schedule.phases} phases and {len(schedule.barriers)} barriers a step.",
        ]
        front = schedule.step.made.wavefront
        if front is not None:
            lines.append(f"Layers along the diagonal: the last is {front.lag} step{'s' * (front.lag > 1)} behind the first.")
        for tile in schedule.tiles:
            parts = " + ".join(f"[{product.inner}, {product.width}]" for product, _ in tile.segments)
            where = "resident" if tile.resident else "streamed"
            where += " in registers" if tile.in_registers else ""
            where += f", {tile.vectors} vectors side by side" if tile.vectors > 1 else ""
            of = f"[{tile.rows}, {tile.inner}] {_name(tile.in_memory)}"
            lines.append(f"{tile.name}: {parts} as {of} a program, {tile.bytes} bytes, {where}.")
        lines += [
            f"{exchange.name}: {'a vector' if exchange.of == 1 else f'{exchange.of} vectors'} of {exchange.width} {_name(exchange.dtype)}, "
            f"published behind phase {exchange.phase}."
            for exchange in schedule.exchanges
            if exchange.place == 0
        ]
        shared = shared_bytes(schedule, self.batch_tile, self.precision == "hilo")
        lines.append(f"Shared memory about {shared} bytes a program.")
        lines.append(
            f"Model: {cost.total:.2f} us a step: barriers {cost.barriers:.2f}, exchange {cost.exchange:.2f}, products {cost.products:.2f}, "
            f"streaming {cost.streaming:.2f}, pointwise {cost.pointwise:.2f}" + (f", reads {cost.reads:.2f}." if cost.reads else ".")
        )
        return lines


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
