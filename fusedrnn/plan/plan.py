"""A plan as a value: what the launcher, the lowering and `explain` read. In: the planner's choices; out: themselves."""

from __future__ import annotations

from dataclasses import dataclass

from ..kernels.gpu.launch import Options
from ..lowering.gpu.schedule import Schedule


@dataclass(frozen=True)
class Plan:
    """The layout of a persistent kernel.

    Attributes:
        schedule: the phases, with the programs of a group and the blocks of columns.
        batch_tile: the rows of a group, a power of two.
        most_groups: that fit on the device at once; more rows run one after another.
        precision: of float32 products: "ieee" (emulated), "hilo" (full) or "tf32".
        options: of the compiler.
    """

    schedule: Schedule
    batch_tile: int
    most_groups: int
    precision: str
    options: Options

    @property
    def programs(self) -> int:
        return self.schedule.sharing.programs

    def groups(self, batch: int) -> int:
        """The groups of one launch."""
        return min(-(-batch // self.batch_tile), self.most_groups)
