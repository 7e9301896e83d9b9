"""The modules in torch.compile, torch.export, on fake and on meta tensors: one operator, with gradients."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import fusedrnn
from fusedrnn.nn.loops import Kind
from fusedrnn.nn.operator import decoded, encoded

from .pairs import KINDS, pair, results, state, tensors

T, B, D, H = 5, 3, 3, 4


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{"num_layers": 2}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"layer_norm": True}]
)
def test_one_graph_with_gradients(kind, options):
    module = getattr(fusedrnn.nn, kind)(D, H, **options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, hx = torch.randn(T, B, D), state(module, T if module.batch_first else B)
    made, gradients = results(compiled, x, hx)
    expected, wanted = results(module, x, hx)
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(gradients, wanted)


def test_lengths_and_resets_in_a_graph():
    module = fusedrnn.nn.GRU(D, H, bidirectional=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, lengths, reset = torch.randn(T, B, D), torch.tensor([5, 0, 2]), torch.rand(T, B) < 0.4
    made, gradients = results(compiled, x, None, lengths=lengths, reset=reset)
    expected, wanted = results(module, x, None, lengths=lengths, reset=reset)
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(gradients, wanted)


def test_one_graph_holds_for_other_sizes():
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph

    module = fusedrnn.nn.LSTM(D, H)
    compiled = torch.compile(module, fullgraph=True, backend=counted, dynamic=True)
    for steps, batch in ((5, 8), (7, 9), (2, 6)):  # sizes of their own, which dynamo takes for symbols of their own
        x = torch.randn(steps, batch, D)
        torch.testing.assert_close(compiled(x), module(x))
    assert len(graphs) == 1
    assert [node.target for node in graphs[0].graph.nodes if "fusedrnn" in str(node.target)] == [torch.ops.fusedrnn.rnn.default]


def test_only_a_part_may_need_gradients():
    module = fusedrnn.nn.LSTM(D, H)
    module.weight_ih_l0.requires_grad_(False)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(T, B, D)
    compiled(x)[1][1].sum().backward()
    mine = module.weight_hh_l0.grad
    module.weight_hh_l0.grad = None
    module(x)[1][1].sum().backward()
    torch.testing.assert_close(mine, module.weight_hh_l0.grad)
    assert module.weight_ih_l0.grad is None


def test_draws_in_a_graph():
    module = fusedrnn.nn.LSTM(D, 40, 2, dropout=0.3, zoneout=0.3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(T, B, D)
    made, gradients = results(compiled, x, None)  # results() sets the seed
    expected, wanted = results(module, x, None)
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(gradients, wanted)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])


def test_per_sample_gradients_in_a_graph():
    module = fusedrnn.nn.GRU(D, H, bidirectional=True)
    weights = dict(module.named_parameters())

    def loss(weights, x, length, reset):
        return functional_call(module, weights, (x,), {"lengths": length, "reset": reset})[0].square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 1, 0, 1))
    arguments = weights, torch.randn(3, B, D), torch.tensor([3, 0, 2]), torch.rand(3, B) < 0.4
    made = torch.compile(per_sample, fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(made, per_sample(*arguments))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # inductor's own
def test_inductor_compiles_around_it():
    module = fusedrnn.nn.LSTM(D, H, 2)

    def model(x, lengths):
        return module(x * 2, lengths=lengths)[0].relu().sum()

    compiled = torch.compile(model, fullgraph=True)
    x, lengths = torch.randn(T, B, D, requires_grad=True), torch.tensor([5, 1, 0])
    made, expected = compiled(x, lengths), model(x, lengths)
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(torch.autograd.grad(made, x), torch.autograd.grad(expected, x))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    module = fusedrnn.nn.GRU(D, H, 2).eval()
    lengths = torch.tensor([5, 2, 3])
    exported = torch.export.export(module, (torch.randn(T, B, D),), {"lengths": lengths}, strict=strict)
    x = torch.randn(T, B, D)
    torch.testing.assert_close(exported.module()(x, lengths=lengths), module(x, lengths=lengths))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_on_meta_and_fake_tensors(kind):
    theirs, ours = pair(kind, D, H, 2, bidirectional=True)
    x = torch.randn(T, B, D)
    shapes = [(tensor.shape, tensor.dtype) for tensor in tensors(theirs(x))]
    assert [(tensor.shape, tensor.dtype) for tensor in tensors(ours.to("meta")(x.to("meta")))] == shapes
    with FakeTensorMode():
        made = getattr(fusedrnn.nn, kind)(D, H, 2, bidirectional=True)(torch.empty(T, B, D))
    assert [(tensor.shape, tensor.dtype) for tensor in tensors(made)] == shapes


def test_make_fx():
    module = fusedrnn.nn.GRU(D, H).requires_grad_(False)
    graph = make_fx(lambda x: module(x)[0], tracing_mode="fake", _allow_non_fake_inputs=True)(torch.randn(T, B, D))
    x = torch.randn(T, B, D)
    torch.testing.assert_close(graph(x), module(x)[0])


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_opcheck(requires_grad, bidirectional):
    module = fusedrnn.nn.LSTM(D, H, bidirectional=bidirectional).requires_grad_(requires_grad)
    steps = 2 if bidirectional else 1
    kind = Kind("LSTM", H, module._names, steps, bidirectional, (0.0, 0.0), True, "reference")
    hx = [torch.zeros(steps, B, H), torch.zeros(steps, B, H)]
    weights = [weight for weights in module.all_weights for weight in weights]
    arguments = (torch.randn(T, B, D), torch.tensor([5, 0, 2]), torch.rand(T, B) < 0.4, hx, weights, None, encoded(kind))
    torch.library.opcheck(torch.ops.fusedrnn.rnn.default, arguments)


def test_kinds_are_written_as_words():
    kind = Kind("RNN_RELU", 7, ("weight_ih", "gain"), 3, False, (0.25, 1e-7), True, "auto")
    assert decoded(encoded(kind)) == kind


def test_graphs_of_torch_modules_around_it():
    model = nn.Sequential(nn.Linear(D, D), fusedrnn.nn.GRU(D, H, batch_first=True))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(B, T, D)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
