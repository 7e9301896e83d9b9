"""What a step costs on a device: a model, not a measurement. In: a schedule and a batch tile; out: microseconds a step, with their parts.

A step is as long as its slowest program: barriers, the exchanged vectors that are read through the level-2 cache, products at the rate of
the tensor cores or of the shared memory that holds the weights, whichever is slower, and pointwise work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels.gpu.limits import Limits
from ..lowering.gpu.ahead import reads_by_time
from ..lowering.gpu.schedule import Schedule
from ..lowering.gpu.tiles import Tile


@dataclass(frozen=True)
class Rates:
    """What the model multiplies with; `python -m bench gpu` measures the first two on a device.

    Attributes:
        barrier: microseconds of a group's barrier with a counter (DESIGN: 0.4 for the exchange of a flag, 0.4 more for the counter).
        l2: bytes a microsecond of all programs together from the level-2 cache.
        l2_each: of one program alone (64 a cycle).
        latency: microseconds from asking the level-2 cache to having the answer.
        memory: microseconds from asking the device's memory to having the answer.
        shared: bytes a microsecond of one multiprocessor from its shared memory (128 a cycle).
        tensor: multiply-adds a microsecond of one multiprocessor in bf16.
        pointwise: microseconds for each 1,024 elements of a program's tile that go through a cell's pointwise part.
    """

    barrier: float = 0.8
    l2: float = 5.5e6
    l2_each: float = 64 * 1700.0
    latency: float = 0.3
    memory: float = 0.6
    shared: float = 128 * 1700.0
    tensor: float = 3.7e6
    pointwise: float = 0.12


@dataclass(frozen=True)
class Cost:
    """Microseconds of a step, by what takes them."""

    barriers: float
    exchange: float
    products: float
    streaming: float
    pointwise: float
    reads: float = 0.0

    @property
    def total(self) -> float:
        return self.barriers + self.exchange + self.products + self.streaming + self.pointwise + self.reads


def step_cost(
    schedule: Schedule, batch_tile: int, groups: int, split: bool, rates: Rates = Rates(), *, rows: int | None = None, ahead: bool = True
) -> Cost:  # frozen
    """The cost of a step of one launch.

    Args:
        groups: that run at once.
        split: float32 products are three products of tf32.
        rows: of a group that are there; None: as many as it has.
        ahead: what the first phase reads is asked for a step earlier.
    """
    programs = schedule.sharing.programs * groups
    products = streaming = exchange = 0.0
    for tile in schedule.tiles:
        times = _halves(tile, split) if tile.stored is not None else 3 if _halves(tile, split) == 2 else 1
        if tile.exchange is not None:
            windows = -(-tile.chunks // tile.window) if tile.resident else 1
            read = tile.vectors * (batch_tile if rows is None else min(rows, batch_tile))
            exchange += _through_l2(read * tile.inner * tile.dtype.itemsize, programs, rates) + windows * rates.latency
        weight = tile.bytes * _parts(tile, split)
        work = times * _rate(tile) * tile.rows * tile.inner * columns(tile, batch_tile)
        products += max(work / rates.tensor, weight / rates.shared)
        if not tile.resident:
            streaming += _through_l2(weight, programs, rates) + rates.latency
    barriers = 0.0 if schedule.sharing.programs == 1 else rates.barrier * len(schedule.barriers)
    widths = [leaf.width for leaf in schedule.step.leaves if leaf.width is not None]
    elements = sum(schedule.sharing.block(width) for width in widths) * batch_tile
    waits = not ahead and reads_by_time(schedule.step)
    return Cost(barriers, exchange, products, streaming, rates.pointwise * (elements / 1024) + 0.1, rates.memory if waits else 0.0)


def columns(tile: Tile, batch_tile: int) -> int:
    """Of a tile's results: the rows of all vectors that it multiplies."""
    return tile.side_by_side * batch_tile


def _through_l2(each: int, programs: int, rates: Rates) -> float:
    """Microseconds until every program has its bytes from the level-2 cache."""
    return max(programs * each / rates.l2, each / rates.l2_each)


def _rate(tile: Tile) -> float:
    """Times as long as in bf16."""
    return 2.0 if tile.dtype == torch.float32 else 1.0


BYTES_IN_REGISTERS = 128 * 1024  # of weights, of a program: 128 registers a thread of 8 warps, which leaves as many for the rest
CHUNK_IN_REGISTERS, WINDOW_IN_REGISTERS = 32, 4  # of such a weight: with more under way an LSTM of 2,048 units spills on sm_90
IN_FLIGHT = 64 * 128 * 4  # bytes of a vector asked for at once: 64 registers a thread of 4 warps; twice that spills beside 64 wgmma


def shared_bytes(schedule: Schedule, batch_tile: int, split: bool) -> int:
    """What a program needs of shared memory, about: resident weights, and what passes through for the largest product."""
    resident = sum(_resident(tile, split) for tile in schedule.tiles if tile.resident)
    return resident + max((_passing(tile, batch_tile, split) for tile in schedule.tiles), default=0)


def _halves(tile: Tile, split: bool) -> int:
    return 2 if split and tile.dtype == torch.float32 else 1


def _parts(tile: Tile, split: bool) -> int:
    """In how many parts a weight is stored."""
    return 1 if tile.stored is not None else _halves(tile, split)


def _resident(tile: Tile, split: bool) -> int:
    """Bytes of a resident weight in shared memory."""
    return 0 if tile.in_registers else tile.bytes * _parts(tile, split)


def _passing(tile: Tile, batch_tile: int, split: bool) -> int:
    """The chunks of the vector, those of a weight that does not stay, or the results on their way to other registers."""
    of_vector = tile.chunk * columns(tile, batch_tile) * tile.dtype.itemsize * _halves(tile, split)
    if not tile.resident:
        of_weight = tile.rows * tile.chunk * tile.dtype.itemsize * _parts(tile, split)
        return max(tile.stages * (of_vector + of_weight), tile.rows * batch_tile * 4)
    return max(tile.window * of_vector, tile.rows * batch_tile * 4)


def fit(schedule: Schedule, batch_tile: int, split: bool, limits: Limits, in_flight: int = IN_FLIGHT) -> bool:
    """Make a schedule fit into the shared memory of a multiprocessor: the largest tiles stay there last. Whether it does then.

    Args:
        in_flight: bytes of a vector that are asked for at once, at most.
    """
    most = limits.shared_bytes - 2048
    for tile in sorted(schedule.tiles, key=lambda tile: -tile.bytes):
        for resident_tile in schedule.tiles:
            if resident_tile.resident and not resident_tile.in_registers:
                width = columns(resident_tile, batch_tile) * resident_tile.dtype.itemsize
                while resident_tile.vectors > 1 and resident_tile.chunk * width > IN_FLIGHT // 2 and resident_tile.chunk > 32:
                    resident_tile.chunk //= 2
                resident_tile.window = min(resident_tile.chunks, max(in_flight // (resident_tile.chunk * width), 1))
                while shared_bytes(schedule, batch_tile, split) > most and resident_tile.window > 2:
                    resident_tile.window = -(-resident_tile.window // 2)
        if shared_bytes(schedule, batch_tile, split) <= most:
            return True
        if tile.stored is not None and tile.exchange is not None:
            _to_registers(schedule, tile)
            if shared_bytes(schedule, batch_tile, split) <= most:
                return True
        if tile.exchange is None:
            return False  # what a program has whole it multiplies with what it has whole
        _stream(tile, batch_tile, split, most)
    return shared_bytes(schedule, batch_tile, split) <= most


def _to_registers(schedule: Schedule, tile: Tile) -> None:
    """Keep a weight of one byte as bytes in registers, if those suffice."""
    held = sum(other.rows * other.inner for other in schedule.tiles if other.in_registers or other is tile)
    if held <= BYTES_IN_REGISTERS:
        tile.in_registers = True
        tile.chunk, tile.window = min(tile.chunk, CHUNK_IN_REGISTERS), WINDOW_IN_REGISTERS


def stream(schedule: Schedule, batch_tile: int, split: bool, limits: Limits) -> None:
    """Let no exchanged product's weight stay on-chip: for where a resident one spills."""
    for tile in schedule.tiles:
        if tile.exchange is not None:
            _stream(tile, batch_tile, split, limits.shared_bytes - 2048)


def _stream(tile: Tile, batch_tile: int, split: bool, most: int) -> None:
    tile.resident, tile.stages = False, 3
    while _passing(tile, batch_tile, split) > most // 3 and tile.chunk > 32:
        tile.chunk //= 2
