"""The native executor as a whole: its bits, its threads, its sizes, its edges, and what it keeps on disk."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest
import torch

from fusedrnn import GRUCell, LSTMCell, dynamic_rnn, feedback, raw_rnn
from fusedrnn.executors.prologue import _prologues

WIDTH, HIDDEN = 5, 16


class Loop:
    """A cell over ragged rows."""

    def __init__(self, batch: int, steps: int, lengths: list[int] | None = None, seed: int = 1) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.x = torch.randn(steps, batch, WIDTH, generator=draw)
        self.lengths = (
            torch.randint(0, steps + 1, (batch,), generator=draw) if lengths is None else torch.tensor(lengths, dtype=torch.int64)
        )

    def run(self, cell: Any, backend: str, rows: Any = slice(None), **options: Any) -> Any:
        x, lengths = self.x[:, rows], self.lengths[rows]
        batch = x.shape[1]
        result = raw_rnn(cell, reading(cell, x, lengths, batch), backend=backend, **options)
        emits, state, _ = result
        return emits.stack(), state, result.lengths, result.truncated


def reading(cell: Any, x: torch.Tensor, lengths: torch.Tensor, batch: int) -> Any:
    def loop_fn(time: torch.Tensor, out: Any, state: Any, carried: Any) -> Any:
        return time >= lengths, x[time], cell.zero_state(batch) if out is None else state, out, None

    return loop_fn


@pytest.fixture(scope="module")
def cell():
    torch.manual_seed(3)
    return GRUCell(WIDTH, HIDDEN)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def same(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def close(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_same_inputs_give_the_same_bits(cell):
    loop = Loop(33, 9)
    same(loop.run(cell, "native"), loop.run(cell, "native"))


@pytest.mark.parametrize("batch", [2, 9, 16, 33])
def test_a_row_alone_is_the_row_in_a_batch(cell, batch):
    loop = Loop(batch, 7)
    emits, state, lengths, _ = loop.run(cell, "native")
    for row in range(batch):
        own, own_state, own_lengths, _ = loop.run(cell, "native", rows=slice(row, row + 1))
        assert own_lengths == lengths[row]
        assert torch.equal(own[:, 0], emits[: len(own), row])
        assert torch.equal(own_state[0], state[row])


@pytest.mark.parametrize("batch", [1, 7, 16, 40])
def test_the_number_of_threads_changes_nothing(cell, batch):
    loop = Loop(batch, 6)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = loop.run(cell, "native")
        torch.set_num_threads(2)
        same(loop.run(cell, "native"), alone)
        torch.set_num_threads(4)
        same(loop.run(cell, "native"), alone)
    finally:
        torch.set_num_threads(before)
    close(alone, loop.run(cell, "reference"))


@pytest.mark.parametrize("shared", [False, True])
def test_threads_of_rows_that_mix(shared):
    """One group of threads shares the products: rows depend on one another."""
    torch.manual_seed(0)
    w = torch.randn(64, 64) * 0.2
    x = torch.randn(5, 20, 64)
    threads = torch.get_num_threads()

    class Mixed:
        output_size = state_size = 64

        def __call__(self, inputs: torch.Tensor, state: torch.Tensor) -> Any:
            new = torch.tanh(inputs @ w + state @ w + state.mean(0))
            return new, new

    def loop_fn(time: torch.Tensor, out: Any, state: Any, carried: Any) -> Any:
        return time >= 5, x[time], torch.zeros(20, 64) if out is None else state, out, None

    cell = Mixed()
    try:
        torch.set_num_threads(2 if shared else 1)
        emits, state, _ = raw_rnn(cell, loop_fn, backend="native")
    finally:
        torch.set_num_threads(threads)
    wanted, wanted_state, _ = raw_rnn(cell, loop_fn, backend="reference")
    close((emits.stack(), state), (wanted.stack(), wanted_state))


class Count:
    """The state counts steps; a row is finished when its state is its goal."""

    output_size = state_size = 1

    def __call__(self, inputs: torch.Tensor, state: torch.Tensor) -> Any:
        return state + inputs, state + 1


def counting(goals: list[float]) -> Any:
    wanted = torch.tensor(goals)

    def loop_fn(time: torch.Tensor, out: Any, state: Any, carried: Any) -> Any:
        start = torch.zeros(len(wanted), 1)
        if out is None:
            return wanted <= 0, start, start, None, torch.tensor(0)
        return state[:, 0] >= wanted, out * 0.5, state, out, carried + 1

    return loop_fn


@pytest.mark.parametrize(
    "goals", [[64.0, 3.0], [65.0, 1.0], [63.0, 0.0], [200.0, 64.0], [300.0, 129.0, 0.0] * 11, [128.0] * 16, [193.0] + [2.0] * 31]
)
def test_loops_longer_than_the_first_room_for_emits(goals):
    """No bound is known: 64 steps of emits are made room for, then twice as many."""
    results = [raw_rnn(Count(), counting(goals), backend=backend) for backend in ("native", "reference")]
    (emits, state, carried), (wanted, wanted_state, wanted_carried) = results
    same((emits.stack(), state, carried), (wanted.stack(), wanted_state, wanted_carried))
    assert results[0].lengths.tolist() == [int(goal) for goal in goals]
    assert not results[0].truncated.any()


@pytest.mark.parametrize("most", [0, 1, 2, 63, 64, 65, 128, 150])
def test_max_steps(most):
    goals = [200.0, 64.0, 1.0, 0.0, 65.0] * 4
    results = [raw_rnn(Count(), counting(goals), backend=backend, max_steps=most) for backend in ("native", "reference")]
    (emits, state, carried), (wanted, wanted_state, wanted_carried) = results
    same((emits.stack(), state, carried), (wanted.stack(), wanted_state, wanted_carried))
    same((results[0].lengths, results[0].truncated), (results[1].lengths, results[1].truncated))
    assert results[0].lengths.dtype == torch.int32


@pytest.mark.parametrize(
    ("batch", "steps", "lengths"),
    [
        (0, 3, []),
        (3, 1, [1, 1, 1]),
        (3, 1, [0, 1, 0]),
        (1, 1, [1]),
        (1, 4, [4]),
        (1, 4, [0]),
        (4, 3, [0, 0, 0, 0]),
        (4, 3, [0, 3, 0, 1]),
        (2, 0, [0, 0]),
        (17, 2, [0] * 16 + [2]),
        (32, 32, list(range(32))),
        (5, 5, [5, 4, 3, 2, 1]),
        (5, 5, [1, 0, 0, 0, 0]),
    ],
)
def test_edges(cell, batch, steps, lengths):
    loop = Loop(batch, steps, lengths)
    outcomes = []
    for backend in ("native", "reference"):
        try:
            outcomes.append(loop.run(cell, backend))
        except (IndexError, ValueError) as error:
            outcomes.append((type(error), str(error)))
    if isinstance(outcomes[1][0], type):
        assert outcomes[0] == outcomes[1]
    else:
        close(*outcomes)


def test_weights_that_change_in_place_are_seen(cell):
    torch.manual_seed(0)
    own = LSTMCell(WIDTH, HIDDEN)
    x, lengths = torch.randn(3, 6, WIDTH), torch.tensor([6, 2, 5])
    for _ in range(3):
        got, _ = dynamic_rnn(own, x, lengths, backend="native")
        want, _ = dynamic_rnn(own, x, lengths, backend="reference")
        close([got], [want])
        for parameter in own.parameters():
            parameter.mul_(1.25)
    with torch.no_grad():
        next(iter(own.parameters())).data = torch.randn_like(next(iter(own.parameters())))
    close([dynamic_rnn(own, x, lengths, backend="native")[0]], [dynamic_rnn(own, x, lengths, backend="reference")[0]])


def test_closed_over_tensors_that_change_in_place_are_seen():
    scale = torch.ones(2)

    def loop_fn(time: torch.Tensor, out: Any, state: Any, carried: Any) -> Any:
        start = torch.zeros(2, 1)
        return time >= 3, start + scale.sum() if out is None else out * 0.5 + scale[:, None], start if out is None else state, out, None

    for _ in range(3):
        got, want = (raw_rnn(Count(), loop_fn, backend=backend)[0].stack() for backend in ("native", "reference"))
        close([got], [want])
        scale.add_(1.5)


def test_other_sizes_use_the_compiled_program(cell):
    """loop_fn runs at time 0, and twice more to capture its step; later only at time 0."""
    calls: list[int] = []

    def looping(x: torch.Tensor, lengths: torch.Tensor) -> Any:
        def loop_fn(time: torch.Tensor, out: Any, state: Any, carried: Any) -> Any:
            return time >= lengths, x[time], cell.zero_state(len(lengths)) if out is None else state, out, None

        return loop_fn

    code = looping(torch.zeros(1, 1, 1), torch.zeros(1)).__code__

    def profiler(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is code:
            calls.append(1)

    many = []
    for batch, steps in ((3, 4), (5, 9), (33, 2), (3, 4), (8, 65)):
        loop = Loop(batch, steps, seed=batch)
        calls.clear()
        sys.setprofile(profiler)
        try:
            emits, state, _ = raw_rnn(cell, looping(loop.x, loop.lengths), backend="native")
        finally:
            sys.setprofile(None)
        many.append(len(calls))
        close((emits.stack(), state), loop.run(cell, "reference")[:2])
    assert many[0] <= 3
    assert many[1:] == [1] * 4


def test_two_python_threads_at_once(cell):
    loops = [Loop(24, 12, seed=seed) for seed in (1, 2)]
    wanted = [loop.run(cell, "native") for loop in loops]
    wrong: list[Any] = []

    def work(place: int) -> None:
        try:
            with torch.no_grad():
                for _ in range(40):
                    same(loops[place].run(cell, "native"), wanted[place])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def failing(table: torch.Tensor, tokens: torch.Tensor, kind: str) -> Any:
    def loop_fn(time: torch.Tensor, out: Any, state: Any, carried: Any) -> Any:
        start = torch.zeros(3, 1)
        token = tokens[0] if out is None else tokens[time.clamp(max=2)]
        if kind == "embedding":
            inputs = torch.nn.functional.embedding(token, table)
        elif kind == "index":
            inputs = table[token]
        elif kind == "gather":
            inputs = table[:3].gather(0, token[:, None])
        else:
            inputs = table[time + 9 if kind == "past" else time - 9 * (time > 1)].expand(3, 1)
        return time >= 3, inputs, start if out is None else state, out, None

    return loop_fn


@pytest.mark.parametrize("kind", ["embedding", "index", "gather", "past", "before"])
def test_an_index_out_of_range_is_the_error_of_reference(kind):
    table, tokens = torch.randn(4, 1), torch.tensor([[0, 1, 2], [2, 1, 0], [1, -9, 0]])
    told = []
    for backend in ("reference", "native"):
        with pytest.raises((IndexError, RuntimeError)) as raised:
            raw_rnn(Count(), failing(table, tokens, kind), backend=backend)
        told.append((type(raised.value), str(raised.value)))
    assert told[0] == told[1]


def test_inputs_need_not_be_contiguous(cell):
    x = torch.randn(WIDTH, 6, 7).permute(2, 1, 0)[:, ::2]
    lengths = torch.tensor([[7, 0], [3, 0], [5, 0]])[:, 0]
    loop = Loop(3, 7)
    loop.x, loop.lengths = x, lengths
    assert not x.is_contiguous()
    close(loop.run(cell, "native"), loop.run(cell, "reference"))
    state = torch.randn(HIDDEN, 3).t()
    got, want = (dynamic_rnn(cell, x.transpose(0, 1), lengths, initial_state=state, backend=b) for b in ("native", "reference"))
    close(got, want)


def test_inference_mode(cell):
    loop = Loop(6, 5)
    with torch.inference_mode():
        inside = Loop(6, 5)
        close(inside.run(cell, "native"), inside.run(cell, "reference"))
        inside.x.mul_(2.0)  # what is made in inference mode does not tell that it changed
        close(inside.run(cell, "native"), inside.run(cell, "reference"))
        changed = inside.run(cell, "native")
    loop.x.mul_(2.0)
    same(loop.run(cell, "native"), changed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions(dtype):
    torch.manual_seed(0)
    w = (torch.randn(HIDDEN, HIDDEN) * 0.3).to(dtype)
    x = torch.randn(6, 9, HIDDEN).to(dtype)
    lengths = torch.randint(0, 7, (9,))

    class Cell:
        output_size = state_size = HIDDEN

        def __call__(self, inputs: torch.Tensor, state: torch.Tensor) -> Any:
            new = torch.tanh(inputs + state @ w)
            return new * 2, new

    def loop_fn(time: torch.Tensor, out: Any, state: Any, carried: Any) -> Any:
        start = torch.zeros(9, HIDDEN, dtype=dtype)
        return time >= lengths, x[time], start if out is None else state, start[0] if out is None else out, None

    cell = Cell()
    (got, state, _), (want, wanted, _) = (raw_rnn(cell, loop_fn, backend=backend) for backend in ("native", "reference"))
    assert got.stack().dtype == state.dtype == dtype
    torch.testing.assert_close(got.stack(), want.stack(), rtol=0.04, atol=0.04)
    torch.testing.assert_close(state, wanted, rtol=0.04, atol=0.04)


def test_greedy_tokens():
    torch.manual_seed(0)
    cell, embedding, project = torch.nn.GRUCell(8, 12), torch.nn.Embedding(20, 8), torch.nn.Linear(12, 20)
    h = torch.randn(19, 12)
    loop = feedback.greedy(embedding, project, start=0, end=3, initial_state=h, max_steps=25)
    got, want = (raw_rnn(cell, loop, backend=backend) for backend in ("native", "reference"))
    assert torch.equal(got[0].stack(), want[0].stack())
    assert torch.equal(got.lengths, want.lengths)


PROGRAM = """
import torch, fusedrnn
from fusedrnn.kernels.cpu import build
compiled = []
compile_ = build._compile
build._compile = lambda *arguments: (compiled.append(1), compile_(*arguments))[1]
torch.manual_seed(0)
cell = fusedrnn.GRUCell(3, 4)
with torch.no_grad():
    emits, state = fusedrnn.dynamic_rnn(cell, torch.randn(2, 5, 3), torch.tensor([5, 2]), backend="native")
print(len(compiled), state.double().sum().item())
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    surroundings = {**os.environ, "FUSEDRNN_CACHE_DIR": str(tmp_path)}
    told = [
        subprocess.run([sys.executable, "-c", PROGRAM], env=surroundings, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert int(told[0][0]) >= 1
    assert int(told[1][0]) == 0
    assert told[0][1] == told[1][1]


def test_memory_that_is_used_again(cell):
    """What is made of an input before the loop must not be taken for another input's that got its memory."""
    lengths = torch.tensor([5, 3, 5])

    def loop_of(x):
        def loop_fn(time, output, state, carried):
            return time >= lengths, (x * 2).cumsum(0)[time], cell.zero_state(3) if state is None else state, output, None

        return loop_fn

    addresses = []
    while len(addresses) - len(set(addresses)) < 4:  # until so many were used again
        assert len(addresses) < 200
        x = torch.randn(5, 3, WIDTH, generator=torch.Generator().manual_seed(len(addresses)))
        addresses.append(x.data_ptr())
        found, expected = (raw_rnn(cell, loop_of(x), backend=backend) for backend in ("native", "reference"))
        close([found.emit_ta.stack(), found.final_state], [expected.emit_ta.stack(), expected.final_state])
        del x, found, expected


def test_nothing_made_of_a_dead_model_stays():
    model = GRUCell(WIDTH, HIDDEN)
    loop = Loop(4, 5)
    loop.run(model, "native")
    kept = [part.kept for prologue in _prologues for part in prologue._fixed if part.kept is not None and not part.kept.expired()]
    assert kept
    weight = weakref.ref(next(model.parameters()))
    del model
    gc.collect()
    assert weight() is None
    loop.run(GRUCell(WIDTH, HIDDEN + 1), "native")  # compiling the next one sweeps
    assert not any(
        part.kept in kept for prologue in _prologues for part in prologue._fixed if part.kept is not None and part.kept.expired()
    )
