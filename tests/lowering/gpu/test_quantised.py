"""Weights of one byte in kernels that are emulated: wherever they lie, the values are those of `reference`."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn.capture import cache
from fusedrnn.executors import persistent
from fusedrnn.kernels.gpu import limits
from fusedrnn.lowering.gpu.step import step_of
from fusedrnn.plan import planner

from ...executors.layouts import assert_same, planning
from . import loops

if os.environ["FUSEDRNN_EMULATE"] != "1":
    pytest.skip("no kernel is emulated", allow_module_level=True)

T, D, H = 5, 6, 40
CELLS = {
    "lstm": lambda: fusedrnn.LSTMCell(D, H), "torch's gru": lambda: nn.GRUCell(D, H),
    "tf gru": lambda: fusedrnn.GRUCell(D, H, reset_after=False),
}  # fmt: skip


def loop(kind, dtype, of=torch.float32, size=H, rows=3):
    torch.manual_seed(4)
    cell = fusedrnn.LSTMCell(D, size) if size != H else CELLS[kind]()
    cell = fusedrnn.quantize(cell.to(of).requires_grad_(False), dtype=dtype)
    x, ends, zero = torch.randn(T, rows, D).to(of), torch.arange(rows) % (T + 1), torch.zeros(rows, size, dtype=of)
    start = (zero, zero) if kind == "lstm" else zero

    def loop_fn(time, output, state, loop_state):
        return time >= ends, x[time], start if output is None else state, output, None

    return cell, loop_fn


def stored_of(pair):
    return {product.stored for product in step_of(loops.prepared(loops.program_of(*pair))).products.values()}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_cells(kind, dtype):
    pair = loop(kind, dtype)
    assert stored_of(pair) == {dtype}
    assert_same(fusedrnn.raw_rnn(*pair, backend="persistent"), fusedrnn.raw_rnn(*pair, backend="reference"))


PLACES = {
    "shared memory": {}, "streamed": {"streamed": True}, "registers": {"in_registers": True}, "one program": {"programs": 1},
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("precision", ["ieee", "hilo", "tf32"])
@pytest.mark.parametrize("dtype", [torch.int8, pytest.param(torch.float8_e4m3fn, marks=pytest.mark.slow)], ids=str)
def test_places(monkeypatch, place, precision, dtype):
    options = dict(PLACES[place])
    in_registers = options.pop("in_registers", False)
    planning(monkeypatch, **{"programs": 3, "chunk": 16} | options)
    plans = planner.plans

    def placed(*arguments):
        found = plans(*arguments)
        for tile in found[0].schedule.tiles:
            tile.in_registers = in_registers and tile.exchange is not None
        return found

    monkeypatch.setattr(planner, "plans", placed)
    monkeypatch.setattr(persistent, "_precision", lambda device: precision)
    cache.clear()
    pair = loop("lstm", dtype)
    tolerance = 1e-4 if precision == "tf32" else 1e-6
    found = fusedrnn.raw_rnn(*pair, backend="persistent")
    assert_same(found, fusedrnn.raw_rnn(*pair, backend="reference"), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("of", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(of):
    pair = loop("lstm", torch.int8, of)
    assert_same(fusedrnn.raw_rnn(*pair, backend="persistent"), fusedrnn.raw_rnn(*pair, backend="reference"), rtol=1e-2, atol=1e-2)


def test_a_scale_of_each_row_of_the_vector_stays_where_it_is():
    """``x @ (q * s)`` with an s of each k is another weight for each column."""
    q, s = torch.randint(-9, 9, (H, H), dtype=torch.int8), torch.rand(H, 1)
    x, start = torch.randn(T, 3, H), torch.zeros(3, H)

    class Cell:
        output_size = state_size = H

        def __call__(self, inputs, state):
            new = torch.tanh(inputs + 0.1 * (state @ (q.float() * s)))
            return new, new

    def loop_fn(time, output, state, loop_state):
        return time >= T, x[time], start if output is None else state, output, None

    assert stored_of((Cell(), loop_fn)) == {None}
    assert_same(fusedrnn.raw_rnn(Cell(), loop_fn, backend="persistent"), fusedrnn.raw_rnn(Cell(), loop_fn, backend="reference"))


CODES = torch.randint(-9, 9, (H, H), dtype=torch.int8, generator=torch.Generator().manual_seed(7))
SCALE = torch.rand(H, 1, generator=torch.Generator().manual_seed(8)) * 0.02
OTHERWISE = {
    "as bools": lambda h: h @ (CODES.to(torch.bool) * SCALE).T * 0.1,
    "as unsigned": lambda h: h @ (CODES.to(torch.uint8) * SCALE).T * 0.01,
    "codes that broadcast": lambda h: torch.cat([h @ (CODES[:1].float() * SCALE)[:5].T, h @ (CODES[:1].float() * SCALE)[5:].T], 1),
    "pieces": lambda h: torch.cat([h @ (CODES.float() * SCALE)[:5].T, h @ (CODES.float() * SCALE)[5:].T], 1),
    "turned": lambda h: h @ (CODES.float() * SCALE.T),
    "one scale": lambda h: h @ (CODES.float() * SCALE[:1]).T,
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_uses_of_bytes(name):
    x, start = torch.randn(T, 3, H), torch.zeros(3, H)

    class Cell:
        output_size = state_size = H

        def __call__(self, inputs, state):
            new = torch.tanh(inputs + OTHERWISE[name](state))
            return new, new

    def loop_fn(time, output, state, loop_state):
        return time >= T, x[time], start if output is None else state, output, None

    assert_same(fusedrnn.raw_rnn(Cell(), loop_fn, backend="persistent"), fusedrnn.raw_rnn(Cell(), loop_fn, backend="reference"))


def test_what_is_made_before_the_loop_keeps_its_scales_inside():
    """Codes times inputs are too large for float16, which torch's own products there are rounded to."""
    torch.manual_seed(1)
    project = fusedrnn.quantize(nn.Linear(512, 8).requires_grad_(False).half(), dtype=torch.float8_e4m3fn)
    x, start = (torch.randn(T, 3, 512) * 10).half(), torch.zeros(3, 8).half()

    class Cell:
        output_size = state_size = 8

        def __call__(self, inputs, state):
            new = 0.5 * state + 0.01 * project(inputs).relu()
            return new, new

    def loop_fn(time, output, state, loop_state):
        return time >= T, x[time], start if output is None else state, output, None

    found = fusedrnn.raw_rnn(Cell(), loop_fn, backend="persistent")
    assert_same(found, fusedrnn.raw_rnn(Cell(), loop_fn, backend="reference"), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("arch", [90, 100])
def test_a_large_weight_may_stay_on_chip_as_bytes(arch):
    """64 rows of 2,048 bytes for each of 128 programs, which as bfloat16 do not fit into their shared memory."""
    step = step_of(loops.prepared(loops.program_of(*loop("lstm", torch.int8, torch.bfloat16, size=2048, rows=16))))
    plans = [plan for plan in planner.plans(step, 16, limits.of_arch(arch), "tf32") if plan.resident]
    assert plans
    assert all(tile.in_registers and tile.bytes == 64 * 2048 for plan in plans for tile in plan.schedule.tiles)
    assert "int8 a program, 131072 bytes, resident in registers." in "\n".join(plans[0].lines(16))
