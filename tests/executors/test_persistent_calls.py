"""Persistent kernels, emulated: what changes from call to call."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import frames
from fusedrnn.executors import persistent_call
from fusedrnn.kernels import device
from fusedrnn.kernels.gpu.launch import emulation

from .layouts import assert_same, assert_same_bits
from .loops import D, H, T, both, cell_of, endless, reading, run

if os.environ["FUSEDRNN_EMULATE"] != "1":
    pytest.skip("no kernel is emulated", allow_module_level=True)


def test_weights_may_change_in_place():
    cell, loop_fn = reading("lstm")
    before = run((cell, loop_fn)).emit_ta.stack()
    with torch.no_grad():
        cell.weight_hh.mul_(0.5)
        cell.weight_ih[0] += 1
    after = both((cell, loop_fn)).emit_ta.stack()
    assert not torch.equal(before, after)


def test_closures_are_fresh():
    """Loops of one code share a kernel, not their tensors."""
    launches = emulation.launches
    for factor in (1.0, 2.0, -1.0):
        both(reading(x=torch.randn(T, 4, D) * factor))
    assert emulation.launches - launches == 3


def test_batches_share_a_program():
    for batch in (3, 19, 2, 40, 4):
        both(reading("gru", [(3 * row) % 6 for row in range(batch)]))


@torch.no_grad()
def test_what_comes_after_the_loop_is_made_of_the_weights_as_they_were(monkeypatch):
    """As on a GPU, where emits are put together when they are asked for."""
    cell, project, start = nn.GRUCell(4, 8), nn.Linear(8, 6), torch.zeros(3, 8)
    x = torch.randn(4, 3, 4)

    def loop_fn(time, output, state, loop_state):
        return time >= 4, x[time], start if output is None else state, torch.zeros(6) if output is None else project(output), None

    want = run((cell, loop_fn), "reference").emit_ta.stack()
    loop = fusedrnn.compile(cell, loop_fn, backend="persistent").warmup()
    monkeypatch.setattr(persistent_call.Bound, "result", lambda self, call, port: self.launch().result(call, frames.Frame(0), port))
    emits = loop().emit_ta
    project.weight.zero_()
    torch.testing.assert_close(emits.stack(), want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_recording_makes_everything_anew(monkeypatch):
    """What a replay shall follow is not taken from an earlier call."""
    x, start = torch.randn(4, 3, D), torch.zeros(3, H)

    def loop_fn(time, output, state, loop_state):
        return time >= 4, x[time], start if output is None else state, output, None

    loop = fusedrnn.compile(cell_of("gru").requires_grad_(False), loop_fn, backend="persistent").warmup()
    packed, launched = [], persistent_call.launch.launch

    def spy(kernel, grid, tensors, *arguments, **options):
        packed.append({name: tensor.data_ptr() for name, tensor in tensors.items() if name.startswith("w")})
        held.append(tensors)
        return launched(kernel, grid, tensors, *arguments, **options)

    held = []  # so that no address is used twice
    monkeypatch.setattr(persistent_call.launch, "launch", spy)
    loop()
    loop()
    for module in (device, persistent_call):
        monkeypatch.setattr(module, "is_recording", lambda device: True)
    loop()
    assert packed[0]
    assert packed[0] == packed[1]
    assert not set(packed[1].values()) & set(packed[2].values())


@torch.no_grad()
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_generous_bound_costs_no_launches(monkeypatch, ahead):
    """Where the bound needs more than one launch, the host stops when it learns that all rows are finished."""
    loop = endless()
    whole = run(loop)
    monkeypatch.setitem(persistent_call._AHEAD, "cpu", ahead)
    monkeypatch.setattr(persistent_call, "_MOST_AHEAD", 4 * 3 * 4 * 4)  # four steps
    launches = emulation.launches
    assert_same_bits(run(loop, max_steps=100_000), whole)
    assert emulation.launches - launches == 6 + ahead  # 22 steps


@torch.no_grad()
def test_half_precision_is_not_rounded_where_launches_are_cut(monkeypatch):
    loop = reading(dtype=torch.bfloat16)
    whole = run(loop)
    launches = emulation.launches
    assert_same_bits(run(loop, parallel_iterations=2), whole)
    assert emulation.launches - launches == 3


@torch.no_grad()
def test_what_is_made_after_the_loop_counts_as_memory(monkeypatch):
    cell, start, project = cell_of("rnn"), torch.zeros(3, H), torch.nn.Linear(H, 100)
    x = torch.randn(T, 3, D)

    def loop_fn(time, output, state, loop_state):
        return time >= T, x[time], start if output is None else state, torch.zeros(100) if output is None else project(output), None

    whole = run((cell, loop_fn))
    monkeypatch.setattr(persistent_call, "_MOST_AHEAD", 2 * 4 * 3 * (2 * H + 100))  # two steps: the reads' products, and the emits twice
    launches = emulation.launches
    assert_same(run((cell, loop_fn)), whole)
    assert emulation.launches - launches == 3
