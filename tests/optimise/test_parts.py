"""Vectors in parts: which are taken apart, and that the results stay what they were."""

import pytest
import torch

from fusedrnn.capture import ops
from fusedrnn.optimise import parts
from fusedrnn.optimise.canonicalise import canonicalise
from fusedrnn.optimise.graph import output, value
from fusedrnn.optimise.simplify import simplify

from .graphs import Checked, kinds, placeholders, traced

B, H = "B", 3


def by_rows(graph):
    """What has the first size of the first placeholder has the batch first, of the nodes that are there now: so it is known to kernels."""
    batch, now = value(placeholders(graph)[0]).shape[0], set(graph.nodes)

    def has_batch_first(node):
        made = node.meta.get("val")
        return node in now and isinstance(made, torch.Tensor) and made.ndim > 1 and str(made.shape[0]) == str(batch)

    return has_batch_first


def in_parts(function, *shapes, carried=(), dtypes=(), weights=()):
    """The graph of a function after the pass and `simplify`, and how many nodes it rewrote."""
    checked = Checked(traced(function, *shapes, dtypes=dtypes))
    given = placeholders(checked.graph)
    found = []

    def transform(graph):
        found.append(parts.in_parts(graph, by_rows(graph), {given[place] for place in carried}))
        simplify(graph)
        canonicalise(graph, {given[place] for place in weights}, split=True, wide=True)
        return found[0]

    checked.after(transform, again=None)
    return checked.graph, found[0]


def normed(gates):
    split = gates.view(-1, 4, H)
    centred = split - split.mean(2, keepdim=True)
    return (centred * (centred * centred).mean(2, keepdim=True).rsqrt()).view(-1, 4 * H)


def test_what_is_put_together_is_computed_before():
    graph, changes = in_parts(lambda a, b: torch.cat([a, b], 1).tanh() * 2, (B, H), (B, 5))
    assert changes == 2
    assert kinds(graph) == {"tanh": 2, "mul": 2, "cat": 1}
    assert output(graph).args[0].target is torch.ops.aten.cat.default


def test_a_mask_of_rows_and_a_vector_of_no_row_go_with_each_part():
    def function(a, b, mask, gain):
        whole = torch.cat([a, b], 1) * gain
        return whole.masked_fill(mask[:, None] > 0, 0.0)

    graph, changes = in_parts(function, (B, H), (B, 5), (B,), (H + 5,))
    assert changes == 2
    assert kinds(graph)["masked_fill"] == kinds(graph)["mul"] == kinds(graph)["slice"] == 2


def test_a_norm_of_each_gate():
    def function(x, weight, gain):
        gates = normed(x @ weight) * gain
        i, f, g, o = gates.chunk(4, 1)
        return i.sigmoid() * g.tanh() + f + o

    graph, changes = in_parts(function, (B, 5), (5, 4 * H), (4 * H,), weights=(1, 2))
    assert changes > 0
    assert kinds(graph)["mm"] == 4
    assert kinds(graph)["mean"] == 8
    assert not kinds(graph)["cat"]
    assert all(value(node).shape[1] in (1, H) for node in graph.nodes if node.target is torch.ops.aten.mul.Tensor and value(node).ndim > 1)


def test_the_whole_may_be_needed_too():
    def function(x, weight):
        gates = x @ weight
        return gates, normed(gates), gates.view(-1, 4, H).mean(2)

    graph, changes = in_parts(function, (B, 5), (5, 4 * H), weights=(1,))
    assert changes > 0
    assert kinds(graph)["mm"] == 4
    assert kinds(graph)["cat"] == 3


def test_what_is_made_of_a_mean_follows():
    """Without the dimension, and expanded again, as in the derivative of a norm."""

    def function(x, weight):
        gates = (x @ weight).view(-1, 4, H)
        mean = gates.sum(2)
        return (gates - (mean * 2).unsqueeze(2).expand(-1, 4, H)).view(-1, 4 * H)

    graph, changes = in_parts(function, (B, 5), (5, 4 * H), weights=(1,))
    assert changes > 0
    assert (kinds(graph)["mm"], kinds(graph)["sum"], kinds(graph)["sub"]) == (4, 4, 4)


def test_guards_do_not_stand_in_the_way():
    def function(x, y, finished):
        return ops.guard(ops.quiet(torch.cat([x, y], 1).tanh(), finished), finished).sin()

    graph, changes = in_parts(function, (B, H), (B, H), (B,), dtypes=(torch.float64, torch.float64, torch.bool))
    assert changes >= 3
    assert kinds(graph)["sin"] == kinds(graph)["tanh"] == 2


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x: (x.tanh(), x + 1), ((B, H),)),
        (lambda x, y: torch.cat([x, y], 1), ((B, H), (B, H))),
        (lambda x, y: torch.cat([x, y], 0).tanh(), ((B, H), (B, H))),
        (lambda x: x.view(-1, parts.MOST + 1, 2).sum(2), ((B, 2 * (parts.MOST + 1)),)),
        (lambda x: (x * 2).view(-1, 2, 2, H).sum(3), ((B, 4 * H),)),
        (lambda x: (x * 2).view(-1, 4, H).sum((1, 2)), ((B, 4 * H),)),
        (lambda x, y: (torch.stack([y, y]) * 2).view(2, 3, 4).sum(2), ((B, 1), (12,))),
    ],
    ids=["whole", "only put together", "along the batch", "too many", "not all of a part", "all of a row", "of no row"],
)
def test_what_stays_as_it_is(function, shapes):
    assert in_parts(function, *shapes)[1] == 0


def test_what_is_carried_stays_whole():
    """It would be taken apart and put together in every step."""

    def function(state, a, b):
        return state * 0.5 + torch.cat([a, b], 1)

    assert in_parts(function, (B, 2 * H), (B, H), (B, H), carried=(0,))[1] == 0
    assert in_parts(function, (B, 2 * H), (B, H), (B, H))[1] > 0


def test_parts_of_other_bounds_are_cut():
    def function(a, b, c, d):
        return torch.cat([a, b], 1) * torch.cat([c, d], 1)

    graph, changes = in_parts(function, (B, 2), (B, 4), (B, 3), (B, 3))
    assert changes == 1
    assert kinds(graph)["mul"] == 2
