"""Persistent kernels, emulated: the edges of a loop, the layouts of a launch, and what must end in an error."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import GRUCell, LSTMCell, PlanError, branches, contract, feedback, frames
from fusedrnn.capture import cache
from fusedrnn.cells.protocol import as_cell
from fusedrnn.executors import persistent, persistent_call
from fusedrnn.kernels import device, gpu
from fusedrnn.kernels.gpu import launch
from fusedrnn.kernels.gpu.launch import emulation

from .layouts import assert_same, assert_same_bits, outcome, planning

if os.environ["FUSEDRNN_EMULATE"] != "1":
    pytest.skip("no kernel is emulated", allow_module_level=True)

T, D, H, V = 5, 6, 20, 12


def run(loop, backend="persistent", **options):
    return fusedrnn.raw_rnn(*loop, backend=backend, **options)


def both(loop, **options):
    """The loop on the kernel, which is compared with `reference`."""
    fallbacks = fusedrnn.fallbacks()
    result = run(loop, **options)
    assert_same(result, run(loop, "reference", **options))
    assert fusedrnn.fallbacks() == fallbacks
    return result


def cell_of(kind, dtype=torch.float32):
    torch.manual_seed(5)
    return {
        "lstm": lambda: LSTMCell(D, H),
        "gru": lambda: nn.GRUCell(D, H),
        "tf gru": lambda: GRUCell(D, H, reset_after=False),
        "rnn": lambda: nn.RNNCell(D, H),
    }[kind]().to(dtype)


def start_of(cell, batch, dtype=torch.float32):
    h = torch.randn(batch, H, generator=torch.Generator().manual_seed(4)).to(dtype)
    return (h, h * 0.5) if isinstance(cell, LSTMCell) else h


def reading(kind="lstm", lengths=(5, 2, 0, 1), *, steps=T, dtype=torch.float32, x=None):
    """A loop that reads a sequence."""
    cell, ends = cell_of(kind, dtype), torch.as_tensor(lengths)
    x = torch.randn(steps, len(ends), D, generator=torch.Generator().manual_seed(2)).to(dtype) if x is None else x
    state0 = start_of(cell, len(ends), dtype)

    def loop_fn(time, output, state, loop_state):
        return time >= ends, x[time], state0 if output is None else state, output, None

    return cell, loop_fn


def greedy(kind="gru", batch=5, steps=9, *, dtype=torch.float32):
    """A loop that feeds its own best token back."""
    cell = cell_of(kind, dtype)
    table, project = nn.Embedding(V, D).to(dtype), nn.Linear(H, V).to(dtype)
    return cell, feedback.greedy(table, project, 0, 3, start_of(cell, batch, dtype), steps)


def endless(batch=3, until=1.0):
    """A loop that ends on a value: no bound on its steps is known."""
    cell = nn.RNNCell(2, 4)
    speed = torch.linspace(0.047, 0.3, batch)

    def loop_fn(time, output, state, clock):
        if output is None:
            return torch.zeros_like(speed, dtype=torch.bool), torch.zeros_like(speed)[:, None].expand(-1, 2), start, None, speed
        return clock > until, output[:, :2], state, output, clock + speed

    start = torch.zeros(batch, 4)
    return cell, loop_fn


# Edges of a loop


@pytest.mark.parametrize(
    "lengths",
    [[5, 2, 0, 1], [1], [0, 1], [1, 1, 1], [0, 0, 0], [], [5] * 16, [3, 5] * 16 + [4]],
    ids=lambda lengths: f"{len(lengths)} rows",
)
def test_lengths(lengths):
    result = both(reading(lengths=lengths))
    assert result.lengths.tolist() == lengths


@pytest.mark.parametrize("kind", ["lstm", "gru", "tf gru", "rnn"])
def test_one_step(kind):
    both(reading(kind, [1, 0, 1], steps=1))


@pytest.mark.parametrize("steps", [1, 3, 5, 9])
def test_max_steps(steps):
    result = both(reading(), max_steps=steps)
    assert result.truncated.tolist() == [length > steps for length in (5, 2, 0, 1)]


def test_a_loop_that_never_ends_is_cut_off():
    cell, loop_fn = endless(until=1e9)
    result = both((cell, loop_fn), max_steps=7)
    assert result.truncated.all()
    assert result.emit_ta.size() == 7


@pytest.mark.parametrize("first", [1, 3, 64])
def test_without_a_bound_launches_resume(monkeypatch, first):
    """However many steps a launch has, the bits are the same."""
    loop = endless()
    whole = run(loop)
    monkeypatch.setattr(persistent_call, "_FIRST_STEPS", first)
    launches = emulation.launches
    assert_same_bits(run(loop), whole)
    assert (emulation.launches - launches) == {1: 5, 3: 4, 64: 1}[first]  # 22 steps: 1 + 2 + 4 ...
    assert whole.lengths.tolist() == run(loop, "reference").lengths.tolist()


@pytest.mark.parametrize("iterations", [1, 2, 32])
def test_parallel_iterations(iterations):
    """As many steps are made ahead at a time; it decides no bit."""
    loop = reading()
    launches = emulation.launches
    result = run(loop, parallel_iterations=iterations)
    assert emulation.launches - launches == -(-T // iterations)
    assert_same_bits(result, run(loop))


def test_little_memory_for_what_is_made_ahead(monkeypatch):
    loop = reading()
    whole = run(loop)
    monkeypatch.setattr(persistent_call, "_MOST_AHEAD", 4 * 4 * 5 * H * 2)
    launches = emulation.launches
    assert_same_bits(run(loop), whole)
    assert emulation.launches - launches > 1


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_finished_rows_hold_stays_there(poison):
    x = torch.randn(T, 4, D, generator=torch.Generator().manual_seed(2))
    for row, length in enumerate((5, 2, 0, 1)):
        x[length:, row] = poison
    result = both(reading(x=x))
    assert all(leaf.isfinite().all() for leaf in outcome(result))


def test_a_row_may_be_nan():
    """Row 1 alone is."""
    x = torch.randn(T, 4, D, generator=torch.Generator().manual_seed(2))
    x[0, 1] = torch.nan
    emits = both(reading(x=x)).emit_ta.stack()
    assert emits[:2, 1].isnan().all()
    assert emits[:, [0, 2, 3]].isfinite().all()


# Layouts


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
}


QUICK = ("one program", "three programs", "one group at a time", "small chunks streamed")


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


# The same bits


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
def test_infinities_in_full_float32(monkeypatch):
    """A product of three tf32 products: what is infinite has no second part."""
    monkeypatch.setattr(persistent, "_precision", lambda device: "hilo")
    cache.clear()
    cell, x, start = nn.RNNCell(4, 8), torch.randn(3, 3, 4), torch.rand(3, 8)
    cell.weight_hh.copy_(torch.rand(8, 8) + 0.1)
    start[0, 0] = torch.inf

    def loop_fn(time, output, state, loop_state):
        return time >= 3, x[time], start if output is None else state, output, None

    both((cell, loop_fn))
    cache.clear()


# What changes between calls


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


# Errors


def told_by_both(loop):
    """The IndexError that the loop ends in, the same on `reference` and on the kernel."""
    told = []
    for backend in ("reference", "persistent"):
        with pytest.raises(IndexError) as error:
            run(loop, backend)
        told.append(str(error.value))
    assert told[0] == told[1]
    return told[0]


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
        return time >= ends, x, state.index_fill(1, torch.tensor([0]), 0.5), output, None

    x, h, ends = torch.zeros(2, D), torch.zeros(2, H), torch.tensor([1, 2])
    with pytest.raises(PlanError, match="index_put") as error:
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
    "writes at an index": (lambda h: h.index_fill(1, torch.tensor([0]), 0.5), "index_put: the persistent kernel has no rule for it"),
    "rows together": (lambda h: h - h.mean(0), "rows depend on one another"),
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


@pytest.mark.parametrize("lengths", [[1, 2], [5, 0], [3]])
def test_written_arrays(lengths):
    """Rows, numbers, and what is of no row: as many as the loop has steps."""
    batch, ends = len(lengths), torch.tensor(lengths)
    x, start = torch.ones(T, batch, D), torch.ones(batch, H)

    def loop_fn(time, output, state, arrays):
        if output is None:
            return time >= ends, x[time], start, None, tuple(fusedrnn.TensorArray(torch.float32, T) for _ in range(3))
        rows, numbers, clock = arrays
        arrays = rows.write(time - 1, output), numbers.write(2 * time, output.sum(1)), clock.write(time - 1, time * 0.5)
        return time >= ends, x[time], state, output, arrays

    both((cell_of("rnn"), loop_fn))


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


# Gradients and surroundings


def gradients(loop, leaves, backend):
    result = run(loop, backend)
    loss = sum((leaf * torch.linspace(-1, 1, leaf.numel()).reshape(leaf.shape)).sum() for leaf in outcome_with_gradients(result))
    return torch.autograd.grad(loss, leaves)


def outcome_with_gradients(result):
    emits, state, _ = result
    return [emits.stack(), *(state if isinstance(state, tuple) else [state])]


@pytest.mark.parametrize("kind", ["lstm", "tf gru"])
def test_gradients(kind):
    x = torch.randn(T, 4, D, requires_grad=True)
    loop = reading(kind, x=x)
    leaves = [x, *loop[0].parameters()]
    found, wanted = (gradients(loop, leaves, backend) for backend in ("persistent", "reference"))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradients_are_kept(mode):
    loop = reading()
    with mode():
        result = both(loop)
        assert not any(leaf.requires_grad for leaf in outcome_with_gradients(result))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lstm", "tf gru"])
def test_half_precision(kind, dtype):
    """At most twice as far from float64 as the plain loop in that dtype."""
    exact = outcome(run(rounded(kind, dtype), "reference"))
    mine, plain = outcome(run(reading(kind, dtype=dtype))), outcome(run(reading(kind, dtype=dtype), "reference"))
    assert mine[0].dtype == dtype
    for one, other, want in zip(mine, plain, exact, strict=True):
        assert one.dtype == other.dtype
        error, allowed = ((value.double() - want.double()).abs().max().item() for value in (one, other))
        assert error <= 2 * allowed + 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_greedy_decode_in_half_precision(dtype):
    """The tokens are those of the plain loop: the seed leaves no two words close."""
    loop = greedy(dtype=dtype)
    found, plain = run(loop), run(loop, "reference")
    assert torch.equal(found.emit_ta.stack(), plain.emit_ta.stack())
    assert torch.equal(found.lengths, plain.lengths)


def rounded(kind, dtype):
    """The loop of that dtype, computed in float64."""
    cell = cell_of(kind, dtype).double()
    x = torch.randn(T, 4, D, generator=torch.Generator().manual_seed(2)).to(dtype).double()
    ends = torch.tensor([5, 2, 0, 1])
    start = start_of(cell, 4, dtype)
    start = tuple(leaf.double() for leaf in start) if isinstance(start, tuple) else start.double()

    def loop_fn(time, output, state, loop_state):
        return time >= ends, x[time], start if output is None else state, output, None

    return cell, loop_fn


def test_autocast():
    loop = reading("gru")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = run(loop), run(loop, "reference")
    assert_same(got, want, rtol=2e-2, atol=2e-2)


# G2P


@pytest.mark.slow
def test_g2p_decodes_the_same_phonemes():
    from fusedrnn.models import G2P, g2p_checkpoint, g2p_numpy

    words = sorted({f"{a}{b}{c}" for a in ("re", "un", "k") for b in ("ight", "ola", "ess", "xyz", "ing") for c in ("", "s", "ment", "er")})
    arrays = g2p_checkpoint.arrays()
    launches = emulation.launches
    found = G2P.pretrained()(words, backend="persistent")
    assert emulation.launches > launches
    assert found == [g2p_numpy.decode(arrays, word) for word in words]
    assert len(words) == 60
    assert np.mean([len(one) for one in found]) > 3
