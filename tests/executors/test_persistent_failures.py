"""Persistent kernels, emulated: what ends in an error, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from fusedrnn import PlanError, branches, contract, frames
from fusedrnn.capture import cache
from fusedrnn.cells.protocol import as_cell
from fusedrnn.executors import persistent, persistent_call
from fusedrnn.kernels import gpu
from fusedrnn.kernels.gpu import launch
from fusedrnn.kernels.gpu.launch import emulation

from .layouts import assert_same_bits, planning
from .loops import D, H, T, V, both, cell_of, reading, run, told_by_both

if os.environ["FUSEDRNN_EMULATE"] != "1":
    pytest.skip("no kernel is emulated", allow_module_level=True)


@pytest.mark.parametrize("place", [(0, 0), (1, 1)])
def test_a_program_that_dies_ends_the_loop(monkeypatch, place):
    planning(monkeypatch)
    loop = reading("tf gru", [5] * 20)
    want = run(loop)
    monkeypatch.setattr(launch, "_POLLS_EMULATED", 300)
    monkeypatch.setattr(emulation, "kill", place)
    with pytest.raises(RuntimeError, match="waited for one another in vain"):
        run(loop)
    monkeypatch.undo()
    planning(monkeypatch)
    assert_same_bits(run(loop), want)


def unbounded(step):
    """A loop whose number of steps nothing bounds, and whose loop_state goes through ``step``."""
    cell, embedding, start = nn.RNNCell(4, 4).requires_grad_(False), nn.Embedding(6, 4).requires_grad_(False), torch.zeros(2, 4)

    def loop_fn(time, output, state, token):
        token = torch.zeros(2, dtype=torch.int64) if output is None else step(token)
        return token < 0, embedding(token.clamp(min=0)), start if output is None else state, output, token

    return cell, loop_fn


@torch.no_grad()
def test_a_fault_ends_a_loop_that_nothing_bounds():
    assert "index 6" in told_by_both(unbounded(lambda token: token + 1))


@torch.no_grad()
def test_a_program_that_dies_ends_a_loop_that_nothing_bounds(monkeypatch):
    loop = unbounded(lambda token: torch.where(token > 3, -1, token + 1))
    both(loop)
    monkeypatch.setattr(launch, "_POLLS_EMULATED", 200)
    monkeypatch.setattr(emulation, "kill", (1, 0))
    with pytest.raises(RuntimeError, match="waited for one another in vain"):
        run(loop)


def test_a_read_past_the_end_is_the_error_of_reference():
    cell, loop_fn = reading(lengths=[7, 2, 0, 1])
    assert "time 5" in told_by_both((cell, loop_fn))


def test_a_fault_shows_when_the_host_asks():
    """As on a GPU, where a loop is under way when it is returned."""
    cell, loop_fn = reading(lengths=[7, 2, 0, 1])
    call = contract.Call(as_cell(cell), loop_fn)
    with torch.no_grad(), frames.running() as frame, branches.taken():
        begun = contract.start(call, frame)
        program, tensors = cache.captured(call, frame, begun)
    kernel = persistent.kernel(program, begun.batch, begun.device, tensors)
    result = persistent_call.Bound(kernel, call, begun, tensors, None).launch().result(call, frame, program.emits(begun.batch))
    for ask in (lambda: result.lengths, result.emit_ta.stack, lambda: result.truncated):
        with pytest.raises(IndexError, match="time 5"):
            ask()


def test_a_token_outside_of_the_embedding_is_the_error_of_reference():
    cell, table, tokens = nn.RNNCell(D, H), nn.Embedding(V, D), torch.tensor([[1, 2], [3, V], [0, 0]])

    def loop_fn(time, output, state, loop_state):
        return time >= ends, table(tokens[time]), start if output is None else state, output, None

    start, ends = torch.zeros(2, H), torch.tensor([3, 2])
    told_by_both((cell, loop_fn))


def test_the_reason_names_the_line():
    def loop_fn(time, output, state, loop_state):
        if output is None:
            return time >= ends, x, h, None, None
        return time >= ends, x, torch.erfinv(state * 0.1), output, None

    x, h, ends = torch.zeros(2, D), torch.zeros(2, H), torch.tensor([1, 2])
    with pytest.raises(PlanError, match="erfinv") as error:
        run((nn.RNNCell(D, H), loop_fn))
    line = loop_fn.__code__.co_firstlineno + 3
    assert error.value.location == f"{__file__}:{line}"
    assert "backend='stepwise'" in error.value.reason


def test_float64_is_refused_by_name():
    with pytest.raises(PlanError, match="float64 numbers"):
        run(reading(dtype=torch.float64))


def test_tensors_elsewhere_are_refused(monkeypatch):
    calls, refusal = [], persistent.refusal
    monkeypatch.setattr(persistent, "refusal", lambda *arguments: calls.append(arguments) or refusal(*arguments))
    run(reading("rnn"))
    begun, program, tensors = calls[0]
    far = [tensor.to("meta") if place == program.tensors[-1] else tensor for place, tensor in enumerate(tensors)]
    assert re.search(r"the loop is on cpu, but it reads a tensor \[.*\] on meta: move that there", refusal(begun, program, far).reason)
    monkeypatch.setattr(gpu, "EMULATED", False)
    assert "run on a CUDA device, this loop is on cpu: move its tensors there" in refusal(begun, program, tensors).reason


def summing(batch):
    """loop_state goes on with every row until the last one ends."""
    cell, x, ends, start = cell_of("rnn"), torch.randn(T, batch, D), torch.arange(batch) % 6, torch.zeros(batch, H)

    def loop_fn(time, output, state, total):
        first = output is None
        return time >= ends, x[time], start if first else state, output, start if first else total + output

    return cell, loop_fn


def test_all_rows_in_one_group_may_be_too_many():
    both(summing(20))
    with pytest.raises(PlanError, match="all 130 rows would have to run in one group, which has 128 at most"):
        run(summing(130))


REFUSED = {
    "a Python branch": (lambda h: h * 2 if h.sum() > 0 else h, ""),
    "no rule": (lambda h: torch.erfinv(h * 0.1), "erfinv: the persistent kernel has no rule for it"),
    "rows together": (lambda h: h - h.flip(0), "rows depend on one another"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_line(name):
    change, reason = REFUSED[name]
    x, start, ends = torch.ones(T, 2, D), torch.ones(2, H), torch.tensor([1, 2])

    def loop_fn(time, output, state, loop_state):
        return time >= ends, x[time], start if output is None else change(state), output, None

    with pytest.raises(PlanError) as error:
        run((cell_of("rnn"), loop_fn))
    assert reason in error.value.reason
    assert error.value.location == f"{__file__}:{change.__code__.co_firstlineno}"


def test_without_emulation_the_error_says_what_to_do():
    text = (
        "import torch, fusedrnn\n"
        "cell, x, h = torch.nn.RNNCell(2, 2), torch.zeros(3, 1, 2), torch.zeros(1, 2)\n"
        "try:\n"
        "    fusedrnn.raw_rnn(cell, lambda t, o, s, l: (t >= 3, x[t], h if o is None else s, o, None), backend='persistent')\n"
        "except fusedrnn.PlanError as error:\n"
        "    print(error.reason)\n"
    )
    surroundings = {name: value for name, value in os.environ.items() if name not in ("FUSEDRNN_EMULATE", "TRITON_INTERPRET")}
    surroundings["CUDA_VISIBLE_DEVICES"] = ""
    told = subprocess.run([sys.executable, "-c", text], env=surroundings, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "no CUDA device" in told
    assert "FUSEDRNN_EMULATE=1" in told


@torch.no_grad()
def test_a_launch_that_the_driver_refuses(monkeypatch):
    """The loop goes on step by step, says why, and does not ask the driver again."""
    loop, asked = reading("rnn"), []

    def refuse(*arguments, **options):
        asked.append(1)
        raise launch.Refused("the driver refuses 2 x 1 programs at once: too many blocks in cooperative launch")

    cache.clear()
    monkeypatch.setattr(persistent_call.launch, "launch", refuse)
    for _ in range(2):
        with pytest.raises(PlanError, match="too many blocks in cooperative launch; use backend='stepwise' or 'auto'"):
            run(loop)
    assert len(asked) == 1
    cache.clear()


@pytest.mark.parametrize(
    ("name", "text", "refused"),
    [
        ("RuntimeError", "Triton Error [CUDA]: too many blocks in cooperative launch", True),
        ("RuntimeError", "Triton Error [CUDA]: too many resources requested for launch", True),
        ("OutOfResources", "out of resource: shared memory, Required: 300000, Hardware limit: 232448", True),
        ("RuntimeError", "Triton Error [CUDA]: an illegal memory access was encountered", False),
    ],
)
def test_what_a_driver_says_of_a_launch_that_does_not_fit(name, text, refused):
    assert launch._is_refusal(type(name, (Exception,), {})(text)) == refused
