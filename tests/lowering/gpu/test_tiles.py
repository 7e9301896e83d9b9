"""Tiles of products: which stand in one, and which wait for one another."""

from __future__ import annotations

import os

import pytest
import torch

from fusedrnn.lowering.gpu.schedule import schedule
from fusedrnn.lowering.gpu.tiles import Sharing

from ...executors.layouts import planning
from ...executors.loops import both
from .loops import several, step

H = 32


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


def waiting(kind):
    """A vector that is known a barrier before another one; what becomes of its product."""
    torch.manual_seed(3)
    weights = [torch.randn(H, H) / H for _ in range(4)]
    start = torch.zeros(3, H), torch.zeros(3, H)

    class Cell:
        output_size, state_size = H, (H, H)

        def __call__(self, inputs, state):
            h, c = state
            known = torch.sigmoid(inputs - h)
            second = torch.tanh(torch.tanh(h + inputs) @ weights[0])
            product, last = known @ weights[1], second @ weights[2]
            if kind == "added":
                return last, (last + product, c)
            if kind == "of no hurry":
                return last, (last, c + product.sin() * last)
            if kind == "needed at once":
                return last, (last + torch.sin(torch.tanh(product) @ weights[3]), c)
            if kind == "multiplied":
                return last, (last + product @ weights[3], c)
            return last, (last, product)  # the next state

    def loop_fn(time, output, state, loop_state):
        return time >= 4, torch.ones(3, H) * time, start if output is None else state, output, None

    return Cell(), loop_fn


WAITING = {"added": True, "of no hurry": False, "needed at once": False, "multiplied": False, "the next state": False}


@pytest.mark.parametrize("kind", WAITING)
def test_a_product_waits_for_those_that_it_is_added_to(kind):
    found = schedule(step(*waiting(kind)), Sharing(2, least_rows=64), stack=8)
    apart = schedule(step(*waiting(kind)), Sharing(2, least_rows=64))
    assert len(found.barriers) == len(apart.barriers)
    last = max(tile.phase for tile in found.tiles if not tile.only_carried)
    early = [exchange.phase for exchange in found.exchanges if exchange.leaf is None].count(0)
    assert early == (1 if WAITING[kind] else 2)
    for tile in found.tiles:
        if tile.phase == last and WAITING[kind]:
            assert tile.vectors == 2
            assert all(found.phase_of[product.node] == last for product, _ in tile.segments)


@pytest.mark.skipif(os.environ["FUSEDRNN_EMULATE"] != "1", reason="no kernel is emulated")
@pytest.mark.parametrize("kind", WAITING)
def test_products_that_wait_are_the_same(kind, monkeypatch):
    planning(monkeypatch, least_rows=64, stack=8)
    both(waiting(kind))
