"""The fastest of a few layouts, and that it is kept."""

import pytest
import torch
from torch import nn

from fusedrnn import branches, contract, frames
from fusedrnn.capture import cache
from fusedrnn.cells.protocol import as_cell
from fusedrnn.contract import Call
from fusedrnn.executors import persistent
from fusedrnn.executors.persistent_call import Bound
from fusedrnn.feedback import sequence
from fusedrnn.kernels import gpu
from fusedrnn.kernels.gpu import limits
from fusedrnn.plan import planner, tuned
from fusedrnn.plan.planner import planned

from ..lowering.gpu import loops


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEDRNN_CACHE_DIR", str(tmp_path))


def loop(batch=32):
    cell, x, h = nn.GRUCell(3, 8), torch.randn(4, batch, 3), torch.zeros(batch, 8)
    call = Call(as_cell(cell), sequence(x, None, h))
    with torch.no_grad(), frames.running() as frame, branches.taken():
        begun = contract.start(call, frame)
        program, tensors = cache.captured(call, frame, begun)
    return call, begun, program, tensors


def layouts(program, batch=32):
    plans = planned(program, batch, limits.of_arch(90), "tf32")
    assert len(plans) > 2
    return plans


@pytest.mark.parametrize(("size", "rows"), [(100, 16), (256, 256), (1024, 64)])
def test_a_name_is_of_one_layout(size, rows):
    step = loops.step(*loops.greedy("gru", inputs=16, size=size, words=74))
    names = [tuned.name(plan) for plan in planner.plans(step, rows, limits.of_arch(90), "hilo")]
    assert len(set(names)) == len(names) > 10


def test_the_fastest_is_taken_and_kept():
    plans = layouts(loop()[2])
    times = {tuned.name(plan): 10.0 - place for place, plan in enumerate(plans[:3])}
    runs = []

    def run(plan):
        runs.append(plan)
        return times[tuned.name(plan)]

    at = tuned.key(plans, 32, "a device", "versions")
    assert tuned.known(plans, at) is None
    assert tuned.fastest(plans[:3], run, at) is plans[2]
    assert tuned.known(plans, at) is plans[2]
    assert len(runs) == 3 * 6
    assert tuned.known(plans, tuned.key(plans, 32, "another device", "versions")) is None
    assert tuned.known(plans[:2], at) is None  # it is none of these


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"fastest": "none of them"}', "\x00"])
def test_what_is_not_ours_is_passed_over(content, tmp_path):
    plans = layouts(loop()[2])
    at = tuned.key(plans, 32, "a device", "versions")
    (tmp_path / f"layout_{at}.json").write_text(content)
    assert tuned.known(plans, at) is None
    tuned.fastest(plans[:2], lambda _: 1.0, at)
    assert tuned.known(plans, at) is plans[0]


def test_a_folder_that_cannot_be_written_costs_the_memory_only(tmp_path, monkeypatch):
    plans = layouts(loop()[2])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FUSEDRNN_CACHE_DIR", str(tmp_path / "file" / "folder"))
    assert tuned.fastest(plans[:2], lambda _: 1.0, "key") is plans[0]


@pytest.mark.slow
@pytest.mark.skipif(not gpu.EMULATED, reason="no kernel is emulated")
@torch.no_grad()
def test_a_loop_is_run_with_its_layouts(monkeypatch):
    """Emulated: a clock that says otherwise than the model decides."""
    call, begun, program, tensors = loop()
    first = persistent.kernel(program, 32, begun.device, tensors)
    clock = {}

    def microseconds(bound, device):
        bound.run()  # it must run with this layout
        return clock.setdefault(tuned.name(bound.kernel.plan), 10.0 - len(clock))

    monkeypatch.setattr(persistent, "_microseconds", microseconds)
    best = persistent.tuned(call, begun, program, tensors, first)
    assert 1 < len(clock) <= tuned.MOST
    assert tuned.name(best.plan) == min(clock, key=clock.get) != tuned.name(first.plan)
    assert persistent.kernel(program, 32, begun.device, tensors) is best
    expected = Bound(first, call, begun, tensors, None).run().made["emit", 0]
    torch.testing.assert_close(Bound(best, call, begun, tensors, None).run().made["emit", 0], expected)
    clock.clear()
    assert persistent.tuned(call, begun, program, tensors, best) is best
    assert [*clock] == [tuned.name(best.plan)]  # it is known by now, and runs once to be compiled
