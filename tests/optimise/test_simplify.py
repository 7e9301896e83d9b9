"""Passes that make a step smaller: what they drop, what they leave, and that the values stay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusedrnn
from fusedrnn.capture import ops
from fusedrnn.optimise import simplify as passes
from fusedrnn.optimise.graph import aten, value
from fusedrnn.optimise.simplify import (
    assume_none_finished,
    choices_of_masks,
    dead_code,
    drop_no_ops,
    fold_constants,
    share,
    simplify,
    slices_of_splits,
)

from .graphs import Checked, Foreign, captured, finished_of, kinds, placeholders, traced

ROWS = ("B", 6)

NO_OPS = {
    "detach": lambda x: aten.detach(x) + 1,
    "alias": lambda x: aten.alias(x) + 1,
    "clone": lambda x: aten.clone(x) + 1,
    "lift_fresh": lambda x: aten.lift_fresh_copy(x) + 1,
    "_to_copy": lambda x: aten._to_copy(x, dtype=torch.float64) + 1,
    "slice": lambda x: x[:, 0:6][:] + 1,
    "slice_of_sizes": lambda x: aten.slice.Tensor(x, 0, 0, x.shape[0]) + 1,
    "expand": lambda x: aten.expand(x, [x.shape[0], 6]) + 1,
    "expand_dims": lambda x: aten.expand(x, [-1, -1]) + 1,
    "view": lambda x: aten.view(x, [-1, 6]) + 1,
    "_unsafe_view": lambda x: aten._unsafe_view(x, [x.shape[0], 6]) + 1,
    "views": lambda x: x.view(-1, 2, 3).view(-1, 6) + 1,
    "permute": lambda x: aten.permute(x, [0, -1]) + 1,
    "t": lambda x: aten.t(aten.t(x)) + 1,
    "transpose": lambda x: aten.permute(aten.transpose(x, 0, 1), [1, 0]) + 1,
    "permutations": lambda x: x.view(-1, 2, 3).permute(2, 0, 1).permute(1, 2, 0).reshape(-1, 6) + 1,
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1) + 1,
    "unsqueezes": lambda x: x.unsqueeze(0).unsqueeze(-1).squeeze() + 1,
    "moved_ones": lambda x: x.unsqueeze(1).permute(0, 2, 1).permute(2, 0, 1)[0] + 1,
    "select": lambda x: x.unsqueeze(-2)[:, 0] + 1,
}


@pytest.mark.parametrize("name", NO_OPS)
def test_no_ops_go(name):
    checked = Checked(traced(NO_OPS[name], ROWS))
    assert checked.after(lambda graph: drop_no_ops(graph) + dead_code(graph))
    left = set(kinds(checked.graph)) - {"add", "sym_size"}
    assert left <= ({"view", "select"} if name == "moved_ones" else set())


KEPT = {
    "dtype": lambda x: aten._to_copy(x, dtype=torch.float32),
    "slice": lambda x: aten.slice.Tensor(x, 1, 0, 5),
    "steps": lambda x: aten.slice.Tensor(x, 1, 0, 6, 2),
    "rows": lambda x: aten.slice.Tensor(x, 0, 1, 2),
    "expand": lambda x: x.sum(1, keepdim=True).expand(-1, 6) + 1,
    "view": lambda x: x.view(-1, 2, 3) * 2,
    "t": lambda x: aten.t(x) * 2,
    "permute": lambda x: x.view(-1, 2, 3).permute(2, 0, 1) * 2,
    "select": lambda x: aten.select.int(x.unsqueeze(1), 2, 3),
    "squeeze": lambda x: x.view(-1, 2, 3).unsqueeze(1).sum(2).squeeze(1),
    "any": lambda x: (x > 0).any(),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_does_something_stays(name):
    module = traced(KEPT[name], ROWS)
    before = kinds(module.graph)
    assert Checked(module).after(drop_no_ops) == 0
    assert kinds(module.graph) == before


def test_detach_stays_for_gradients():
    module = traced(lambda x: x.detach() * x, ROWS)
    assert Checked(module).after(lambda graph: simplify(graph, differentiable=True)) == 0
    assert kinds(module.graph)["detach"] == 1


def test_any_of_a_flag():
    checked = Checked(traced(lambda x: aten.all(aten.any((x > 0).any())), ROWS))
    assert checked.after(drop_no_ops) == 2
    assert kinds(checked.graph)["any"] == 1


def test_not_of_not():
    checked = Checked(traced(lambda x: ~torch.logical_not(x > 0), ROWS))
    checked.after(simplify)
    assert set(kinds(checked.graph)) == {"gt"}


def test_a_view_of_what_no_longer_lies_in_order_becomes_a_reshape():
    checked = Checked(
        traced(lambda x: aten.view(x.view(-1, 2, 3).permute(0, 2, 1).clone(memory_format=torch.contiguous_format), [-1, 6]), ROWS)
    )
    assert checked.after(drop_no_ops)
    assert kinds(checked.graph)["reshape"] == 1
    assert kinds(checked.graph)["clone"] == 0


def test_a_copy_stays_whose_layout_is_read():
    def function(x):
        return aten.as_strided(x.t().clone(memory_format=torch.contiguous_format), [3], [1])

    module = traced(function, (4, 6))
    assert Checked(module).after(drop_no_ops) == 0
    assert kinds(module.graph)["clone"] == 1


SPLITS = {
    "chunk": lambda x: x.chunk(3, 1),
    "split": lambda x: x.split(4, -1),
    "sizes": lambda x: x.split([1, 3, 2], 1),
    "unsafe": lambda x: aten.unsafe_split(x, 4, 1),
    "unbind": lambda x: x.unbind(1),
    "unbind_of_gates": lambda x: x.view(-1, 2, 3).unbind(-2),
    "last": lambda x: [x.chunk(2, 1)[-1]],
}


@pytest.mark.parametrize("name", SPLITS)
def test_slices_of_splits(name):
    checked = Checked(traced(lambda x: [piece * 2 for piece in SPLITS[name](x)], ROWS))
    assert checked.after(lambda graph: slices_of_splits(graph) + dead_code(graph))
    assert set(kinds(checked.graph)) <= {"slice", "select", "mul", "view", "sym_size"}


def test_slices_of_slices_and_of_concatenations():
    def function(x, y):
        whole = torch.cat([x, y, x], 1)
        return x[:, 1:5][:, 1:-1], whole[:, 6:10], whole[:, :10], whole[:, 5:7]

    checked = Checked(traced(function, ROWS, ("B", 4)))
    assert checked.after(simplify)
    slices = [node for node in checked.graph.nodes if node.target is aten.slice.Tensor]
    assert [node.args[1:] for node in slices] == [(1, 2, 4), (1, 5, 7)]
    assert next(iter(reversed(checked.graph.nodes))).args[0][1] is placeholders(checked.graph)[1]


FLAGS = {
    "or_false": (lambda f, x: f | torch.zeros_like(f), set()),
    "or_true": (lambda f, x: f | ~torch.zeros_like(f), {"full"}),
    "false_or_0d": (lambda f, x: torch.zeros_like(f) | f.any(), {"any", "expand"}),
    "and_true": (lambda f, x: torch.ones_like(f) & f, set()),
    "and_false": (lambda f, x: torch.full_like(f, False) & f.any(), {"full"}),
    "logical_or": (lambda f, x: torch.logical_or(f, torch.zeros_like(f)), set()),
    "logical_or_of_numbers": (lambda f, x: torch.logical_or(x, torch.zeros_like(x)), {"_to_copy"}),
    "logical_and": (lambda f, x: torch.logical_and(torch.ones_like(x[:, :1]), x > 0), {"gt"}),
    "xor": (lambda f, x: f ^ torch.zeros_like(f), set()),
    "where": (lambda f, x: torch.where(torch.zeros_like(f)[:, None], x.sum(), x), set()),
    "where_broadcast": (lambda f, x: torch.where(torch.zeros_like(f)[:, None], x, x.sum()), {"sum", "expand"}),
    "where_promotes": (lambda f, x: torch.where(torch.ones_like(f)[:, None], f[:, None], x), {"_to_copy", "expand", "unsqueeze"}),
    "where_number": (lambda f, x: torch.where(torch.ones_like(x) > 0, 2.0, x), {"scalar_tensor", "expand"}),
    "where_equal": (lambda f, x: torch.where(f[:, None], x, x), set()),
    "masked_fill": (lambda f, x: x.masked_fill(torch.zeros_like(f)[:, None], 3), set()),
    "masked_fill_all": (lambda f, x: x.masked_fill(torch.ones_like(f)[:, None], 3), {"full"}),
    "masked_fill_tensor": (lambda f, x: x.masked_fill(torch.ones_like(f)[:, None], x.sum()), {"sum", "expand"}),
    "any_of_false": (lambda f, x: f | torch.zeros_like(f).any(), set()),
    "through_views": (lambda f, x: f[:, None] & torch.zeros_like(f).logical_not().view(-1, 1).expand(-1, 1), {"unsqueeze"}),
    "comparison": (lambda f, x: f & (torch.zeros_like(x[:, 0]) < 1), set()),
    "held": (lambda f, x: (x + torch.tensor(0.0)) * torch.tensor([1.0] * 6), set()),
    "plus_0": (lambda f, x: 0 + x + torch.zeros_like(x) - 0, set()),
    "plus_scaled_0": (lambda f, x: torch.add(x, torch.zeros_like(x), alpha=3), set()),
    "times_1": (lambda f, x: torch.ones_like(x) * x * 1 / 1, set()),
    "times_mask": (lambda f, x: x * (1 - torch.zeros_like(f).double()).unsqueeze(1), set()),
    "plus_0_expands": (lambda f, x: x.sum(1, True) + torch.zeros_like(x), {"sum", "expand"}),
}


@pytest.mark.parametrize("name", FLAGS)
def test_constants_fold(name):
    function, left = FLAGS[name]
    checked = Checked(traced(function, ("B",), ROWS, dtypes=[torch.bool]))
    assert checked.after(simplify)
    assert set(kinds(checked.graph)) - {"sym_size"} == left


NOT_FOLDED = {
    "0_plus_scaled": lambda f, x: torch.add(torch.zeros_like(x), x, alpha=3),
    "0_minus": lambda f, x: torch.zeros_like(x) - x,
    "times_0": lambda f, x: torch.zeros_like(x) * x,
    "all_of_false": lambda f, x: torch.zeros_like(f).all() | f,
    "promotes": lambda f, x: f + torch.zeros_like(x[:, 0]),
    "not_constant": lambda f, x: torch.where(f[:, None], x, 0.5) + torch.tensor([1.0, 0.0] * 3, dtype=torch.float64),
}


@pytest.mark.parametrize("name", NOT_FOLDED)
def test_what_is_no_constant_stays(name):
    module = traced(NOT_FOLDED[name], ("B",), ROWS, dtypes=[torch.bool])
    checked = Checked(module)
    assert checked.after(fold_constants) == 0


def test_share():
    def function(x, seeds):
        time = torch.tensor(3)
        draws = [ops.draw(seeds, 2, time, site, 0) for site in (1, 1, 2)]
        scaled = [x * number for number in (2, 2, 2.0, 3)]
        held = [x + torch.tensor([1.0, 2.0] * 3) for _ in range(2)] + [x + torch.tensor([1.0, -2.0] * 3)]
        return [*draws, *scaled, *held, x.view(x.shape[0], 2, 3), x.view(x.shape[0], 2, 3)]

    checked = Checked(traced(function, ROWS, ("B",), dtypes=[torch.float64, torch.int64]))
    assert checked.after(share)
    found = kinds(checked.graph)
    assert (found["draw"], found["mul"], found["add"], found["view"]) == (2, 3, 2, 1)


def test_equal_and_unequal_zeros():
    checked = Checked(traced(lambda x: [x / torch.tensor(0.0), x / torch.tensor(-0.0)], ROWS))
    checked.after(share)
    assert kinds(checked.graph)["div"] == 2


def test_guards_are_shared_where_no_gradient_sees_it():
    def function(x, f):
        return ops.guard(x, f) + ops.guard(x, f)

    for differentiable, left in ((False, 1), (True, 2)):
        checked = Checked(traced(function, ROWS, ("B",), dtypes=[torch.float64, torch.bool]))
        checked.after(lambda graph, keep=differentiable: share(graph, differentiable=keep))
        assert kinds(checked.graph)["guard"] == left


def test_dead_code():
    module = traced(lambda x, y: [x.sin().cos() * 0 + y for _ in range(2)][1], ROWS, ROWS)
    checked = Checked(module)
    changes = checked.after(dead_code)
    assert changes == 4
    assert len(placeholders(module.graph)) == 2


FINISHED = {
    "or": (lambda f, x, y: f | y, set()),
    "or_0d": (lambda f, x, y: y.any() | f, {"any", "expand"}),
    "where": (lambda f, x, y: torch.where(f.view(-1, 1), x, x * 2), {"mul"}),
    "quiet": (lambda f, x, y: ops.quiet(x, f) * 2, {"mul"}),
    "guard": (lambda f, x, y: ops.guard(x, f) * 2, {"mul"}),
    "masked_fill": (lambda f, x, y: (x * 2).masked_fill(f[:, None], 0), {"mul"}),
    "and": (lambda f, x, y: f & y, {"full"}),
    "not": (lambda f, x, y: torch.where(~f[:, None] & y[:, None], x, 0), {"unsqueeze", "scalar_tensor", "where"}),
    "numbers": (lambda f, x, y: x * (1 - f.to(x.dtype))[:, None], set()),
    "count": (lambda f, x, y: f.sum() + x.sum(), {"zeros_like", "sum", "add"}),
    "size": (lambda f, x, y: x.sum() / f.shape[0], {"sum", "div"}),
    "returned": (lambda f, x, y: f.clone(), {"zeros_like"}),
}


@pytest.mark.parametrize("name", FINISHED)
def test_assume_none_finished(name):
    function, left = FINISHED[name]
    module = traced(function, ("B",), ROWS, ("B",), dtypes=[torch.bool, torch.float64, torch.bool])
    # The expected values are those of a run whose flags are all False.
    checked = Checked(module, bool=False)
    changes = checked.after(lambda graph: assume_none_finished(graph, placeholders(graph)[0]))
    assert bool(changes) == (name != "size")
    assert set(kinds(checked.graph)) - {"sym_size"} == left


def test_nothing_to_assume():
    module = traced(lambda f, x: x + 1, ("B",), ROWS, dtypes=[torch.bool])
    assert Checked(module).after(lambda graph: assume_none_finished(graph, placeholders(graph)[0])) == 0


def _attention(memory, weight):
    def cell(inputs, state):
        scores = torch.softmax(torch.tanh(memory @ weight + state[:, None]).sum(-1), -1)
        new = torch.tanh(state + torch.einsum("bt,btk->bk", scores, memory) @ weight + inputs.sum(1, True))
        return new, new

    return Foreign(cell, 5)


CELLS = {
    "torch_gru": lambda: (torch.nn.GRUCell(3, 5), None),
    "torch_lstm": lambda: (torch.nn.LSTMCell(3, 5), (torch.zeros(4, 5), torch.zeros(4, 5))),
    "gru": lambda: (fusedrnn.GRUCell(3, 5), None),
    "lstm": lambda: (fusedrnn.LSTMCell(3, 5), (torch.zeros(4, 5), torch.zeros(4, 5))),
    "peepholes": lambda: (fusedrnn.LSTMCell(3, 5, use_peepholes=True, num_proj=2), (torch.zeros(4, 2), torch.zeros(4, 5))),
    "attention": lambda: (_attention(torch.randn(4, 9, 7), torch.randn(7, 5)), None),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CELLS)
def test_cells(name, monkeypatch):
    program = captured(monkeypatch, *CELLS[name]())
    checked = Checked(program.module)
    assert checked.after(simplify)
    found = kinds(checked.graph)
    assert not {"split", "getitem", "clone", "detach", "permute", "zeros_like"} & set(found)
    assert found["guard"] <= 2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CELLS)
def test_cells_before_any_row_has_finished(name, monkeypatch):
    program = captured(monkeypatch, *CELLS[name]())
    checked = Checked(program.module, bool=False)
    assert checked.after(lambda graph: assume_none_finished(graph, finished_of(program)))
    assert not {"guard", "quiet", "where", "masked_fill"} & set(kinds(checked.graph))
    checked.after(simplify)


UNARY = [
    torch.Tensor.clone, torch.Tensor.detach, lambda x: x * 1, lambda x: 0 + x, lambda x: x.t().t(), lambda x: x.view(-1, 2, 3).view(-1, 6),
    lambda x: x.unsqueeze(1).squeeze(1), lambda x: torch.cat(x.chunk(3, 1)[::-1], 1), lambda x: x.flip(1), torch.sin,
    lambda x: x.view(-1, 2, 3).permute(0, 2, 1).reshape(-1, 6), lambda x: x[:, 1:].sum(1, True).expand(-1, 6), lambda x: x.double(),
    lambda x: torch.where(torch.zeros_like(x) > 0, 7, x), lambda x: x.view(-1, 3, 2).unbind(2)[1].repeat(1, 2),
]  # fmt: skip
BINARY = [torch.add, torch.mul, torch.sub, lambda x, y: torch.where(x > y, x, y), lambda x, y: torch.cat([x, y], 1)[:, 6:]]


@given(st.lists(st.tuples(st.integers(0, len(UNARY) + len(BINARY) - 1), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=10))
def test_any_graph(recipe):
    def function(x, y):
        made = [x, y]
        for what, one, other in recipe:
            a, b = made[-1 - one % len(made)], made[-1 - other % len(made)]
            made.append(UNARY[what](a) if what < len(UNARY) else BINARY[what - len(UNARY)](a, b))
        return made[-3:]

    checked = Checked(traced(function, ROWS, ROWS))
    checked.after(simplify)
    assert not {"clone", "detach", "split", "getitem"} & set(kinds(checked.graph))


PUTS = {
    "a number": (lambda x, flags: x.index_put((flags,), torch.tensor(2.0, dtype=torch.float64)), (ROWS, ROWS)),
    "rows": (lambda x, flags: x.index_put((flags[:, 0],), torch.arange(6.0, dtype=torch.float64)), (ROWS, ROWS)),
    "one value": (lambda x, flags: x.index_put((flags,), x[0, :1]), (ROWS, ROWS)),
    "behind rows": (lambda x, flags: aten.index_put(x, [None, flags[0]], x[:, :1]), (ROWS, ROWS)),
    "added": (lambda x, flags: x.index_put((flags,), x[0, 0], True), (ROWS, ROWS)),
}


@pytest.mark.parametrize("name", PUTS)
def test_a_write_at_a_mask_is_a_choice(name):
    function, shapes = PUTS[name]
    checked = Checked(traced(lambda x, y: function(x, y > 0), *shapes))
    checked.after(choices_of_masks)
    assert "index_put" not in kinds(checked.graph)
    assert "where" in kinds(checked.graph)


def test_a_write_of_a_value_for_each_place_in_a_mask_stays():
    module = traced(lambda x, y, z: x.index_put((y > 0,), z), ROWS, ROWS, ("S",))
    assert choices_of_masks(module.graph) == 0


def test_a_view_of_an_expanded_tensor_is_a_reshape():
    """torch's tensors without data allow some views that real ones refuse."""
    checked = Checked(traced(lambda x: x.expand(2, 1, 3, 6).clone().view(6, 6) + 1, (3, 6)))
    checked.after(simplify)
    assert "clone" not in kinds(checked.graph)


def test_new_nodes_know_the_place_of_those_they_stand_for():
    module = traced(lambda x: x.sum(1, True) + torch.zeros_like(x), ROWS)
    for node in module.graph.nodes:
        node.meta["stack_trace"] = f"user.py:{node.name}"
    simplify(module.graph)
    expand = next(node for node in module.graph.nodes if node.target is aten.expand.default)
    assert expand.meta["stack_trace"] == "user.py:add"
    assert all("val" in node.meta for node in module.graph.nodes if node.op != "output")
    assert value(expand).shape[1] == 6
    assert passes.constants(module.graph) == {}
