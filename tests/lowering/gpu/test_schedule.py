"""Phases, barriers and tiles of steps."""

from __future__ import annotations

import pytest
import torch

import fusedrnn
from fusedrnn.lowering.gpu.schedule import needs_one_group, schedule
from fusedrnn.lowering.gpu.tiles import Sharing

from .loops import greedy, reading, start_of, step

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_barriers_of_a_layer_norm(dtype):
    """Gates, the mean and the variance of the four, and of the cell: each gate's part of a vector lies as the state does."""
    x, zeros = torch.zeros(4, 3, 6, dtype=dtype), torch.zeros(3, H, dtype=dtype)

    def loop_fn(time, output, state, loop_state):
        return time >= 4, x[time], (zeros, zeros) if output is None else state, output, None

    found = schedule(step(fusedrnn.LSTMCell(6, H, layer_norm=True).to(dtype), loop_fn), Sharing(2))
    assert len(found.barriers) == 5


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
