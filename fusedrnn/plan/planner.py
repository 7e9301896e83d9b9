"""Chooses how a step is laid out. In: a step, a batch size, the limits of a device; out: plans, the best by the model first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import product
from types import MappingProxyType

from ..capture.program import Program
from ..kernels.gpu.launch import Options
from ..kernels.gpu.limits import Limits
from ..lowering.gpu.ahead import reads_by_time
from ..lowering.gpu.rule import Unlowered
from ..lowering.gpu.schedule import Schedule, needs_one_group, schedule
from ..lowering.gpu.step import Step, prepared, step_of
from ..lowering.gpu.tiles import Sharing, power_of_two
from ..lowering.pipeline import spread
from .cost import IN_FLIGHT, columns, fit, step_cost, stream
from .plan import Plan

EMULATED = Limits("emulated", 0, 4, 227 << 10, 65536, 255, 1024, 50 << 20, 1e11)  # few programs: each is a process
_BATCH_TILES = (8, 16, 32, 64, 128)  # a tensor core multiplies 8 rows at least
_BLOCKS = (4, 8, 16, 32, 64, 128, 256)
_CHUNK = 128
_WGMMA_ROWS = 64  # fewer rows of a tile than that are multiplied warp by warp, on any device
_DOUBT = 1.02  # a streamed layout must be so much better than a resident one: its reads contend, which the model does not know
_MOST_ACCUMULATORS = 64  # registers a thread that a tile's results may take
_MOST_STACKED = 8  # vectors side by side in one product


def planned(program: Program, batch: int, limits: Limits, precision: str, sizes: Mapping[str, int] = MappingProxyType({})) -> list[Plan]:
    """The layouts of a captured program; as `plans`.

    Args:
        sizes: those that the kernel is made for (`lowering.gpu.step.sizes_of`).

    Raises:
        Unlowered: of `lowering.operators` or of `lowering.gpu`: the persistent kernel cannot hold it.
    """
    made = prepared(program)
    found = plans(step_of(made, sizes), batch, limits, precision)
    apart = spread(made, program.batch)
    if apart is None:
        return found
    with suppress(Unlowered):
        found += plans(step_of(apart, sizes), batch, limits, precision)
    return sorted(found, key=lambda plan: _cost(plan, batch))


def plans(step: Step, batch: int, limits: Limits, precision: str) -> list[Plan]:
    """All layouts that fit, the fastest by the model first.

    Args:
        precision: of float32 products: "ieee", "hilo" or "tf32".

    Raises:
        Unlowered: no layout fits.
    """
    one_group = needs_one_group(step)
    found = [plan for plan in _candidates(step, batch, limits, precision) if one_group is None or plan.batch_tile >= batch]
    if not found and one_group is not None and batch > _BATCH_TILES[-1]:
        raise Unlowered(None, f"{one_group}, so all {batch} rows would have to run in one group, which has {_BATCH_TILES[-1]} at most")
    if not found:
        raise Unlowered(None, f"no layout fits {limits.name}: its weights need more than the shared memory of {limits.sms} multiprocessors")

    return sorted(found, key=lambda plan: _cost(plan, batch))


def _cost(plan: Plan, batch: int) -> float:
    return plan.microseconds * -(-batch // (plan.batch_tile * plan.groups(batch))) * (1.0 if plan.resident else _DOUBT)


def _candidates(step: Step, batch: int, limits: Limits, precision: str) -> Iterator[Plan]:
    split = precision == "hilo"
    tiles = [tile for tile in _BATCH_TILES if tile <= max(power_of_two(batch), _BATCH_TILES[0])]
    for sharing in _sharings(step, limits):
        scheduled = _scheduled(step, sharing)
        for batch_tile, shared in product(tiles, scheduled):
            seen: set[tuple[tuple[bool, int], ...]] = set()
            for in_flight in (IN_FLIGHT, IN_FLIGHT // 2, IN_FLIGHT // 4, 0):  # the fewer, the fewer registers; without any all is streamed
                found = replace(shared, tiles=[replace(tile) for tile in shared.tiles])  # a plan owns its tiles
                if not in_flight:
                    stream(found, batch_tile, split, limits)
                warps = _warps(found, batch_tile)
                if warps is None or not fit(found, batch_tile, split, limits, in_flight):
                    continue
                if any(tile.in_registers for tile in found.tiles):
                    warps = 8
                kind = tuple((tile.resident, tile.window if tile.exchange is not None else 0) for tile in found.tiles)
                if kind in seen:
                    continue
                seen.add(kind)
                groups = max(limits.sms // sharing.programs, 1)
                maxnreg = 250 if warps == 8 else None  # 255 fail on sm_100
                for ahead in (True, False) if reads_by_time(step) else (True,):  # what is under way takes registers
                    cost = step_cost(found, batch_tile, min(groups, -(-batch // batch_tile)), split, rows=batch, ahead=ahead)
                    yield Plan(found, batch_tile, groups, precision, Options(warps, 2, maxnreg), cost, limits.name, ahead)


def _scheduled(step: Step, sharing: Sharing) -> list[Schedule]:
    """The schedules: with all vectors stacked that can be, with two, with none."""
    found = schedule(step, sharing, _CHUNK, _MOST_STACKED)
    most = max((tile.vectors for tile in found.tiles), default=1)
    return [found, *[schedule(step, sharing, _CHUNK, stack) for stack in (2, 1) if stack < most]]


def _warps(found: Schedule, batch_tile: int) -> int | None:
    """The warps of a program; None where a tile's results do not fit into its registers."""
    most = max((tile.rows * columns(tile, batch_tile) for tile in found.tiles), default=0)
    warps = 8 if any(tile.rows >= 2 * _WGMMA_ROWS for tile in found.tiles) or most >= 128 * _MOST_ACCUMULATORS else 4
    return warps if most <= 32 * warps * _MOST_ACCUMULATORS else None


def _sharings(step: Step, limits: Limits) -> Iterator[Sharing]:
    """Numbers of programs for the widest vector that products read, and which narrow ones every program computes for itself."""
    if limits is EMULATED:
        yield Sharing(2)
        return
    widths = {one.inner for one in step.products.values()} or {leaf.width for leaf in step.leaves if leaf.width}
    widest = max(widths, default=1)
    read = frozenset(step.width(reduction.source) or 1 for reduction in step.reductions.values())
    narrow = frozenset(width for width in read if width <= 256)
    seen: set[tuple[int, frozenset[int]]] = set()
    for programs in [1, *[-(-widest // block) for block in _BLOCKS]]:
        if programs > limits.sms or (programs == 1 and widest > 256):
            continue
        for replicated in (frozenset[int](), narrow):
            all_alike = programs > 1 and widths <= replicated  # one program would do
            if (programs, replicated) not in seen and not (programs == 1 and replicated) and not all_alike:
                seen.add((programs, replicated))
                yield Sharing(programs, replicated, _WGMMA_ROWS if limits.arch >= 90 else 16)
