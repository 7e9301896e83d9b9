"""raw_rnn's own arguments: backends, bounds, lazy results, the profiler range, memory swapping, threads and transforms.

The semantics rule by rule, with TensorFlow's values, are in tests/programs.
"""

import threading

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import PlanError, raw_rnn
from fusedrnn.kernels import gpu

B, D, H, T = 3, 2, 4, 5


def reader(x, lengths, hidden=H):
    ends = torch.as_tensor(lengths)

    def loop_fn(time, out, state, _):
        return time >= ends, x[time], x.new_zeros(x.shape[1], hidden) if state is None else state, out, None

    return loop_fn


@pytest.fixture
def program():
    return nn.GRUCell(D, H), reader(torch.randn(T, B, D), [5, 2, 0])


def test_backends_that_are_not_there(program, monkeypatch):
    assert raw_rnn(*program, backend="reference")[0].size() == T
    monkeypatch.setattr(gpu, "EMULATED", False)
    with pytest.raises(PlanError, match="there is no CUDA device; use backend") as error:
        raw_rnn(*program, backend="persistent")
    assert (error.value.reason, error.value.location) == (str(error.value), None)
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', 'persistent', .* got 'fast'"):
        raw_rnn(*program, backend="fast")
    monkeypatch.setenv("FUSEDRNN_BACKEND", "persistent")
    with pytest.raises(PlanError):
        raw_rnn(*program)
    assert raw_rnn(*program, backend="reference")[0].size() == T
    monkeypatch.setenv("FUSEDRNN_BACKEND", "fast")
    with pytest.raises(ValueError, match="FUSEDRNN_BACKEND must be one of"):
        raw_rnn(*program)


def test_plan_error_tells_where():
    error = PlanError("no", "a.py:3")
    assert (str(error), error.reason, error.location) == ("no (a.py:3)", "no", "a.py:3")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"cell": 3}, TypeError, "cell must be an RNNCell, .*; int lacks output_size, state_size, a call"),
        ({"cell": nn.GRUCell}, TypeError, r"GRUCell is a class: pass an instance, GRUCell\(...\)"),
        ({"cell": nn.LSTM(2, 2)}, TypeError, "LSTM lacks output_size, state_size; .* use torch.nn.LSTMCell"),
        ({"cell": lambda *a: a}, TypeError, "are cell and loop_fn swapped"),
        ({"cell": nn.Linear(2, 2)}, TypeError, "Linear lacks output_size, state_size"),
        ({"loop_fn": None}, TypeError, "loop_fn must be callable, got NoneType"),
        ({"parallel_iterations": -1}, TypeError, "parallel_iterations must not be negative, got -1"),
        ({"parallel_iterations": "a"}, TypeError, "parallel_iterations must be an int or None, got 'a'"),
        ({"max_steps": -1}, ValueError, "max_steps must not be negative"),
        ({"max_steps": 2.0}, TypeError, "max_steps must be an int or None, got 2.0"),
        ({"scope": 3}, TypeError, "scope must be a str or None"),
    ],
)
def test_bad_arguments(program, change, kind, words):
    with pytest.raises(kind, match=words):
        raw_rnn(**{"cell": program[0], "loop_fn": program[1], **change})


def test_the_cell_is_checked_before_the_loop_fn():
    with pytest.raises(TypeError, match="cell must be"):
        raw_rnn(None, None)


@pytest.mark.parametrize("value", [None, 0, 1, 7])
def test_parallel_iterations_changes_no_result(program, value):
    assert torch.equal(raw_rnn(*program, value)[0].stack(), raw_rnn(*program)[0].stack())


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 9])
def test_max_steps_cuts_and_says_so(program, steps):
    emits, state, _ = raw_rnn(*program, max_steps=steps)
    whole = raw_rnn(*program)[0].stack()
    assert torch.equal(emits.stack(), whole[:steps])
    assert emits.lengths.tolist() == [min(n, steps) for n in (5, 2, 0)]
    assert emits.lengths.dtype == torch.int32
    assert emits.truncated.tolist() == [n > steps for n in (5, 2, 0)]
    assert state.shape == (B, H)


def test_a_loop_that_never_ends_is_bounded():
    cell = nn.GRUCell(D, H)
    emits, _, _ = raw_rnn(
        cell, lambda t, out, s, ls: (False, torch.ones(B, D), torch.zeros(B, H) if s is None else s, out, None), max_steps=6
    )
    assert emits.size() == 6
    assert emits.truncated.all()


def test_a_loop_without_steps_knows_its_emits():
    for cell, dtype in ((nn.GRUCell(D, H), torch.float32), (nn.GRUCell(D, H).to(torch.bfloat16), torch.bfloat16)):
        calls = []
        cell.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        emits, state, _ = raw_rnn(cell, reader(torch.zeros(T, B, D, dtype=dtype), [0, 0, 0]))
        assert emits.stack().shape == (0, B, H)
        assert emits.stack().dtype == dtype
        assert len(calls) <= 1  # the one run on tensors without data
        (emits.stack().sum() + state.sum()).backward()
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in cell.parameters())
    given = lambda t, out, s, ls: (True, torch.ones(B, D), torch.zeros(B, H), {"n": torch.zeros((2,), dtype=torch.int64)}, None)  # noqa: E731
    emits, _, _ = raw_rnn(nn.GRUCell(D, H), given)
    assert emits["n"].stack().shape == (0, B, 2)
    assert emits["n"].lengths.tolist() == [0, 0, 0]


def test_a_loop_without_steps_leaves_its_cell_alone():
    class Cell(nn.Module):
        output_size = state_size = H

        def __init__(self):
            super().__init__()
            self.norm, self.cache, self.seen = nn.BatchNorm1d(H), None, []

        def forward(self, x, h):
            if self.cache is None:
                self.cache = torch.ones(H)
            self.seen.append(h)
            return self.norm(h) * self.cache, h

    cell = Cell()
    loop_fn = lambda t, out, s, ls: (True, torch.ones(B, D), torch.zeros(B, H), None, None)  # noqa: E731
    assert raw_rnn(cell, loop_fn)[0].stack().shape == (0, B, H)
    assert (cell.cache, cell.seen, cell.norm.num_batches_tracked) == (None, [], 0)


@pytest.mark.parametrize("look", [lambda h: h[h > 0], lambda h: h.numpy(), lambda h: bool(h.sum() > 0)])
def test_a_loop_without_steps_whose_cell_looks_at_its_data(look):
    class Cell:
        output_size = state_size = H

        def __call__(self, x, h):
            look(h)
            return h, h

    emits, _, _ = raw_rnn(Cell(), lambda t, out, s, ls: (True, torch.ones(B, D), torch.zeros(B, H).double(), None, None))
    assert emits.stack().shape == (0, B, H)
    assert emits.dtype == torch.float64


def test_a_torch_cell_may_follow_the_protocol_itself():
    class Cell(nn.LSTMCell):
        output_size, state_size = H, (H, H)

        def forward(self, x, state):
            h, c = super().forward(x, state)
            return h * 2, (h, c)

    x = torch.randn(T, B, D)
    emits, (h, _), _ = raw_rnn(Cell(D, H), lambda t, out, s, ls: (t >= T, x[t], (torch.zeros(B, H),) * 2 if s is None else s, out, None))
    assert torch.equal(emits.stack()[-1], h * 2)


@pytest.mark.parametrize("result", [None, torch.zeros(2, H), (1, 2, 3)])
def test_the_cell_returns_a_pair(result):
    class Cell:
        output_size = state_size = H

        def __call__(self, x, h):
            return result

    with pytest.raises(TypeError, match=r"cell must return the pair \(output, new_state\), got .* in the step before time 1"):
        raw_rnn(Cell(), lambda t, out, s, ls: (t >= 3, torch.ones(2, D), torch.zeros(2, H), out, None))


def test_scope_names_a_profiler_range(program):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        raw_rnn(*program, scope="my decoder")
    assert "my decoder" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("finished_early", [True, False])
def test_swap_memory_keeps_the_gradients(finished_early):
    cell, x = nn.GRUCell(D, H), torch.randn(T, B, D, requires_grad=True)

    def gradients(swap):
        emits, state, _ = raw_rnn(cell, reader(x, [5, 2, 0] if finished_early else [5, 5, 5]), swap_memory=swap)
        return torch.autograd.grad(emits.stack().square().sum() + state.sum(), (x, *cell.parameters()))

    assert all(map(torch.equal, gradients(False), gradients(True)))


def test_threads_do_not_meet(program):
    cell, loop_fn = program
    expected = raw_rnn(cell, loop_fn)[0].stack()
    results = []
    threads = [threading.Thread(target=lambda: results.append(raw_rnn(cell, loop_fn)[0].stack())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(result, expected) for result in results)


def test_torch_func_grad_and_second_order(float64):
    cell = nn.GRUCell(D, H)
    x = torch.randn(T, B, D)

    def loss(x):
        emits, state, _ = raw_rnn(cell, reader(x, [len(x), 2, 0]))
        return emits.stack().square().sum() + state.sum()

    y = x.clone().requires_grad_()
    assert torch.allclose(torch.func.grad(loss)(x), torch.autograd.grad(loss(y), y)[0])
    assert torch.autograd.gradgradcheck(loss, (x[:2, :, :].clone().requires_grad_(),), atol=1e-6)


def test_autocast_reaches_the_cell():
    cell, x = nn.GRUCell(D, H), torch.randn(T, B, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        emits, _, _ = raw_rnn(cell, reader(x.bfloat16(), [5, 2, 0]))
        plain = cell(x.bfloat16()[0], torch.zeros(B, H, dtype=torch.bfloat16))
    assert emits.stack().dtype == plain.dtype
    assert torch.equal(emits.stack()[0, 0], plain[0])


def test_the_same_inputs_give_the_same_bits(program):
    a, b = raw_rnn(*program), raw_rnn(*program)
    assert torch.equal(a[0].stack(), b[0].stack())
    assert torch.equal(a[1], b[1])


def test_a_module_cell_runs_its_hooks(program):
    cell, loop_fn = program
    calls = []
    cell.register_forward_hook(lambda *_: calls.append(1))
    raw_rnn(cell, loop_fn)
    assert len(calls) == T


def test_the_result_has_names(program):
    result = raw_rnn(*program)
    assert result.emit_ta is result[0]
    assert result.final_state is result[1]
    assert result.final_loop_state is None
    assert len(result) == 3


def test_a_loop_that_emits_nothing_still_tells_its_lengths(program):
    cell, loop_fn = program
    silent = lambda *args: (*loop_fn(*args)[:3], (), None)  # noqa: E731
    result = raw_rnn(cell, silent, max_steps=3)
    assert result.emit_ta == ()
    assert result.lengths.tolist() == [3, 2, 0]
    assert result.truncated.tolist() == [True, False, False]


def test_inside_torch_compile_the_loop_runs_as_it_is():
    cell, x = nn.GRUCell(D, H), torch.randn(T, B, D)
    compiling = []

    def program(x):
        read = reader(x, [5, 2, 0])

        def loop_fn(*args):
            compiling.append(torch.compiler.is_compiling())
            return read(*args)

        return raw_rnn(cell, loop_fn)[0].stack() * 2

    with torch.no_grad():  # Dynamo warns about tensors with gradients that it meets after the graph break
        assert torch.equal(torch.compile(program, backend="eager")(x), program(x))
    assert compiling == [False] * 2 * (T + 1)


def test_inference_mode(program):
    with torch.inference_mode():
        assert raw_rnn(*program)[0].stack().is_inference()


def test_exported_names():
    assert set(fusedrnn.__all__) == {
        "AttentionWrapper", "AttentionWrapperState",
        "BahdanauAttention", "BasicRNNCell", "DropoutWrapper", "Explanation", "GRUCell", "LSTMCell", "Loop", "LuongAttention",
        "MultiRNNCell", "PlanError", "RNNCell", "ResidualWrapper", "TensorArray", "ZoneoutWrapper", "__version__",
        "bidirectional_dynamic_rnn", "checkpointed", "compile", "dynamic_decode", "dynamic_rnn",
        "explain", "fallbacks", "feedback", "nn", "quantize",
        "random", "raw_rnn",
    }  # fmt: skip
    assert all(hasattr(fusedrnn, name) for name in fusedrnn.__all__)
