"""Every plan fits its device, and where none does there is a reason."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

import fusedrnn
from fusedrnn.kernels.gpu import limits
from fusedrnn.lowering.gpu.rule import Unlowered
from fusedrnn.lowering.gpu.tiles import power_of_two
from fusedrnn.plan.cost import columns, shared_bytes
from fusedrnn.plan.planner import plans

from ..lowering.gpu import loops

SIZES = (64, 100, 128, 256, 300, 512, 768, 1000, 1024, 1536, 2048)
BATCHES = (1, 3, 16, 33, 100, 256, 1000, 4096)
ARCHES = (80, 90, 100)
DTYPES = (torch.float32, torch.bfloat16)


@functools.cache
def step_of(kind, size, dtype):
    if kind.startswith("sum of"):
        return loops.step(*loops.several(int(kind.split()[-1]), size, dtype=dtype))
    if kind == "layer norm":
        _, loop_fn = loops.reading("lstm", inputs=16, size=size, dtype=dtype)
        return loops.step(fusedrnn.LSTMCell(16, size, layer_norm=True).to(dtype), loop_fn)
    make = {"lstm": loops.reading, "tf gru": loops.reading, "gru greedy": functools.partial(loops.greedy, words=74)}[kind]
    return loops.step(*make(kind.split(" greedy")[0], inputs=16, size=size, dtype=dtype))


def check(plan, step, batch, device):
    schedule, sharing, split = plan.schedule, plan.schedule.sharing, plan.precision == "hilo"
    assert shared_bytes(schedule, plan.batch_tile, split) <= device.shared_bytes
    groups = plan.groups(batch)
    assert groups >= 1
    assert plan.programs * groups <= device.sms
    assert (groups - 1) * plan.batch_tile < batch  # none is empty
    assert groups == plan.most_groups or groups * plan.batch_tile >= batch
    assert plan.batch_tile == power_of_two(plan.batch_tile) >= 8
    assert plan.options.warps in (4, 8)
    assert plan.options.maxnreg is None or plan.options.maxnreg <= 250
    for width in {leaf.width for leaf in step.leaves if leaf.width} | {product.width for product in step.products.values()}:
        assert sharing.block(width) * (1 if sharing.is_whole(width) else plan.programs) >= width
    assert plan.programs == 1 or not all(sharing.is_whole(product.inner) for product in step.products.values())
    products = [product.node for tile in schedule.tiles for product, _ in tile.segments]
    assert sorted(map(str, products)) == sorted(map(str, step.products))
    for tile in schedule.tiles:
        assert tile.rows == power_of_two(tile.rows)
        assert tile.rows * columns(tile, plan.batch_tile) <= 64 * 32 * plan.options.warps  # its results are registers
        assert tile.chunk == power_of_two(tile.chunk)
        assert tile.inner % tile.chunk == 0
        assert 1 <= tile.window <= tile.chunks
        end = 0
        for product, begin in tile.segments:
            assert begin == end or (tile.vectors > 1 and begin > end and begin % tile.share == 0)
            end = begin + sharing.block(product.width)
            assert product.inner <= tile.inner
        assert end <= tile.rows
    total = plan.cost.total
    assert total > 0
    assert total == plan.microseconds


def planned(kind, size, dtype, batch, arch):
    device, step = limits.of_arch(arch), step_of(kind, size, dtype)
    found = plans(step, batch, device, "hilo")
    for plan in found:
        check(plan, step, batch, device)
    times = [plan.microseconds * -(-batch // (plan.batch_tile * plan.groups(batch))) for plan in found]
    resident = [plan.resident for plan in found]
    for kind in (True, False):
        alike = [time for time, stays in zip(times, resident, strict=True) if stays == kind]
        assert alike == sorted(alike)
    assert not resident[0] or times[0] <= 1.02 * min(times)  # a resident one goes before a streamed one that is hardly better
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [64, 300, 1024, 2048])
def test_plans_fit(size, dtype):
    for batch, arch in ((1, 90), (33, 80), (4096, 100)):
        planned("lstm", size, dtype, batch, arch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["tf gru", "gru greedy", "layer norm"])
def test_plans_of_other_cells_fit(kind, dtype):
    for size, batch, arch in ((100, 16, 90), (128, 8, 90), (1000, 256, 90)):
        planned(kind, size, dtype, batch, arch)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["lstm", "tf gru", "gru greedy"])
@pytest.mark.parametrize("size", SIZES)
def test_all_plans_fit(kind, size, dtype):
    for batch in BATCHES:
        for arch in ARCHES:
            planned(kind, size, dtype, batch, arch)


def test_a_small_step_is_one_program_without_a_barrier():
    plan = planned("lstm", 64, torch.bfloat16, 1, 90)[0]
    assert plan.programs == 1
    assert plan.schedule.barriers == []
    assert plan.cost.barriers == 0


@pytest.mark.parametrize("size", [512, 1024, 1536])
def test_bfloat16_weights_stay_on_an_h100(size):
    """DESIGN: up to 1536 of an LSTM."""
    plan = planned("lstm", size, torch.bfloat16, 16, 90)[0]
    assert all(tile.resident for tile in plan.schedule.tiles)


@pytest.mark.parametrize("count", [3, 4])
def test_weights_of_several_vectors_stay_where_they_are_stacked(count):
    """As in the backward of a GRU and of an LSTM: each vector needs few rows of a tile."""
    plan = planned(f"sum of {count}", 1024, torch.bfloat16, 8, 90)[0]
    assert plan.resident
    assert [tile.vectors for tile in plan.schedule.tiles] == [count]
    assert f"{count} vectors side by side" in "\n".join(plan.lines(8))
    assert f"x0: {count} vectors of 1024 bfloat16" in "\n".join(plan.lines(8))
    several = planned(f"sum of {count}", 1024, torch.bfloat16, 8, 90)
    assert {tuple(tile.vectors for tile in plan.schedule.tiles) for plan in several} >= {(count,), (1,) * count}


def test_rows_that_are_not_there_are_not_read():
    one, eight, sixteen = (planned("lstm", 512, torch.bfloat16, batch, 90)[0].cost.exchange for batch in (1, 8, 16))
    assert one < eight < sixteen


def test_reads_are_asked_for_ahead_where_registers_allow():
    """Both are offered; who waits for memory in each step is slower."""
    found = planned("lstm", 512, torch.bfloat16, 8, 90)
    first = found[0]
    assert first.ahead
    assert "reads" not in first.lines(8)[-1]
    late = next(plan for plan in found if not plan.ahead and plan.programs == first.programs and plan.batch_tile == first.batch_tile)
    assert late.microseconds > first.microseconds
    assert late.lines(8)[-1].endswith(f"reads {late.cost.reads:.2f}.")
    assert all(plan.ahead for plan in planned("gru greedy", 512, torch.bfloat16, 8, 90))


def test_weights_that_do_not_fit_are_streamed():
    device, step = replace(limits.of_arch(90), sms=32), step_of("lstm", 1024, torch.float32)
    found = plans(step, 16, device, "hilo")
    for plan in found:
        check(plan, step, 16, device)
    assert not any(tile.resident for tile in found[0].schedule.tiles)
    assert "streamed" in "\n".join(found[0].lines(16))
    assert found[0].cost.streaming > 0


def test_nothing_fits():
    tiny = replace(limits.of_arch(90), name="tiny", sms=1, shared_bytes=16 << 10)
    with pytest.raises(Unlowered, match="no layout fits tiny: its weights need more than the shared memory of 1 multiprocessors"):
        plans(step_of("lstm", 1024, torch.float32), 16, tiny, "hilo")


def test_rows_that_all_stay_need_one_group():
    x, start = torch.zeros(4, 3, 6), torch.zeros(3, 20)

    def loop_fn(time, output, state, total):
        first = output is None
        return time >= 4, x[time], start if first else state, output, torch.zeros(3, 20) if first else total + output

    step = loops.step(torch.nn.RNNCell(6, 20), loop_fn)
    for batch in (1, 16, 17, 128):
        assert all(plan.batch_tile >= batch for plan in plans(step, batch, limits.of_arch(90), "hilo"))
    with pytest.raises(Unlowered, match="all 129 rows would have to run in one group, which has 128 at most"):
        plans(step, 129, limits.of_arch(90), "hilo")
