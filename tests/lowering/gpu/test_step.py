"""What a step is made of, and where it stops being one that a persistent kernel can hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusedrnn import TensorArray
from fusedrnn.lowering.gpu.rule import Unlowered
from fusedrnn.lowering.gpu.step import stripped
from fusedrnn.optimise.graph import aten

from .loops import greedy, reading, step

H = 20


@pytest.mark.parametrize(("kind", "states", "products"), [("lstm", 2, 4), ("gru", 1, 3), ("tf gru", 1, 3), ("rnn", 1, 1)])
def test_a_sequence(kind, states, products):
    """The product of the input is made before the loop, that of the state is one for each gate."""
    found = step(*reading(kind))
    assert len(found.hoisted) == products
    assert all(found.width(node) == H for node in found.hoisted)
    assert [leaf.source.kind for leaf in found.leaves] == ["state"] * states
    assert all(leaf.width == H and leaf.by_row and leaf.returned for leaf in found.leaves)
    assert [(product.inner, product.width) for product in found.products.values()] == [(H, H)] * products
    assert not found.argmaxes
    assert sorted(target.kind for target, _ in found.outputs) == ["emit", "finished", "past"]
    carried = {leaf.node for leaf in found.leaves}
    own = [product for product in found.products.values() if stripped(product.left) in carried]
    assert len(own) == (products - 1 if kind == "tf gru" else products)  # its reset gate comes before the product


def test_a_greedy_decode():
    """The token is carried, the table of its products made before the loop, and the emit is the token."""
    found = step(*greedy("gru"))
    assert not found.hoisted
    widths = {leaf.source.kind: leaf.width for leaf in found.leaves}
    assert widths["state"] == H
    assert widths["token"] is None
    assert sorted(product.width for product in found.products.values()) == [12, H, H, H]
    assert len(found.argmaxes) == 1
    assert found.width(found.argmaxes[0].args[0]) == 12


def test_what_is_read_without_a_product_stays_in_the_loop():
    def cell(inputs, state):
        new = torch.tanh(inputs + state)
        return new, new

    cell.output_size = cell.state_size = 6
    x, start = torch.zeros(4, 3, 6), torch.zeros(3, 6)

    def loop_fn(time, output, state, loop_state):
        return time >= 4, x[time], start if output is None else state, output, None

    found = step(cell, loop_fn)
    assert not found.hoisted
    assert not found.products


def test_a_leaf_of_no_row():
    x, start = torch.zeros(4, 3, 6), torch.zeros(3, H)

    def loop_fn(time, output, state, count):
        first = output is None
        return time >= 4, x[time], start if first else state, output, torch.zeros((), dtype=torch.int64) if first else count + 2

    (count,) = (leaf for leaf in step(nn.RNNCell(6, H), loop_fn).leaves if leaf.source.kind == "loop_state")
    assert count.width is None
    assert not count.by_row
    assert count.returned


def test_stripped():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    viewed = graph.call_function(aten.view.default, (graph.call_function(aten.clone.default, (x,)), [3, 4]))
    assert stripped(viewed) is x
    spread = graph.call_function(aten.expand.default, (x, [3, 4]))
    assert stripped(spread) is spread


def looping(change, carried=None):
    """A loop whose state goes through ``change``."""
    x, start = torch.zeros(4, 3, 6), torch.zeros(3, H)

    def loop_fn(time, output, state, loop_state):
        if output is None:
            return time >= 4, x[time], start, None, carried() if carried else None
        made, loop_state = change(state, time, loop_state)
        return time >= 4, x[time], made, output, loop_state

    return nn.RNNCell(6, H), loop_fn


REFUSED = {
    "cumsum": (lambda h, *_: (h.cumsum(1), None), None, "cumsum.*has no rule"),
    "a product of two states": (lambda h, *_: ((h[:, :, None] * h[:, None]).sum(1), None), None, "2 dimensions a row"),
    "float64": (lambda h, *_: ((h.double() * 2).float(), None), None, "float64 numbers"),
    "rows together": (lambda h, *_: (h + h.mean(0), None), None, "rows depend on one another"),
    "an argmax of integers": (lambda h, *_: (h + h.long().argmax(1, keepdim=True), None), None, "an argmax of integers"),
    "a slice with a step": (lambda h, *_: (torch.cat([h[:, ::2], h[:, 1::2]], 1), None), None, "a slice with a step"),
    "an array": (lambda h, time, array: (h, array.write(time - 1, h)), lambda: TensorArray(torch.float32, 4), "TensorArray"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_kernel_cannot_hold(name):
    change, carried, reason = REFUSED[name]
    from fusedrnn.kernels.gpu import limits
    from fusedrnn.lowering.gpu.source import kernel_source
    from fusedrnn.plan.planner import plans

    with pytest.raises(Unlowered, match=reason) as error:  # by the step or, at the latest, by the source
        kernel_source(plans(step(*looping(change, carried)), 3, limits.of_arch(90), "hilo")[0].schedule, 16)
    if carried is None:
        line = change.__code__.co_firstlineno
        assert error.value.location == f"{__file__}:{line}"
