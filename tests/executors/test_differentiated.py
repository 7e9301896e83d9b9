"""Gradients of compiled loops, against `reference`: their backward is a compiled loop."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import feedback, memory, trees
from fusedrnn.capture import cache
from fusedrnn.executors import differentiated, stepwise
from fusedrnn.kernels import gpu

B, T, D, H, V = 4, 6, 3, 5, 11
ENDS = (6, 2, 0, 3)
EXECUTORS = ["native", pytest.param("persistent", marks=pytest.mark.skipif(not gpu.EMULATED, reason="Triton does not interpret here"))]


def floats(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def reading(cell, state, lengths=ENDS, x=None):
    """A loop that reads ``x``, with a count in loop_state, and all that it depends on."""
    x, ends = floats(T, len(lengths), D) if x is None else x, torch.tensor(lengths)

    def loop_fn(time, output, old, carried):
        total = torch.zeros((), dtype=torch.int64) if output is None else carried
        return time >= ends, x[time], state if output is None else old, output, total + 1

    return cell, loop_fn, [x, *trees.leaves(state), *cell.parameters()]


def of_cell(make):
    torch.manual_seed(1)
    cell = make()
    states = [floats(B, H, seed=place + 1) for place in range(2 if isinstance(cell, (fusedrnn.LSTMCell, nn.LSTMCell)) else 1)]
    return reading(cell, tuple(states) if len(states) > 1 else states[0])


def decoding():
    """Greedy feedback that emits its logits."""
    torch.manual_seed(1)
    cell, table, project, h = nn.GRUCell(D, H), nn.Embedding(V, D), nn.Linear(H, V), floats(B, H)

    def loop_fn(time, output, state, _):
        if output is None:
            return torch.zeros(B, dtype=torch.bool), table(torch.zeros(B, dtype=torch.int64)), h, torch.zeros(V), None
        logits = project(output)
        return time >= torch.tensor([4, 1, 2, 3]), table(logits.argmax(-1)), state, logits, None

    return cell, loop_fn, [h, *cell.parameters(), *table.parameters(), *project.parameters()]


def forcing():
    torch.manual_seed(1)
    cell, table, project, h = fusedrnn.LSTMCell(D, H), nn.Embedding(V, D), nn.Linear(H, V), (floats(B, H), floats(B, H, seed=1))
    targets = torch.randint(V, (T, B))
    loop_fn = feedback.teacher_forcing(table, project, targets, torch.tensor([6, 2, 1, 3]), 0, h)
    return cell, loop_fn, [*h, *cell.parameters(), *table.parameters(), *project.parameters()]


def attending(mechanism):
    torch.manual_seed(1)
    wrapper = fusedrnn.AttentionWrapper(nn.GRUCell(D + H, H), mechanism(), attention_size=H)
    remembered = floats(B, 9, 7)
    bound = wrapper.bind(remembered, torch.tensor([9, 4, 1, 5]))
    cell, loop_fn, sources = reading(bound, bound.zero_state())
    return cell, loop_fn, [remembered, sources[0], *wrapper.parameters()]


LOOPS = {
    "lstm": lambda: of_cell(lambda: fusedrnn.LSTMCell(D, H)),
    "gru": lambda: of_cell(lambda: nn.GRUCell(D, H)),
    "gru before": lambda: of_cell(lambda: fusedrnn.GRUCell(D, H, reset_after=False)),
    "rnn": lambda: of_cell(lambda: nn.RNNCell(D, H)),
    "layer norm": lambda: of_cell(lambda: fusedrnn.LSTMCell(D, H, layer_norm=True)),
    "peepholes": lambda: of_cell(lambda: fusedrnn.LSTMCell(D, H, use_peepholes=True)),
    "dropout": lambda: of_cell(lambda: fusedrnn.DropoutWrapper(nn.GRUCell(D, H), output_dropout=0.5, seed=3)),
    "decoding": decoding,
    "forcing": forcing,
    "bahdanau": lambda: attending(lambda: fusedrnn.BahdanauAttention(H, 7, units=8)),
    "luong": lambda: attending(lambda: fusedrnn.LuongAttention(H, 7)),
}  # fmt: skip


def loss_of(result):
    leaves = [emit.stack() for emit in trees.leaves(result.emit_ta)] + trees.leaves(result.final_state)
    return sum((leaf.sin() * (place + 1)).sum() for place, leaf in enumerate(leaves) if leaf.is_floating_point())


def gradients(loop, backend, loss=loss_of):
    cell, loop_fn, sources = loop
    result = fusedrnn.raw_rnn(cell, loop_fn, backend=backend)
    assert result.executor == backend
    found = torch.autograd.grad(loss(result), sources, allow_unused=True, retain_graph=True)  # a memory is projected once
    return [torch.zeros_like(source) if grad is None else grad for source, grad in zip(sources, found, strict=True)]


def assert_close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture
def never_step_by_step(monkeypatch):
    def steps(*arguments):
        raise AssertionError("the loop ran step by step")

    monkeypatch.setattr(stepwise, "steps", steps)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_gradients(executor, name, never_step_by_step):
    loop, before = LOOPS[name](), fusedrnn.fallbacks()
    assert_close(gradients(loop, executor), gradients(loop, "reference"))
    assert fusedrnn.fallbacks() == before


@pytest.mark.parametrize("executor", EXECUTORS)
def test_twice_the_same_bits(executor):
    cell, loop_fn, sources = LOOPS["lstm"]()
    loss = loss_of(fusedrnn.raw_rnn(cell, loop_fn, backend=executor))
    one, other = (torch.autograd.grad(loss, sources, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("result", ["state", "emits"])
def test_gradients_of_one_result_alone(result, never_step_by_step):
    loop = LOOPS["gru"]()
    only = {"state": lambda r: r.final_state.square().sum(), "emits": lambda r: r.emit_ta.stack().square().sum()}[result]
    assert_close(gradients(loop, "native", only), gradients(loop, "reference", only))


def test_gradients_of_some_sources_alone(never_step_by_step):
    cell, loop_fn, sources = LOOPS["gru"]()
    for source in sources[1:]:
        source.requires_grad_(False)
    assert_close(gradients((cell, loop_fn, sources[:1]), "native"), gradients((cell, loop_fn, sources[:1]), "reference"))


def test_padding_that_is_not_finite(never_step_by_step):
    x = floats(T, B, D).detach()
    for row, end in enumerate(ENDS):
        x[end:, row] = torch.nan
    torch.manual_seed(1)
    loop = reading(nn.LSTMCell(D, H), (floats(B, H), floats(B, H, seed=1)), x=x.requires_grad_())
    found = gradients(loop, "native")
    assert all(grad.isfinite().all() for grad in found)
    assert_close(found, gradients(loop, "reference"))


def test_gradients_of_gradients():
    def second(backend):
        cell, loop_fn, sources = LOOPS["rnn"]()
        first = torch.autograd.grad(loss_of(fusedrnn.raw_rnn(cell, loop_fn, backend=backend)), sources, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), sources)

    assert_close(second("native"), second("reference"))


def test_a_change_in_place_between_forward_and_backward_is_an_error():
    cell, loop_fn, sources = LOOPS["gru"]()
    loss = loss_of(fusedrnn.raw_rnn(cell, loop_fn, backend="native"))
    with torch.no_grad():
        sources[2].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_stays_alive():
    cell, loop_fn, _ = LOOPS["gru"]()
    gc.collect()
    gc.disable()
    try:
        result = fusedrnn.raw_rnn(cell, loop_fn, backend="native")
        loss = loss_of(result)
        seen = weakref.ref(result.final_state)
        loss.backward()
        del result, loss
        assert seen() is None
    finally:
        gc.enable()


def test_what_would_not_fit_is_made_again(monkeypatch, never_step_by_step):
    loop = LOOPS["lstm"]()
    wanted = gradients(loop, "reference")
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    made, derived = [], differentiated.derived
    monkeypatch.setattr(differentiated, "derived", lambda *arguments, **options: made.append(derived(*arguments, **options)) or made[-1])
    assert_close(gradients(loop, "native"), wanted)
    assert [one.forward.kept.again for one in made] == [False, True]


def test_what_cannot_be_derived_runs_step_by_step_and_says_so(monkeypatch):
    """No derivative is known of it to torch: here a fault stands for that."""

    def fail(core):
        raise NotImplementedError("no derivative\nof this")

    cache.clear()
    loop, before = LOOPS["rnn"](), fusedrnn.fallbacks()
    wanted = gradients(loop, "reference")
    monkeypatch.setattr("fusedrnn.derivative.forward.joint", fail)
    assert_close(gradients(loop, "native"), wanted)
    (reason,) = set(fusedrnn.fallbacks()) - set(before)
    assert "torch has no derivative of the step: no derivative" in reason
    cache.clear()


def test_autocast():
    """The casts are in the program; the backward runs outside."""

    def found(backend):
        cell, loop_fn, sources = LOOPS["lstm"]()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(fusedrnn.raw_rnn(cell, loop_fn, backend=backend))
        return torch.autograd.grad(loss, sources)

    for one, other in zip(found("native"), found("reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


def test_in_another_thread():
    loop, found = LOOPS["gru"](), []
    thread = threading.Thread(target=lambda: found.append(gradients(loop, "native")))
    thread.start()
    thread.join()
    assert_close(found[0], gradients(loop, "reference"))


def test_auto_compiles_a_loop_that_is_trained(monkeypatch):
    """Once it has cost as much step by step as compiling it would."""
    monkeypatch.setenv("FUSEDRNN_BACKEND", "auto")
    monkeypatch.setattr("fusedrnn.executors.captured._COMPILING", 0.0)
    cache.clear()
    cell, loop_fn, _ = LOOPS["gru"]()
    ran = [fusedrnn.raw_rnn(cell, loop_fn).executor for _ in range(2)]
    assert ran == ["stepwise", "native"]
    cache.clear()


def of_step(step, *sources, ends=ENDS, x=None):
    """A loop of a plain cell whose loop_fn makes ``next_input, emit = step(time, output, x)``."""
    torch.manual_seed(1)
    cell, h, ends = nn.GRUCell(D, H), floats(B, H), torch.tensor(ends)
    x = floats(T + 1, B, D) if x is None else x

    def loop_fn(time, output, state, _):
        inputs, emit = step(time, h if output is None else output, x)
        return time >= ends, inputs, h if output is None else state, emit[0] if output is None else emit, None

    return cell, loop_fn, [h, *sources, *cell.parameters()]


def test_a_tensor_that_all_rows_share_has_no_gradient_of_finished_ones(never_step_by_step):
    """It is read or used anew at each step, and summed over the rows inside of it."""
    places, scale = floats(T + 1, D), floats(D, seed=1)
    loop = of_step(lambda time, output, x: (x[time] + places[time] * torch.sin(scale * time), output * scale.sum()), places, scale)
    assert_close(gradients(loop, "native"), gradients(loop, "reference"))


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_of_one_head_of_two(which):
    actor, critic = nn.Linear(H, 2), nn.Linear(H, 1)

    def step(time, output, x):
        return x[time], torch.cat([actor(output), critic(output)], 1)

    loop = of_step(step, *actor.parameters(), *critic.parameters())
    only = lambda result: result.emit_ta.stack()[..., 2 * which :].square().sum()  # noqa: E731
    assert_close(gradients(loop, "native", only), gradients(loop, "reference", only))


def test_emits_without_a_gradient_behind_a_product(never_step_by_step):
    project = nn.Linear(H, 2)
    loop = of_step(lambda time, output, x: (x[time], project(output)), *project.parameters())
    only = lambda result: result.final_state.square().sum()  # noqa: E731
    assert_close(gradients(loop, "native", only), gradients(loop, "reference", only))


def test_padding_of_an_embedding_has_no_gradient(never_step_by_step):
    table = nn.Embedding(V, D, padding_idx=2)
    tokens = torch.randint(4, (T + 1, B), generator=torch.Generator().manual_seed(0))
    loop = of_step(lambda time, output, x: (table(tokens[time]), output), table.weight)
    found = gradients(loop, "native")
    assert not found[1][2].any()
    assert_close(found, gradients(loop, "reference"))


def test_a_next_input_that_no_step_takes(never_step_by_step):
    """It is made of what lies behind the end of the longest row."""
    x, w = floats(T + 1, B, D).detach(), floats(D, D)
    x[max(ENDS) :] = torch.nan
    loop = of_step(lambda time, output, x: (x[time] @ w, output), w, x=x)
    found = gradients(loop, "native")
    assert all(grad.isfinite().all() for grad in found)
    assert_close(found, gradients(loop, "reference"))
    with fusedrnn.checkpointed(2):
        assert_close(gradients(loop, "native"), found)


def test_a_result_may_be_changed_in_place():
    cell, loop_fn, sources = of_step(lambda time, output, x: (x[time], output), ends=(3, 2, 0, 1))
    found = []
    for backend in ("native", "reference"):
        outputs = fusedrnn.raw_rnn(cell, loop_fn, backend=backend).emit_ta.stack()
        found.append(torch.autograd.grad(outputs.mul_(2).square().sum(), sources))
    assert_close(*found)


def test_loops_upon_loops_leave_nothing_behind():
    """The second closes over a name that then holds its result."""

    def run():
        x = floats(T, B, H)
        for layer in range(2):
            torch.manual_seed(layer)
            cell = nn.GRUCell(H, H)

            def loop_fn(time, output, state, _):
                return time >= T, x[time], torch.zeros(B, H) if output is None else state, output, None  # noqa: B023

            x = fusedrnn.raw_rnn(cell, loop_fn, backend="native").emit_ta.stack()
        return weakref.ref(x.grad_fn)

    seen = run()
    gc.collect()
    assert seen() is None


def test_what_is_kept_is_unpacked_once():
    cell, loop_fn, _ = LOOPS["gru"]()
    packed, unpacked = [], []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: packed.append(1) or one, lambda one: unpacked.append(1) or one):
        result = fusedrnn.raw_rnn(cell, loop_fn, backend="native")
    result.final_state.sum().backward()
    assert len(unpacked) == len(packed) > 0


def test_swapped_memory():
    cell, loop_fn, sources = LOOPS["lstm"]()
    found = [
        torch.autograd.grad(loss_of(fusedrnn.raw_rnn(cell, loop_fn, swap_memory=swap, backend="native")), sources) for swap in (True, False)
    ]
    assert all(map(torch.equal, *found))
