"""Phases, barriers and tiles of steps."""

from __future__ import annotations

import pytest
import torch

import fusedrnn
from fusedrnn.lowering.gpu.schedule import Sharing, needs_one_group, schedule

from .loops import greedy, reading, several, start_of, step

H, V = 20, 12


@pytest.mark.parametrize(
    ("kind", "barriers"),
    [("lstm", 1), ("gru", 1), ("rnn", 1), ("tf gru", 2)],  # its reset gate stands before the product
)
@pytest.mark.parametrize("programs", [2, 3])
def test_barriers_of_a_sequence(kind, barriers, programs):
    found = schedule(step(*reading(kind)), Sharing(programs))
    assert len(found.barriers) == barriers
    assert len(found.exchanges) == barriers
    assert found.phases == barriers  # nothing of the step is left behind its last barrier


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_barriers_of_a_greedy_decode(kind):
    """Gates; then logits, whose argmax is exchanged."""
    loop = step(*greedy(kind))
    found = schedule(loop, Sharing(2))
    assert len(found.barriers) == 2
    assert list(found.reductions.values()) == [1]
    replicated = schedule(loop, Sharing(2, frozenset({V})))
    assert len(replicated.barriers) == 1
    assert not replicated.reductions


@pytest.mark.parametrize("loop", [reading("lstm"), reading("tf gru"), greedy("gru")], ids=["lstm", "tf gru", "greedy"])
def test_a_single_program_waits_for_nobody(loop):
    found = schedule(step(*loop), Sharing(1))
    assert found.barriers == []
    assert found.exchanges == []
    assert all(tile.exchange is None and tile.chunks == 1 for tile in found.tiles)


def test_barriers_of_a_stack():
    size = 16
    cell = fusedrnn.MultiRNNCell([fusedrnn.LSTMCell(6, size), fusedrnn.LSTMCell(size, size), fusedrnn.LSTMCell(size, size)])
    x, start = torch.zeros(4, 3, 6), tuple(start_of("lstm", 3, size) for _ in range(3))

    def loop_fn(time, output, state, loop_state):
        return time >= 4, x[time], start if output is None else state, output, None

    found = schedule(step(cell, loop_fn), Sharing(2))
    assert len(found.barriers) == 3
    first = next(tile for tile in found.tiles if len(tile.segments) == 8)
    assert len(first.carried) == 4  # the layer's own next gates, beside those of the layer above


def test_products_of_one_vector_stand_in_one_tile():
    """h meets the recurrent weights of the next step and the logits' of this one at once."""
    (tile,) = schedule(step(*greedy("gru")), Sharing(2)).tiles
    widths = [product.width for product, _ in tile.segments]
    assert sorted(widths) == [V, H, H, H]
    assert len(tile.carried) == 3
    assert not tile.only_carried
    blocks = [Sharing(2).block(width) for width in widths]
    assert blocks == sorted(blocks, reverse=True)
    assert [begin for _, begin in tile.segments] == [sum(blocks[:place]) for place in range(len(blocks))]
    assert tile.rows == 64  # 3 * 16 + 8
    assert tile.inner == 32


def test_products_are_apart_where_together_is_larger():
    (kind, loop_fn) = greedy("rnn", size=64, words=200)
    tiles = schedule(step(kind, loop_fn), Sharing(2)).tiles
    assert [[product.width for product, _ in tile.segments] for tile in tiles] == [[64], [200]]
    assert [tile.rows for tile in tiles] == [32, 128]  # one of both would have 256


@pytest.mark.parametrize(("count", "rows"), [(2, 64), (3, 64), (4, 64), (5, 128)])
def test_vectors_that_need_few_rows_are_stacked(count, rows):
    """64 rows at least: 16 for each vector, side by side in the memory that they pass."""
    found = schedule(step(*several(count, size=32)), Sharing(2, least_rows=64), stack=8)
    (tile,) = found.tiles
    assert (tile.vectors, tile.share, tile.rows) == (count, 16, rows)
    assert [begin for _, begin in tile.segments] == [16 * place for place in range(count)]
    assert {exchange.name for exchange in found.exchanges} == {tile.exchange.name}
    assert sorted(exchange.place for exchange in found.exchanges) == list(range(count))
    slots = [exchange.slot("this") for exchange in found.exchanges]
    assert len(set(slots)) == count
    assert len(found.barriers) == 1


@pytest.mark.parametrize(("stack", "vectors"), [(1, [1, 1, 1, 1]), (2, [2, 2]), (3, [3, 1]), (8, [4])])
def test_no_more_vectors_are_stacked_than_may_be(stack, vectors):
    found = schedule(step(*several(4, size=32)), Sharing(2, least_rows=64), stack=stack)
    assert [tile.vectors for tile in found.tiles] == vectors


def test_where_no_row_is_saved_none_are_stacked():
    found = schedule(step(*several(4, size=128)), Sharing(2, least_rows=64), stack=8)
    assert [(tile.vectors, tile.rows) for tile in found.tiles] == [(1, 64)] * 4


def waiting(early):
    """A vector that is known a barrier before the other one; their products are added up, or the early one is needed at once."""
    size, weights = 32, [torch.randn(32, 32) for _ in range(4)]
    start = torch.zeros(3, size)

    class Cell:
        output_size = state_size = size

        def __call__(self, inputs, state):
            first = torch.tanh(state + inputs)
            known = torch.sigmoid(inputs - state)
            second = torch.tanh(first @ weights[0])
            product = known @ weights[1]
            new = second @ weights[2] + (product if early else torch.tanh(product))
            if not early:
                new = new + torch.sin(torch.tanh(product) @ weights[3])
            return new, new

    def loop_fn(time, output, state, loop_state):
        return time >= 4, torch.ones(3, size), start if output is None else state, output, None

    return step(Cell(), loop_fn)


def test_a_product_waits_for_those_that_it_is_added_to():
    found = schedule(waiting(True), Sharing(2, least_rows=64), stack=8)
    assert [tile.vectors for tile in found.tiles] == [1, 2]
    (last,) = (tile for tile in found.tiles if tile.vectors == 2)
    assert all(found.phase_of[product.node] == last.phase for product, _ in last.segments)
    assert sorted(exchange.phase for exchange in found.exchanges) == [0, 1, 1]
    apart = schedule(waiting(True), Sharing(2, least_rows=64))
    assert sorted(exchange.phase for exchange in apart.exchanges) == [0, 0, 1]
    assert len(found.barriers) == len(apart.barriers)


def test_a_product_that_is_needed_at_once_does_not_wait():
    found = schedule(waiting(False), Sharing(2, least_rows=64), stack=8)
    by_phase = {tile.phase: tile.vectors for tile in found.tiles}
    assert by_phase == {1: 2, 2: 2}


@pytest.mark.parametrize(("width", "programs", "block"), [(20, 2, 16), (20, 3, 8), (64, 4, 16), (100, 7, 16), (1000, 125, 8), (3, 4, 1)])
def test_blocks_cover_a_width(width, programs, block):
    sharing = Sharing(programs)
    assert sharing.block(width) == block
    assert sharing.block(width) * programs >= width
    assert not sharing.is_whole(width)


@pytest.mark.parametrize("width", [1, 16, 17, 100])
def test_what_every_program_has(width):
    assert Sharing(1).block(width) >= width
    assert Sharing(3, frozenset({width})).block(width) >= width
    assert Sharing(3, frozenset({width})).is_whole(width)


def test_half_precision_and_float32_of_one_vector_are_apart():
    """The state is a float32, one product reads it rounded."""
    w, u, x, start = torch.zeros(16, 16), torch.zeros(16, 16, dtype=torch.bfloat16), torch.zeros(4, 3, 16), torch.zeros(3, 16)

    def cell(inputs, state):
        new = torch.tanh(inputs + state @ w + (state.bfloat16() @ u).float())
        return new, new

    cell.output_size = cell.state_size = 16

    def loop_fn(time, output, state, loop_state):
        return time >= 4, x[time], start if output is None else state, output, None

    tiles = schedule(step(cell, loop_fn), Sharing(2)).tiles
    assert sorted(str(tile.dtype) for tile in tiles) == ["torch.bfloat16", "torch.float32"]


def test_one_group():
    assert needs_one_group(step(*reading("lstm"))) is None
    assert needs_one_group(step(*greedy("gru"))) is None
    x, start = torch.zeros(4, 3, 6), torch.zeros(3, H)

    def loop_fn(time, output, state, total):
        first = output is None
        return time >= 4, x[time], start if first else state, output, torch.zeros(3, H) if first else total + output

    assert "finished rows" in needs_one_group(step(torch.nn.RNNCell(6, H), loop_fn))
