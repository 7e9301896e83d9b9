"""What a step is made of, and where it stops being one that a persistent kernel can hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusedrnn import TensorArray
from fusedrnn.executors.persistent import known_sizes
from fusedrnn.lowering.gpu.rule import Unlowered
from fusedrnn.lowering.gpu.schedule import Sharing, schedule
from fusedrnn.lowering.gpu.sorting import rank, ranked
from fusedrnn.lowering.gpu.step import stripped
from fusedrnn.optimise.graph import aten

from .loops import captured_of, greedy, reading, step

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
    assert not found.reductions
    assert sorted(target.kind for target, _ in found.outputs) == ["emit", "finished", "past"]
    carried = {leaf.node for leaf in found.leaves}
    own = [product for product in found.products.values() if stripped(product.left, found) in carried]
    assert len(own) == (products - 1 if kind == "tf gru" else products)  # its reset gate comes before the product


def test_a_greedy_decode():
    """The token is carried, the table of its products made before the loop, and the emit is the token."""
    found = step(*greedy("gru"))
    assert not found.hoisted
    widths = {leaf.source.kind: leaf.width for leaf in found.leaves}
    assert widths["state"] == H
    assert widths["token"] is None
    assert sorted(product.width for product in found.products.values()) == [12, H, H, H]
    assert [(reduction.kind, found.width(reduction.source)) for reduction in found.reductions.values()] == [("argmax", 12)]


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


def emitting(emit, like):
    """The step of a loop that emits what is made of h, its inputs, and the time."""
    cell, x, start = nn.RNNCell(6, H), torch.zeros(4, 3, 6), torch.zeros(3, H)

    def loop_fn(time, output, state, loop_state):
        first = output is None
        return time >= 4, x[time], start if first else state, like if first else emit(output, state, time), None

    return step(cell, loop_fn)


JOINED = {
    "vectors": (lambda h, _, __: torch.cat([h * 2, h.tanh(), h[:, :1]], 1), torch.zeros(2 * H + 1), [(H, 0), (H, H), (None, 2 * H)]),
    "under a mask": (lambda h, _, t: torch.cat([h * 2, h], 1).masked_fill((h[:, :1] > t), 0.0), torch.zeros(2 * H), [(H, 0), (H, H)]),
    "in a view": (lambda h, _, __: torch.cat([h * 2, h], 1).view(-1, 2, H), torch.zeros(2, H), [(H, 0), (H, H)]),
    "nested": (lambda h, _, __: torch.cat([h, torch.cat([h.sin(), h.cos()], 1)], 1), torch.zeros(3 * H), [(H, 0), (H, H), (H, 2 * H)]),
    "stacked": (lambda h, _, __: torch.stack([h.sin(), h.cos()], 1), torch.zeros(2, H), [(H, 0), (H, H)]),
    "side by side": (lambda h, _, __: torch.stack([h.sin(), h.cos()], 2), torch.zeros(H, 2), None),
}


@pytest.mark.parametrize("name", JOINED)
def test_what_is_only_put_together_is_stored_part_by_part(name):
    emit, like, wanted = JOINED[name]
    found = emitting(emit, like)
    (node,) = (node for target, node in found.outputs if target.kind == "emit")
    if wanted is None:
        assert found.stored(node) == [(node, 0)]
    else:
        assert [(found.width(part), column) for part, column in found.stored(node)] == wanted
    assert (node in found.nodes) == (wanted is None)


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
    """Through what keeps the elements of a row in their order; not through a broadcast or a permutation."""

    def change(h, time, loop_state):
        return (h[:, :, None].squeeze(2).reshape(-1, 4, 5).transpose(1, 2).reshape(-1, H)), None

    found = step(*looping(change))
    (made,) = (node for node in found.nodes if node.target is aten.tanh.default)
    (turned,) = (node for node in found.nodes if node.target in (aten.transpose.int, aten.permute.default))
    assert stripped(turned.args[0], found) is made
    assert stripped(turned, found) is turned


def test_sizes_that_a_kernel_is_made_for():
    """Those of rows; not how long the inputs are."""
    memory, mask = torch.zeros(3, 7, H), torch.zeros(3, 7)

    def change(h, time, loop_state):
        return ((h[:, None] * memory).sum(2) + mask).softmax(1)[:, None].bmm(memory)[:, 0], None

    assert list(known_sizes(*captured_of(*looping(change))).values()) == [7]


@pytest.mark.parametrize("batch", [3, H])
def test_sorts_of_sizes_that_are_or_became_numbers(batch):
    """Where the batch is as large as a matrix is wide, its rows may be along either dimension: both sizes are symbols first."""
    weight, memory = torch.zeros(H, H), torch.zeros(batch, 7, H)

    def change(h, time, loop_state):
        best = (h[:, None] * memory).sum(2).topk(2, 1).values.sum(1, keepdim=True)
        return (h @ weight).sort(1).values + best, None

    found = step(*looping(change, batch=batch))
    assert [node.target for node in found.nodes if node.target in (rank, ranked)] == [rank, ranked] * 2


def test_a_view_at_the_batch_size_is_refused():
    """A kernel is made for more than one."""
    with pytest.raises(Unlowered, match="a size that may differ from call to call"):
        schedule(step(*looping(lambda h, *_: (h + h[:, h.shape[0] :].sum(1, keepdim=True), None))), Sharing(2))


def looping(change, carried=None, batch=3):
    """A loop whose state goes through ``change``."""
    x, start = torch.zeros(4, batch, 6), torch.zeros(batch, H)

    def loop_fn(time, output, state, loop_state):
        if output is None:
            return time >= 4, x[time], start, None, carried() if carried else None
        made, loop_state = change(state, time, loop_state)
        return time >= 4, x[time], made, output, loop_state

    return nn.RNNCell(6, H), loop_fn


REFUSED = {
    "no rule": (lambda h, *_: (torch.erfinv(h * 0.1), None), None, "erfinv: the persistent kernel has no rule for it"),
    "float64": (lambda h, *_: ((h.double() * 2).float(), None), None, "float64 numbers"),
    "rows together": (lambda h, *_: (h + h.flip(0), None), None, "rows depend on one another"),
    "an array": (
        lambda h, time, array: (h + array.read(time - 1), array.write(time, h)),
        lambda: TensorArray(torch.float32, 4, element_shape=[3, H]),
        "a TensorArray that the loop writes and reads",
    ),
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
