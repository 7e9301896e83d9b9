"""A compiled loop as one operator: in torch.compile, in torch.export, with gradients, and while a CUDA graph is captured."""

import gc

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import raw_rnn
from fusedrnn.feedback import greedy, sample, sequence
from fusedrnn.kernels import device, gpu
from fusedrnn.result import Result

T, B, D, H, V = 5, 3, 4, 6, 7


@pytest.fixture(params=["native", "persistent"])
def backend(request):
    if request.param == "persistent" and not gpu.EMULATED:
        pytest.skip("no kernel is emulated")
    return request.param


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


class Setting(nn.Module):
    """A module whose call is a loop over its buffers."""

    def __init__(self, backend="native", lengths=None, **keywords):
        super().__init__()
        self.cell = nn.LSTMCell(D, H)
        self.register_buffer("x", torch.randn(T, B, D))
        self.register_buffer("h", torch.randn(B, H))
        self.lengths = lengths
        self.loop_fn = sequence(self.x, lengths, (self.h, self.h))
        self.loop = fusedrnn.compile(self.cell, self.loop_fn, backend=backend, **keywords).warmup()

    def forward(self, x):
        self.x.copy_(x)
        result = self.loop()
        return result.emit_ta.stack(), result.final_state, result.lengths, result.truncated

    def arguments(self):
        """What a compiled graph calls the operator with."""
        ready = self.loop._ready
        return ready.bind(self.loop._call.cell, self.loop_fn), None, ready.operand.key


def expected(setting, x):
    setting.x.copy_(x)
    result = raw_rnn(setting.cell, setting.loop_fn, backend="reference")
    return result.emit_ta.stack(), result.final_state, result.lengths, result.truncated


RAGGED = torch.tensor([2, 0, 4])


@torch.no_grad()
@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["whole", "ragged"])
def test_one_graph(backend, lengths):
    s = Setting(backend, lengths)
    compiled = torch.compile(s, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(T, B, D)
        torch.testing.assert_close(compiled(x), expected(s, x))
    torch._dynamo.reset()
    explained = torch._dynamo.explain(s)(x)
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["whole", "ragged"])
def test_inductor_compiles_around_it(lengths):
    s = Setting(lengths=lengths)
    compiled = torch.compile(lambda x: [leaf * 2 for leaf in s(x * 2)[:1]], fullgraph=True)
    for _ in range(2):
        x = torch.randn(T, B, D)
        torch.testing.assert_close(compiled(x)[0], expected(s, x * 2)[0] * 2)


@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["whole", "ragged"])
def test_gradients_go_through_it(lengths):
    s = Setting(lengths=lengths)
    s.h.requires_grad_()
    s.loop.warmup()
    wanted = [*s.cell.parameters(), s.h]

    def gradients(result):
        return torch.autograd.grad(result.emit_ta.stack().square().sum() + result.final_state[1].sum(), wanted)

    compiled = torch.compile(lambda: s.loop(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled()), gradients(raw_rnn(s.cell, s.loop_fn, backend="reference")))


def test_gradients_of_tokens_reach_their_embedding():
    cell, embedding, project, h = nn.GRUCell(D, H), nn.Embedding(V, D), nn.Linear(H, V), torch.randn(B, H)
    decode = greedy(embedding, project, 0, None, h, T)
    loop = fusedrnn.compile(cell, decode, backend="native").warmup()
    wanted = [*cell.parameters(), *embedding.parameters()]
    compiled = torch.compile(lambda: loop(), fullgraph=True, backend="aot_eager")
    mine = torch.autograd.grad(compiled().final_state.square().sum(), wanted)
    reference = torch.autograd.grad(raw_rnn(cell, decode, backend="reference").final_state.square().sum(), wanted)
    torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["whole", "ragged"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(backend, lengths, requires_grad):
    s = Setting(backend, lengths)
    s.requires_grad_(requires_grad)
    s.loop.warmup()
    torch.library.opcheck(torch.ops.fusedrnn.loop.default, s.arguments())


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["whole", "ragged"])
def test_export(strict, lengths):
    s = Setting(lengths=lengths)
    exported = torch.export.export(s, (torch.randn(T, B, D),), strict=strict)
    assert [node.target for node in exported.graph.nodes if "fusedrnn" in str(node.target)] == [torch.ops.fusedrnn.loop.default]
    x = torch.randn(T, B, D)
    torch.testing.assert_close(exported.module()(x), expected(s, x))


@torch.no_grad()
def test_the_result_itself_may_leave_the_graph(backend):
    s = Setting(backend)
    result = torch.compile(lambda: s.loop(), fullgraph=True, backend="eager")()
    assert isinstance(result, Result)
    assert result.executor == backend
    assert len(result.emit_ta) == T
    torch.testing.assert_close(result.emit_ta.stack(), expected(s, s.x)[0])


@torch.no_grad()
def test_the_number_of_steps_is_a_size_where_it_depends_on_sizes_alone(backend):
    for lengths, most, steps in ((None, None, T), (None, 2, 2), (None, 9, T), (RAGGED, None, None), (None, 0, 0)):
        s = Setting(backend, lengths, max_steps=most)
        if s.loop._ready is not None:  # else there is no step to prepare
            assert s.loop._ready.operand.steps(s.arguments()[0]) == steps
        got = torch.compile(lambda s=s: s.loop().emit_ta.stack(), backend="aot_eager")()
        assert len(got) == (4 if steps is None else steps)


@torch.no_grad()
def test_draws_follow_the_generator():
    cell, embedding, project, h = nn.GRUCell(D, H), nn.Embedding(V, D), nn.Linear(H, V), torch.randn(B, H)
    decode = sample(embedding, project, 0, None, h, 2 * T)
    loop = fusedrnn.compile(cell, decode, backend="native").warmup()
    compiled = torch.compile(lambda: loop().emit_ta.stack(), fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    first, second = compiled(), compiled()
    torch.manual_seed(1)
    assert compiled().equal(first)
    assert not first.equal(second)
    torch.manual_seed(1)
    assert raw_rnn(cell, decode, backend="reference").emit_ta.stack().equal(first)


@torch.no_grad()
def test_autocast_is_that_of_the_preparation(backend):
    if backend == "persistent":
        pytest.skip("half precision is not emulated under autocast")
    s = Setting(backend)
    with torch.autocast("cpu", torch.bfloat16):
        s.loop.warmup()
        want = s.loop().emit_ta.stack()
        compiled = torch.compile(lambda: s.loop().emit_ta.stack(), fullgraph=True, backend="aot_eager")
        assert compiled().equal(want)
    assert not want.equal(expected(s, s.x)[0])
    with pytest.raises(torch._dynamo.exc.Unsupported, match="call its warmup"):
        compiled()
    assert torch.ops.fusedrnn.loop(*s.arguments())[0].equal(want)  # whatever the settings are where it runs


@torch.no_grad()
def test_what_is_not_prepared_breaks_the_graph_and_says_so():
    s = Setting()
    loop = fusedrnn.compile(s.cell, s.loop_fn, backend="stepwise").warmup()
    assert torch.compile(lambda: loop().emit_ta.stack(), backend="eager")().equal(loop().emit_ta.stack())
    with pytest.raises(torch._dynamo.exc.Unsupported, match="call its warmup"):
        torch.compile(lambda: loop().emit_ta.stack(), fullgraph=True, backend="eager")()


@torch.no_grad()
def test_a_read_past_the_end_raises(backend):
    cell, x, h, lengths = nn.GRUCell(D, H), torch.randn(T, B, D), torch.zeros(B, H), torch.full((B,), T)

    def loop_fn(time, output, state, _):
        return time >= lengths, x[time], h if output is None else state, output, None

    loop = fusedrnn.compile(cell, loop_fn, backend=backend).warmup()
    compiled = torch.compile(lambda: loop().emit_ta.stack(), fullgraph=True, backend="aot_eager")
    assert len(compiled()) == T
    lengths.add_(1)
    with pytest.raises(IndexError, match="past the end"):
        compiled()


@torch.no_grad()
def test_a_loop_that_is_gone_is_named():
    s = Setting()
    tensors, _, key = s.arguments()
    del s
    gc.collect()
    with pytest.raises(RuntimeError, match="is gone"):
        torch.ops.fusedrnn.loop(tensors, None, key)


@torch.no_grad()
def test_results_share_no_memory_with_what_the_loop_reads(backend):
    h = torch.randn(B, H)

    def loop_fn(time, output, state, loop_state):
        return time >= 2, h, h if output is None else state, output, h if output is None else None

    loop = fusedrnn.compile(nn.GRUCell(H, H), loop_fn, backend=backend).warmup()
    result = torch.compile(lambda: loop(), fullgraph=True, backend="aot_eager")()
    before = h.clone()
    h.zero_()
    assert result.final_loop_state.equal(before)


# There is no CUDA graph here: what is done while one is captured is shown on emulated kernels.


@pytest.fixture
def _recording(monkeypatch):
    monkeypatch.setattr(device, "is_recording", lambda device: True)


@torch.no_grad()
@pytest.mark.usefixtures("_recording")
def test_a_recording_holds_all_steps(backend):
    s = Setting(backend)
    result = s.loop()
    torch.testing.assert_close(result.emit_ta.stack(), expected_emits(s))


@torch.no_grad()
@pytest.mark.usefixtures("_recording")
def test_a_recording_refuses_what_a_replay_would_not_follow(backend):
    with pytest.raises(RuntimeError, match="depends on its data"):
        Setting(backend, RAGGED).loop()
    cell, embedding, project, h = nn.GRUCell(D, H), nn.Embedding(V, D), nn.Linear(H, V), torch.randn(B, H)
    loop = fusedrnn.compile(cell, sample(embedding, project, 0, None, h, T), backend="native").warmup()
    with pytest.raises(RuntimeError, match="draws at random"):
        loop()


@torch.no_grad()
@pytest.mark.usefixtures("_recording")
def test_a_recording_needs_a_prepared_loop(backend):
    s = Setting(backend)
    with pytest.raises(fusedrnn.PlanError, match="a CUDA graph is being captured"):
        raw_rnn(s.cell, s.loop_fn, backend=backend)


def expected_emits(setting):
    result = raw_rnn(setting.cell, setting.loop_fn, backend="reference")
    return result.emit_ta.stack()


@torch.no_grad()
@pytest.mark.skipif(not gpu.EMULATED, reason="no kernel is emulated")
def test_a_fault_of_a_launch_that_nobody_waits_for_is_asserted():
    s = Setting("persistent")
    tensors = s.arguments()[0]
    bound = s.loop._ready.warm.bound(s.loop._call, tensors)
    launched = bound.launch()
    torch.testing.assert_close(launched.end_after(T).made["emit", 0], expected_emits(s))
    launched._error.fill_(1)
    with pytest.raises(RuntimeError, match="a persistent kernel failed"):
        launched.end_after(T)
