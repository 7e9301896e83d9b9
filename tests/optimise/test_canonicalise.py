"""Products in one form: what becomes of each kind of product, and that the values stay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedrnn
from fusedrnn.optimise.canonicalise import (
    canonicalise,
    products_from_addmm,
    products_from_bmm,
    products_of_concatenations,
    products_of_slices,
    products_of_transposes,
)
from fusedrnn.optimise.graph import aten, value
from fusedrnn.optimise.products import depends_on
from fusedrnn.optimise.simplify import dead_code, simplify

from .graphs import Checked, Foreign, captured, closed_over, kinds, placeholders, traced

ALL = (products_from_addmm, products_from_bmm, products_of_concatenations, products_of_slices)
SPREAD = {"sym_size", "mul", "view", "reshape", "t", "unsqueeze", "squeeze", "permute", "slice", "mm", "add"}


def with_sweep(transform):
    return lambda graph: transform(graph) + dead_code(graph)


@pytest.mark.parametrize("transform", ALL)
def test_nothing_to_do(transform):
    module = traced(lambda x, w: (x.sin() @ w)[1:] + x.sum(), ("B", 3), (3, 4))
    assert Checked(module).after(transform) == 0
    assert products_of_transposes(module.graph, set(placeholders(module.graph)[1:])) == 0


ADDMM = {
    "bias": lambda b, x, w: torch.addmm(b, x, w),
    "scales": lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=3),
    "unread": lambda b, x, w: torch.addmm(b * torch.nan, x, w, beta=0),
    "linear": lambda b, x, w: aten.linear(x, w.t(), b),
    "linear_3d": lambda b, x, w: aten.linear(x[None], w.t(), b),
    "addmv": lambda b, x, w: torch.addmv(b, w.t(), x[0]),
    "baddbmm": lambda b, x, w: torch.baddbmm(b.expand(x.shape[0], 1, 4), x[:, None], w.expand(x.shape[0], 3, 4)),
}


@pytest.mark.parametrize("name", ADDMM)
def test_addmm(name):
    checked = Checked(traced(ADDMM[name], (4,), ("B", 3), (3, 4)))
    assert checked.after(products_from_addmm) or name.startswith("linear")  # which torch takes apart itself
    checked.after(with_sweep(lambda graph: products_from_bmm(graph) + simplify(graph)))
    found = kinds(checked.graph)
    assert set(found) <= SPREAD | {"select", "expand"}
    assert found["mm"] == 1
    assert found["add"] == (name != "unread")


def test_linear_as_one_operator():
    module = traced(lambda x, w, b: aten.addmm(b, x, w.t()), ("B", 3), (4, 3), (4,))
    addmm = next(node for node in module.graph.nodes if node.target is aten.addmm.default)
    bias, x, weight = addmm.args[0], addmm.args[1], addmm.args[2].args[0]
    checked = Checked(module)
    addmm.target, addmm.args = aten.linear.default, (x, weight, bias)
    assert checked.after(products_from_addmm) == 1
    assert kinds(module.graph)["mm"] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    module = traced(lambda b, x, w: torch.addmm(b, torch.cat([x, x], 1), w), (4,), ("B", 3), (6, 4), dtypes=[dtype] * 3)
    assert products_from_addmm(module.graph) == 0
    module = traced(lambda x, w: torch.cat([x, x], 1) @ w, ("B", 3), (6, 4), dtypes=[dtype] * 2)
    assert products_of_concatenations(module.graph) == 0


BMM = {
    "expanded": (lambda x, w: torch.bmm(x.view(-1, 2, 3), w.expand(x.shape[0], 3, 4)), 1),
    "copied": (lambda x, w: torch.bmm(x.view(-1, 2, 3), w.expand(x.shape[0], 3, 4).clone(memory_format=torch.contiguous_format)), 1),
    "unsqueezed": (lambda x, w: torch.bmm(x.view(-1, 2, 3), w[None].expand(x.shape[0], 3, 4)), 1),
    "transposed": (lambda x, w: torch.bmm(x.view(-1, 2, 3), w.t().contiguous().expand(x.shape[0], 4, 3).transpose(1, 2)), 1),
    "permuted": (lambda x, w: torch.bmm(x.view(-1, 2, 3), w.t().expand(x.shape[0], 4, 3).permute(0, 2, 1)), 1),
    "two_batches": (lambda x, w: torch.matmul(x.view(-1, 2, 1, 3), w.expand(2, 3, 4)), 1),
    "one": (lambda x, w: torch.bmm(x[None], w[None]), 1),
    "matmul": (lambda x, w: torch.matmul(x.view(-1, 2, 3), w), 1),
    "einsum": (lambda x, w: torch.einsum("bsk,kn->bsn", x.view(-1, 2, 3), w), 1),
    "left": (lambda x, w: torch.bmm(w.t().expand(x.shape[0], 4, 3), x.view(-1, 3, 2)), 1),
    "column": (lambda x, w: (w.t() @ x.view(-1, 3, 2)[:, :, :1]).squeeze(-1), 1),
    "mv": (lambda x, w: torch.mv(x[:, :3], w[:, 0]), 1),
    "matmul_mv": (lambda x, w: x.view(-1, 2, 3) @ w[:, 0], 1),
    "dot": (lambda x, w: torch.dot(x[0, :4], w[0]), 1),
    "batched": (lambda x, w: torch.bmm(x.view(-1, 2, 3), x.view(-1, 3, 2)), 0),
    "batches_differ": (lambda x, w: torch.bmm(x.view(-1, 2, 3)[:, :1], x.view(-1, 3, 2).permute(0, 1, 2)), 0),
}


@pytest.mark.parametrize("name", BMM)
def test_bmm(name):
    function, products = BMM[name]
    checked = Checked(traced(function, ("B", 3 if name == "one" else 6), (3, 4)))
    changes = checked.after(lambda graph: products_from_bmm(graph) + simplify(graph))
    found = kinds(checked.graph)
    assert changes or name in ("matmul", "einsum", "batched")
    assert found["mm"] == products
    assert not {"mv", "dot", "expand", "clone"} & set(found)
    assert found["bmm"] == 1 - products


CONCATENATIONS = {
    "two": (lambda x, y, w: torch.cat([x, y], 1) @ w, 2),
    "three": (lambda x, y, w: torch.cat([x, y[:, :1], y[:, 1:]], -1) @ w, 3),
    "empty_part": (lambda x, y, w: torch.cat([x, y[:, :0], y], 1) @ w, 2),
    "turned": (lambda x, y, w: torch.cat([x.t(), y.t()], 0).t() @ w, 2),
    "flat": (lambda x, y, w: torch.cat([x.view(-1, 1, 3).expand(-1, 2, -1), y.view(-1, 1, 2).expand(-1, 2, -1)], 2) @ w, 2),
}


@pytest.mark.parametrize("name", CONCATENATIONS)
def test_concatenations(name):
    function, products = CONCATENATIONS[name]
    checked = Checked(traced(function, ("B", 3), ("B", 2), (5, 4)))
    checked.after(simplify)
    assert checked.after(with_sweep(products_of_concatenations)) >= 1
    found = kinds(checked.graph)
    assert (found["mm"], found["cat"], found["add"]) == (products, 0, products - 1)


@pytest.mark.parametrize("function", [
    lambda x, y, w: torch.cat([x, x], 0)[:, :2] @ w[:2],
    lambda x, y, w: torch.cat([w, w], 0).t() @ torch.ones(10, 2, dtype=torch.float64),
])  # fmt: skip
def test_other_concatenations(function):
    module = traced(function, ("B", 3), ("B", 2), (5, 4))
    checked = Checked(module)
    changes = checked.after(products_of_concatenations)
    assert changes == kinds(module.graph)["add"]


SLICES = {
    "chunks": (lambda x, w, b: (x @ w).chunk(3, 1), 3),
    "narrow": (lambda x, w, b: [(x @ w).narrow(1, 2, 2)], 1),
    "bias": (lambda x, w, b: (x @ w + b).chunk(2, 1), 2),
    "bias_first": (lambda x, w, b: (b - x @ w).split([1, 5], 1), 2),
    "scaled": (lambda x, w, b: torch.add(x @ w, b, alpha=2).chunk(2, 1), 2),
    "number": (lambda x, w, b: (x @ w + 1).chunk(2, 1), 2),
    "row_bias": (lambda x, w, b: (x @ w + b[None]).chunk(2, 1), 2),
    "column_bias": (lambda x, w, b: (x @ w + x.sum(1, True)).chunk(2, 1), 2),
    "two_products": (lambda x, w, b: (x @ w + b + (x.sin() @ w - b)).chunk(3, 1), 6),
    "and_no_product": (lambda x, w, b: (x @ w + torch.cat([x, x], 1)).chunk(3, 1), 3),
    "gates": (lambda x, w, b: (x @ w + b).view(-1, 3, 2).unbind(1), 3),
    "whole_used": (lambda x, w, b: [(x @ w)[:, :2], (x @ w).sin()], 1),
    "rows": (lambda x, w, b: [(x @ w)[1:]], 1),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices(name):
    function, products = SLICES[name]
    checked = Checked(traced(lambda *arguments: [piece * 2 for piece in function(*arguments)], ("B", 3), (3, 6), (6,)))
    checked.after(simplify)
    changes = checked.after(with_sweep(products_of_slices))
    assert bool(changes) == (name not in ("whole_used", "rows"))
    assert kinds(checked.graph)["mm"] == products
    mine = {node for node in checked.graph.nodes if node.target is aten.slice.Tensor} if changes and name != "and_no_product" else set()
    assert all(value(node.args[0]).shape in (torch.Size([3, 6]), torch.Size([6]), torch.Size([1, 6])) for node in mine)


TRANSPOSES = {
    "carried": (lambda x, w: (w @ x.t()).t(), (0,), {"mm": 1, "t": 1}),
    "vector": (lambda x, w: w @ x[0], (0,), {"mm": 1}),
    "rows_are_symbols": (lambda x, w: (w @ x.t()).t(), (), {"mm": 1, "t": 1}),
    "good": (lambda x, w: x @ w.t(), (0,), {"mm": 1, "t": 1}),
    "both": (lambda x, w: x.t() @ x, (0,), {"mm": 1, "t": 1}),
    "chain": (lambda x, w: (w[:, :4] @ (w @ x.t())).t(), (0,), {"mm": 2, "t": 2}),
    "weight_of_symbols": (lambda x, w: w @ x.t() @ x, (0,), {"mm": 2}),
}


@pytest.mark.parametrize("name", TRANSPOSES)
def test_transposes(name):
    function, carried, expected = TRANSPOSES[name]
    module = traced(function, ("B", 5), (4, 5))
    checked = Checked(module)
    weights = {node for place, node in enumerate(placeholders(module.graph)) if place not in carried}
    checked.after(simplify)
    checked.after(lambda graph: canonicalise(graph, weights))
    found = kinds(module.graph)
    assert {kind: found[kind] for kind in expected} == expected
    closed = set(module.graph.nodes) - depends_on(module.graph, set(placeholders(module.graph)) - weights)
    for node in module.graph.nodes:
        if node.target is aten.mm.default and carried:
            left, right = node.args
            assert left not in closed or right in closed


def test_depends_on():
    module = traced(lambda x, y: [x.sin() + 1, y * x.shape[0], x + y], ("B", 3), (1, 3))
    x, y = placeholders(module.graph)
    names = {str(node.target) for node in depends_on(module.graph, {x})}
    assert "aten.sin.default" in names
    assert "aten.mul.Tensor" not in names
    assert depends_on(module.graph, set()) == set()
    assert {x, y} <= depends_on(module.graph, [x, y])


W = {"cat": (8, 5), "transposed": (5, 5), "gates": (5, 20), "memory": (4, 9, 7), "keys": (7, 5), "query": (5,)}


def cells():
    w = {name: torch.randn(shape) for name, shape in W.items()}
    two = (torch.zeros(4, 5), torch.zeros(4, 5))

    def cat(inputs, state):
        new = torch.tanh(torch.cat([inputs, state], 1) @ w["cat"] + w["query"])
        return new, new

    def transposed(inputs, state):
        new = torch.tanh((w["transposed"] @ state.T).T + inputs.sum(1, keepdim=True))
        return new, new

    def batched(inputs, state):
        new = torch.tanh((w["transposed"] @ state.unsqueeze(-1)).squeeze(-1) + inputs.sum(1, keepdim=True))
        return new, new

    def gates(inputs, state):
        a, b, c, d = (state @ w["gates"]).chunk(4, 1)
        new = torch.tanh(a + b * c - d) + inputs.sum(1, keepdim=True)
        return new, new

    def attention(inputs, state):
        keys = torch.matmul(w["memory"], w["keys"])
        scores = torch.softmax(torch.tanh(keys + state[:, None]) @ w["query"], -1)
        new = torch.tanh(state + torch.einsum("bt,btk->bk", scores, w["memory"]) @ w["keys"] + inputs.sum(1, True))
        return new, new

    return {
        "torch_lstm": (torch.nn.LSTMCell(3, 5), two), "torch_gru": (torch.nn.GRUCell(3, 5), None),
        "torch_rnn": (torch.nn.RNNCell(3, 5), None),
        "lstm": (fusedrnn.LSTMCell(3, 5), two), "gru": (fusedrnn.GRUCell(3, 5), None),
        "projected": (fusedrnn.LSTMCell(3, 5, use_peepholes=True, num_proj=2), (torch.zeros(4, 2), torch.zeros(4, 5))),
        **{function.__name__: (Foreign(function, 5), None) for function in (cat, transposed, batched, gates, attention)},
    }  # fmt: skip


#                  products, and with split
PRODUCTS = {
    "torch_lstm": (2, 8), "torch_gru": (2, 6), "torch_rnn": (2, 2), "lstm": (2, 8), "gru": (2, 6), "projected": (3, 9), "cat": (2, 2),
    "transposed": (1, 1), "batched": (1, 1), "gates": (1, 4), "attention": (3, 3),
}  # fmt: skip


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PRODUCTS)
def test_cells(name, monkeypatch):
    program = captured(monkeypatch, *cells()[name])
    checked, weights = Checked(program.module), closed_over(program)
    assert checked.after(lambda graph: canonicalise(graph, weights))
    found = kinds(checked.graph)
    assert found["mm"] == PRODUCTS[name][0]
    assert found["bmm"] == (name == "attention")
    assert not {"addmm", "mv", "cat", "split", "getitem", "linear", "permute"} & set(found)
    changes = checked.after(lambda graph: canonicalise(graph, weights, split=True))
    assert bool(changes) == (PRODUCTS[name][0] != PRODUCTS[name][1])
    assert kinds(checked.graph)["mm"] == PRODUCTS[name][1]


STEPS = [
    lambda x, w: x @ w, lambda x, w: (w.t() @ x.t()).t(), lambda x, w: torch.addmm(x, x, w),
    lambda x, w: torch.cat([x, x.sin()], 1) @ w.repeat(2, 1),
    lambda x, w: (x @ w + w[0]).chunk(2, 1)[1].repeat(1, 2), lambda x, w: torch.bmm(x.view(-1, 1, 4), w.expand(x.shape[0], 4, 4))[:, 0],
    lambda x, w: torch.matmul(w, x.unsqueeze(-1)).squeeze(-1), lambda x, w: (x @ w).view(-1, 2, 2).unbind(1)[0].repeat(1, 2),
    lambda x, w: x.tanh(),
    lambda x, w: torch.mv(x, w[0])[:, None] + x, lambda x, w: x @ torch.cat([w[:, :2], w[:, :2]], 1),
    lambda x, w: x.flip(1).t().flip(0).t(),
]  # fmt: skip


@settings(max_examples=25)
@given(st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=5), st.booleans())
def test_any_graph(recipe, split):
    def function(x, w):
        for what in recipe:
            x = STEPS[what](x, w).tanh() if what % 2 else STEPS[what](x, w)
        return x

    module = traced(function, ("B", 4), (4, 4))
    checked = Checked(module)
    checked.after(lambda graph: canonicalise(graph, set(placeholders(graph)[1:]), split=split))
    assert not {"addmm", "bmm", "mv"} & set(kinds(module.graph))
