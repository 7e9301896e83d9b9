"""Persistent kernels, emulated, however a launch is laid out: the same values, and the same bits each time."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from fusedrnn.executors import persistent
from fusedrnn.kernels.gpu.launch import emulation

from ..lowering.gpu.loops import several
from .layouts import assert_same, assert_same_bits, outcome, planning
from .loops import D, T, V, both, greedy, reading, run, start_of

if os.environ["FUSEDRNN_EMULATE"] != "1":
    pytest.skip("no kernel is emulated", allow_module_level=True)


LAYOUTS = {
    "one program": {"programs": 1},
    "three programs": {"programs": 3},
    "four programs": {"programs": 4},
    "32 rows": {"tile": 32},
    "one group at a time": {"groups": 1},
    "two groups at a time": {"groups": 2, "programs": 3},
    "streamed": {"streamed": True, "chunk": 32},
    "small chunks": {"chunk": 16},
    "small chunks, one at a time": {"chunk": 16, "window": 1},
    "small chunks streamed": {"chunk": 16, "streamed": True, "programs": 3},
    "tall tiles": {"least_rows": 64},
    "reads when it needs them": {"ahead": False},
}


QUICK = ("one program", "three programs", "one group at a time", "small chunks streamed", "reads when it needs them")


STACKS = {
    "two": (2, {"stack": 8}),
    "three of them, one twice": (3, {"stack": 8}),
    "four streamed": (4, {"stack": 8, "streamed": True}),
    "five": (5, {"stack": 8, "programs": 3}),
    "five by two": (5, {"stack": 2}),
    "four, 32 rows": (4, {"stack": 4, "tile": 32}),
    "in small chunks": (4, {"stack": 4, "chunk": 32, "window": 1}),
}


@pytest.mark.parametrize("rows", [3, 37])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if "two" in name else name for name in STACKS])
def test_stacked_vectors(monkeypatch, name, rows):
    """Of fewer rows than a group has, which are not read where they are not there, and of more."""
    count, layout = STACKS[name]
    planning(monkeypatch, least_rows=64, **layout)
    both(several(count, batch=rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_stacked_vectors_of_half_precision(monkeypatch, dtype):
    planning(monkeypatch, least_rows=64, stack=8)
    loop = several(3, batch=20, dtype=dtype)
    assert_same(run(loop), run(loop, "reference"), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS])
def test_layouts_of_a_sequence(monkeypatch, name):
    """37 rows: three groups of 16."""
    planning(monkeypatch, **LAYOUTS[name])
    both(reading("tf gru" if "program" in name or "streamed" in name else "lstm", [(3 * row) % 6 for row in range(37)]))


DECODES = {**LAYOUTS, "all words in every program": {"replicated": (V,)}, "all words in each of three": {"replicated": (V,), "programs": 3}}
QUICK_DECODES = ("one program", "two groups at a time", "all words in every program")


@pytest.mark.parametrize("name", [name if name in QUICK_DECODES else pytest.param(name, marks=pytest.mark.slow) for name in DECODES])
def test_layouts_of_a_greedy_decode(monkeypatch, name):
    planning(monkeypatch, **DECODES[name])
    both(greedy(batch=20, steps=5))


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param({"programs": 1}, marks=pytest.mark.slow),
        pytest.param({"programs": 3, "chunk": 16}, marks=pytest.mark.slow),
        {"streamed": True, "chunk": 16},
    ],
    ids=str,
)
def test_float32_by_three_products(monkeypatch, layout):
    """What tensor cores make of a float32 in two parts is a float32 again."""
    planning(monkeypatch, **layout)
    loop = reading("tf gru")
    exact = run(loop)
    planning(monkeypatch, **layout)
    monkeypatch.setattr(persistent, "_precision", lambda device: "hilo")
    assert_same(run(loop), exact, rtol=0, atol=2e-6)
    monkeypatch.setattr(persistent, "_precision", lambda device: "tf32")
    error = (run(loop).emit_ta.stack() - exact.emit_ta.stack()).abs().max()
    assert 1e-5 < error < 1e-2  # the emulator does multiply as tensor cores do


@pytest.mark.parametrize("loop", [reading, greedy], ids=["sequence", "greedy"])
def test_the_same_inputs_give_the_same_bits(loop):
    assert_same_bits(run(loop()), run(loop()))


@pytest.mark.parametrize("kind", [pytest.param("lstm", marks=pytest.mark.slow), "tf gru"])
def test_a_row_alone_equals_the_row_in_a_batch(monkeypatch, kind):
    planning(monkeypatch)
    lengths = [(3 * row) % 6 for row in range(20)]
    x = torch.randint(-8, 9, (T, 20, D)) / 8  # what BLAS makes of it before the loop is exact, however many rows it has
    cell, loop_fn = reading(kind, lengths, x=x)
    with torch.no_grad():
        for parameter in cell.parameters():
            if D in parameter.shape:
                parameter.mul_(16).round_().div_(16)
    whole = run((cell, loop_fn))
    start = start_of(cell, 20)
    for rows in ([1], [1, 2], [17, 3, 4], list(range(19, 2, -1))):
        ends, own = torch.tensor(lengths)[rows], x[:, rows]
        first = tuple(leaf[rows] for leaf in start) if isinstance(start, tuple) else start[rows]

        def some(time, output, state, loop_state, ends=ends, own=own, first=first):
            return time >= ends, own[time], first if output is None else state, output, None

        part = run((cell, some))
        steps = part.emit_ta.size()
        assert torch.equal(part.emit_ta.stack(), whole.emit_ta.stack()[:steps, rows])
        for mine, theirs in zip(outcome(part)[1:], outcome(whole)[1:], strict=True):
            assert torch.equal(mine, theirs[rows])


@pytest.mark.parametrize("seeds", [[0], pytest.param([1, 2, 3], marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("layout", [{}, {"programs": 3, "streamed": True, "chunk": 16}], ids=str)
def test_no_race_shows(monkeypatch, layout, seeds):
    """Programs that sleep at barriers change no bit."""
    planning(monkeypatch, **layout)
    loops = [reading("tf gru", [(3 * row) % 6 for row in range(20)]), greedy()]
    calm = [run(loop) for loop in loops]
    for seed in seeds:
        monkeypatch.setattr(emulation, "delay", 0.003)
        monkeypatch.setattr(emulation, "seed", seed)
        for loop, want in zip(loops, calm, strict=True):
            assert_same_bits(run(loop), want)


@torch.no_grad()
@pytest.mark.parametrize("seeds", [[0, 1], pytest.param(range(2, 12), marks=pytest.mark.slow)], ids=str)
def test_no_race_for_what_is_read_behind_the_last_barrier(monkeypatch, seeds):
    """The last state at other columns, times the token, which is known behind the step's last barrier."""
    torch.manual_seed(1)
    embedding, project, start = nn.Embedding(12, 4), nn.Linear(8, 12), torch.randn(3, 8)
    inner, outer = nn.Linear(8, 8), nn.Linear(4, 8)

    class Cell:
        output_size = state_size = torch.Size([8])

        def __call__(self, inputs, state):
            new = torch.tanh(inner(state) + outer(inputs))
            return (new, torch.cat([state[:, 5:], state[:, :5]], 1)), new

    cell = Cell()
    cell.output_size = (torch.Size([8]), torch.Size([8]))

    def loop_fn(time, output, state, loop_state):
        if output is None:
            return time >= 12, embedding(torch.zeros(3, dtype=torch.int64)), start, torch.zeros(8), None
        token = project(output[0]).argmax(-1)
        return time >= 12, embedding(token), state, output[1] * token[:, None].float(), None

    want = both((cell, loop_fn))
    monkeypatch.setattr(emulation, "delay", 0.05)
    for seed in seeds:
        monkeypatch.setattr(emulation, "seed", seed)
        assert_same_bits(run((cell, loop_fn)), want)
