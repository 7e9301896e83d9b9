"""Reads ahead. In: a schedule; out: lines that ask in each step for what the next one reads at its time, so that no step waits for memory.

What is known before the loop, or was made for all steps, stands in the device's memory, which is far: a step that asks for it when it needs
it waits longer than at its barrier. What depends on the time alone is asked for a step earlier, and is carried.
"""

from __future__ import annotations

from torch.fx import Node

from ...capture import ops
from ...optimise.graph import value
from . import types
from .columns import C, Columns
from .rule import Lowering
from .rules import lower
from .schedule import Schedule
from .step import Step
from .values import Names, Values

_NUMBER = "tl.zeros((1, 1), tl.int32)"  # what is added to it has the rank of a tile


def is_timed_read(node: Node, step: Step) -> bool:
    """Whether a node is a vector, or a number of each row, that is read from memory at a place that depends on the time alone."""
    is_read = node in step.hoisted or (node.target is ops.read and node in step.timed and node not in step.invariant)
    return is_read and (step.rows(node) is not None or step.width(node) is not None)


def reads_by_time(step: Step) -> bool:
    """Whether a step reads so."""
    return any(is_timed_read(node, step) for node in (*step.hoisted, *step.nodes))


class ReadingAhead(Values):
    """`Values` whose reads are asked for in the step before.

    Attributes:
        may_ask: reads that are written now are such.
        carried: the names under which they go from step to step.
    """

    def __init__(self, schedule: Schedule, batch_tile: int) -> None:
        super().__init__(schedule, batch_tile)
        self.may_ask = False
        self.carried: dict[tuple[Node, Columns | None], str] = {}
        self._next: Names = {}  # of what is made of the next step's time
        self._first: Names = {}

    def _written(self, node: Node, columns: Columns | None) -> str:
        in_step = self.lines is self.blocks[0] and (columns is None or not columns.loops)
        is_tile = self.rows(node) is not None or (columns is not None and C in columns.at.free_symbols)
        if not (self.may_ask and in_step and is_tile and is_timed_read(node, self.step)):
            return super()._written(node, columns)
        name = self.carried[node, columns] = self._fresh(f"{node.name}_ahead")
        asked = self._asked(node, columns, self._first, "(t0 + 1)", "0", f"({_NUMBER} + t0 < T)", self.prelude)
        self.prelude.append(f"{name} = {asked}")
        return self._assign(node, columns, types.loaded(name, value(node).dtype))

    def asked_for(self) -> list[str]:
        """The lines that ask for what the next step reads, if there is one."""
        lines: list[str] = []
        for (node, columns), name in self.carried.items():
            asked = self._asked(node, columns, self._next, "(time + 1)", "(step + 1)", f"({_NUMBER} + time < T)", lines)
            lines.append(f"{name}_next = {asked}")
        return lines

    def _asked(self, node: Node, columns: Columns | None, names: Names, clock: str, step: str, only: str, lines: list[str]) -> str:
        """A load, of another step; what its place is made of is named by itself."""
        outer = self.names, self.lines, self.blocks, self.clock, self.nth, self.only
        names |= {key: name for key, name in self.names.items() if key[0] in self.step.invariant}
        self.names, self.lines, self.blocks = names, lines, [lines]
        self.clock, self.nth, self.only = clock, step, (node.args[0] if node.target is ops.read else node, only)
        text = self._loaded(node, columns) if node in self.hoisted else lower(Lowering(node, columns, self))
        self.names, self.lines, self.blocks, self.clock, self.nth, self.only = outer
        self.names |= {key: name for key, name in names.items() if key[0] in self.step.invariant}
        return text
