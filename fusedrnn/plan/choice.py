"""Which of a step's layouts is taken. In: plans, the best by the model first, and what compiling each gives; out: the one to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ..lowering.gpu.rule import Unlowered
from .plan import Plan


class Measured(Protocol):
    """What of a compiled kernel decides."""

    @property
    def spill_bytes(self) -> int:
        """That a thread writes because its registers do not suffice."""

    @property
    def shared_bytes(self) -> int:
        """Of a program."""


M = TypeVar("M", bound=Measured)
_MUCH = 256  # bytes a thread


@dataclass(frozen=True)
class Choice(Generic[M]):
    """A plan that was taken.

    Attributes:
        plan: the layout.
        measured: what compiling it gave.
        place: in the list of plans.
        passed_over: why each of the plans before it was not taken, and of those behind it that were compiled, in one line.
    """

    plan: Plan
    measured: M
    place: int
    passed_over: tuple[str, ...]


def chosen(plans: Sequence[Plan], compiled: Callable[[Plan], M | str], shared_bytes: int, *, most: int = 16) -> Choice[M]:
    """The first plan whose kernel fits into shared memory and does not spill; where each spills, the one that spills least.

    The model knows neither registers nor what the compiler needs of shared memory on the way: only a compiled kernel does. Plans with as
    many programs and rows a group differ in how much of a vector is under way: where one spills much, only the last of them, with the least
    under way, is worth another try.

    Args:
        plans: the best by the model first.
        compiled: compiles a plan; where the compiler refuses it, says why in one line.
        shared_bytes: that one program may use.
        most: how many plans that fit are compiled, of those that keep all weights on-chip and of the others, before the least spills are
            taken; those that do not fit are not counted.

    Raises:
        Unlowered: no plan fits.
    """
    fitting: list[tuple[int, int, M]] = []
    tried = {True: 0, False: 0}
    last = {_tiling(plan): place for place, plan in enumerate(plans)}
    heavy: set[tuple[Any, ...]] = set()
    why: dict[int, str] = {}
    for place, plan in enumerate(plans):
        tiling = _tiling(plan)
        if tried[plan.resident] == most or (tiling in heavy and place != last[tiling]):
            continue
        measured = compiled(plan)
        if isinstance(measured, str):
            why[place] = f"{_named(plan)}: {measured}"
        elif measured.shared_bytes > shared_bytes:
            why[place] = f"{_named(plan)}: needs {measured.shared_bytes} bytes of shared memory, there are {shared_bytes}"
        else:
            fitting.append((measured.spill_bytes, place, measured))
            tried[plan.resident] += 1
            if measured.spill_bytes > _MUCH:
                heavy.add(tiling)
            why[place] = f"{_named(plan)}: spills {measured.spill_bytes} bytes a thread"
            if not measured.spill_bytes:
                break
    if not fitting:
        raise Unlowered(None, f"no layout's kernel fits: {'; '.join(why.values()) or 'there is none'}")
    _, place, measured = min(fitting, key=lambda found: found[:2])
    return Choice(plans[place], measured, place, tuple(reason for at, reason in why.items() if at != place))


def _tiling(plan: Plan) -> tuple[Any, ...]:
    return plan.resident, plan.programs, plan.batch_tile, plan.ahead, *[tile.vectors for tile in plan.schedule.tiles]


def _named(plan: Plan) -> str:
    return f"{plan.programs} programs of {plan.batch_tile} rows"
