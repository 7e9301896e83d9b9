"""The emulator runs programs at once, and says so when they fail, never arrive or never end."""

import contextlib
import os
import time

import pytest
import torch

pytest.importorskip("triton")
from fusedrnn.kernels import gpu  # before Triton, which it tells to interpret

if not gpu.EMULATED:
    pytest.skip("Triton does not interpret in this process", allow_module_level=True)

import triton
import triton.language as tl

from fusedrnn import random
from fusedrnn.kernels.gpu import emulator, interpreter
from fusedrnn.kernels.gpu.barrier import arrive, wait


@triton.jit
def exchange(x, out, scratch, counter, error, T, limit, WIDTH: tl.constexpr, SLOTS: tl.constexpr):
    """Each program owns a column; in each step it adds all columns of its group to its own. SLOTS = 1 is a race: no barrier keeps a
    program from publishing again before others have read."""
    column, group, columns = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    x += group * WIDTH
    scratch += group * SLOTS * WIDTH
    counter += group * 32
    everyone = tl.arange(0, WIDTH)
    own = tl.load(x + column)
    t = 0
    late = 0
    while (t < T) & (late == 0):
        slot = scratch + (t % SLOTS) * WIDTH
        tl.store(slot + column, own)
        arrive(counter, False)
        late = wait(counter, (t + 1) * columns, limit, False)
        own += tl.sum(tl.load(slot + everyone, mask=everyone < columns, other=0, cache_modifier=".cg"))
        t += 1
    tl.store(out + group * columns + column, own)
    if late > 0:
        tl.store(error, 1)


def buffers(columns, groups):
    return {
        "x": torch.arange(groups * 8, dtype=torch.int64) + 1,
        "out": torch.full((groups, columns), -7),
        "scratch": torch.full((groups, 2, 8), -(10**6)),
        "counter": torch.zeros(groups, 32, dtype=torch.int32),
        "error": torch.zeros(1, dtype=torch.int32),
    }


def exchanged(columns, groups, *, steps=4, slots=2, limit=10**6, **settings):
    tensors = buffers(columns, groups)
    scalars = {"T": steps, "limit": limit}
    emulator.run(
        exchange, (columns, groups), tensors | scalars, {"WIDTH": 8, "SLOTS": slots}, outputs=["out", "counter", "error"], **settings
    )
    return tensors


def expected(columns, groups, steps=4):
    own = buffers(columns, groups)["x"].reshape(groups, 8)[:, :columns]
    for _ in range(steps):
        own = own + own.sum(1, keepdim=True)
    return own


@pytest.mark.parametrize("grid", [(2, 2), (4, 1), (1, 3), (1, 1)])
def test_programs_meet_at_barriers(grid):
    tensors = exchanged(*grid)
    assert torch.equal(tensors["out"], expected(*grid))
    assert tensors["counter"][:, 0].tolist() == [4 * grid[0]] * grid[1]
    assert tensors["error"].item() == 0


def test_delays_find_a_race_and_spare_what_is_right():
    wanted = expected(2, 1)
    racy = [torch.equal(exchanged(2, 1, slots=1, delay=0.01, seed=seed)["out"], wanted) for seed in range(6)]
    right = [torch.equal(exchanged(2, 1, slots=2, delay=0.01, seed=seed)["out"], wanted) for seed in range(6)]
    assert not all(racy)
    assert all(right)


def test_a_program_that_never_arrives_ends_the_wait_of_the_others():
    tensors = exchanged(3, 2, kill=(1, 1), limit=100)
    assert tensors["error"].item() == 1
    assert torch.equal(tensors["out"][0], expected(3, 2)[0])  # groups do not know of one another
    assert tensors["out"][1, 1].item() == -7


def test_the_parents_threads_do_not_matter():
    torch.set_num_threads(2)
    torch.randn(400, 400) @ torch.randn(400, 400)
    torch.randn(1 << 20).exp().sum()
    assert torch.equal(exchanged(2, 1)["out"], expected(2, 1))


@triton.jit
def failing(x, WHO: tl.constexpr):
    if tl.program_id(0) == WHO:
        tl.store(x + tl.arange(0, 4), tl.load(x + tl.arange(0, 8)))
    else:
        while tl.atomic_add(x, 0) == 0:
            pass


@contextlib.contextmanager
def ended_children(monkeypatch):
    """Every child forked within is gone at the end."""
    children, fork = [], os.fork

    def noted():
        process = fork()
        children.append(process)
        return process

    monkeypatch.setattr(os, "fork", noted)
    yield
    for process in children:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert children


def test_a_failure_brings_its_traceback_and_ends_the_others(monkeypatch):
    began = time.monotonic()
    with ended_children(monkeypatch), pytest.raises(RuntimeError, match=r"(?s)failing, program \(1, 0\) failed:.*test_emulator.py.*shape"):
        emulator.run(failing, (3, 1), {"x": torch.zeros(8, dtype=torch.int32)}, {"WHO": 1}, outputs=["x"])
    assert time.monotonic() - began < 30


def test_a_failure_in_this_process_is_told_alike():
    with pytest.raises(RuntimeError, match=r"failing, program \(0, 0\): .*shape"):
        emulator.run(failing, (1, 1), {"x": torch.zeros(8, dtype=torch.int32)}, {"WHO": 0}, outputs=["x"])


def test_time_runs_out(monkeypatch):
    with ended_children(monkeypatch), pytest.raises(TimeoutError, match=r"failing: programs of columns \[0, 1\]"):
        emulator.run(failing, (2, 1), {"x": torch.zeros(8, dtype=torch.int32)}, {"WHO": 5}, outputs=["x"], timeout=0.5)


@triton.jit
def copy(x, y, OFFSET: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + OFFSET + at))


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(("offset", "place"), [(-1, "byte -4 of x"), (13, "byte 64 of x")])
def test_addresses_outside_of_the_arguments_are_refused(columns, offset, place):
    tensors = {"x": torch.zeros(16), "y": torch.zeros(4)}
    with pytest.raises(RuntimeError, match=f"reads 4 bytes at {place}, which has 64"):
        emulator.run(copy, (columns, 1), tensors, {"OFFSET": offset, "N": 4}, outputs=["y"])


@pytest.mark.parametrize("columns", [1, 2])
def test_views_of_one_memory_stay_so(columns):
    memory = torch.arange(16.0)
    emulator.run(copy, (columns, 1), {"x": memory, "y": memory[8:]}, {"OFFSET": 0, "N": 8}, outputs=["y"])
    assert torch.equal(memory[8:], torch.arange(8.0))


@pytest.mark.parametrize("columns", [1, 2])
def test_a_tensor_of_no_elements_is_an_argument(columns):
    with pytest.raises(RuntimeError, match="writes 4 bytes at byte 0 of y, which has 0"):
        emulator.run(copy, (columns, 1), {"x": torch.zeros(4), "y": torch.zeros(0)}, {"OFFSET": 0, "N": 4}, outputs=["y"])


def test_arguments_are_checked():
    x = torch.zeros(16)
    with pytest.raises(TypeError, match="copy: missing a required argument: 'y'"):
        emulator.run(copy, (1, 1), {"x": x}, {"OFFSET": 0, "N": 4}, outputs=[])
    with pytest.raises(ValueError, match=r"outputs \['z'\] are not among the tensors \['x', 'y'\]"):
        emulator.run(copy, (1, 1), {"x": x, "y": x}, {"OFFSET": 0, "N": 4}, outputs=["z"])
    with pytest.raises(ValueError, match="y is on meta"):
        emulator.run(copy, (1, 1), {"x": x, "y": x.to("meta")}, {"OFFSET": 0, "N": 4}, outputs=["y"])
    with pytest.raises(RuntimeError, match="not made for the interpreter"):
        emulator.run(len, (1, 1), {}, {}, outputs=[])


def test_an_interpreter_that_cannot_work_with_this_numpy_is_named(monkeypatch):
    monkeypatch.setattr(interpreter.triton, "__version__", "3.6.0")
    monkeypatch.setattr(interpreter.np, "__version__", "2.4.1")
    with pytest.raises(RuntimeError, match=r"Triton 3\.6\.0 fails with numpy 2\.4\.1: install numpy<2\.4"):
        exchanged(1, 1)


@triton.jit
def draw(out, seeds, time, COLUMNS: tl.constexpr):
    row = tl.program_id(1)
    column = tl.arange(0, COLUMNS)
    zero = column * 0
    word, _, _, _ = tl.philox(tl.load(seeds + row), column, zero + time, zero + 2, zero + 9)
    tl.store(out + row * COLUMNS + column, word.to(tl.int64))


def test_philox_draws_the_words_of_random():
    seeds = random.row_seeds(7, 5)
    out = torch.zeros(5, 16, dtype=torch.int64)
    emulator.run(draw, (1, 5), {"out": out, "seeds": seeds, "time": 3}, {"COLUMNS": 16}, outputs=["out"])
    assert torch.equal(out & 0xFFFFFFFF, random.philox(seeds[:, None], torch.arange(16), 3, 2, 9))
