"""What is moved out of the step, and the bounds on its number: the moved program computes what the loop did."""

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import contract, feedback, frames, raw_rnn
from fusedrnn.capture import cache
from fusedrnn.lowering.source import loop_source
from fusedrnn.optimise.bounds import bounds

T, B, D, H, V = 7, 19, 4, 6, 11

pytestmark = pytest.mark.usefixtures("float64")


def program(cell, loop_fn):
    with frames.running() as frame:
        call = contract.Call(fusedrnn.cells.protocol.as_cell(cell), loop_fn)
        return cache.captured(call, frame, contract.start(call, frame))[0]


def source(cell, loop_fn):
    found = program(cell, loop_fn)
    return loop_source(found, found.batch)


def agrees(cell, loop_fn, **options):
    with torch.no_grad():
        mine, theirs = (raw_rnn(cell, loop_fn, backend=backend, **options) for backend in ("native", "reference"))
    torch.testing.assert_close(mine[0].stack(), theirs[0].stack())
    torch.testing.assert_close(mine[1], theirs[1])


@pytest.fixture
def parts():
    cell, embedding, project = nn.GRUCell(D, H), nn.Embedding(V, D), nn.Linear(H, V)
    return cell, embedding, project, torch.randn(T, B, D), torch.randint(0, T + 1, (B,)), torch.randn(B, H)


def test_products_of_reads_are_made_ahead(parts):
    cell, _, _, x, lengths, h = parts
    loop_fn = feedback.sequence(x, lengths, h)
    assert source(cell, loop_fn).moved.hoisted == [f"a product [{D}, {3 * H}] of inputs"]
    for at_once in (None, 1, 2, 50):
        agrees(cell, loop_fn, parallel_iterations=at_once)


def test_each_of_several_inputs_is_its_own():
    class Sums:
        output_size = state_size = H

        def __init__(self):
            self.weights = [torch.randn(D, H) for _ in range(4)]

        def __call__(self, inputs, state):
            state = torch.tanh(state + sum(x @ weight for x, weight in zip(inputs, self.weights, strict=True)))
            return state, state

    cell, loop_fn = Sums(), feedback.sequence(tuple(torch.randn(T, B, D) for _ in range(4)), None, torch.zeros(B, H))
    assert len(source(cell, loop_fn).moved.hoisted) == 4
    agrees(cell, loop_fn)


def test_inputs_made_of_the_time_in_other_ways(parts):
    cell, _, _, x, lengths, h = parts
    for read in (lambda t: x[T - 1 - t], lambda t: x[t] * 2 + x[t - 1], lambda t: torch.ones_like(x[0]) * t, lambda t: x.mean(0)):

        def loop_fn(time, output, state, _, read=read):
            return time >= lengths, read(time), h if output is None else state, output, None

        assert len(source(cell, loop_fn).moved.hoisted) == 1
        agrees(cell, loop_fn)


def test_the_first_input_may_be_any(parts):
    """What time 0 reads need not be what the later times would."""
    cell, _, _, x, lengths, h = parts
    first = torch.randn(B, D)

    def loop_fn(time, output, state, _):
        return time >= lengths, first if output is None else x[time], h if output is None else state, output, None

    agrees(cell, loop_fn)


@pytest.mark.parametrize("tokens_are_read", [False, True])
def test_a_product_with_an_embedding_becomes_a_row_of_a_table(parts, tokens_are_read):
    cell, embedding, project, _, lengths, h = parts
    tokens = torch.randint(0, V, (T, B))

    def loop_fn(time, output, state, _):
        if output is None:
            return lengths <= 0, torch.randn(B, D, generator=torch.Generator().manual_seed(1)), h, torch.tensor(0), None
        token = tokens[time] if tokens_are_read else project(output).argmax(-1)
        return time >= lengths, embedding(token), state, token, None

    found = source(cell, loop_fn)
    assert found.moved.folded == [f"a product [{D}, {3 * H}] with an embedding's row"]
    assert found.moved.tables == {0: V}
    agrees(cell, loop_fn)
    with torch.no_grad():
        embedding.weight.mul_(2)  # the table is made anew
    agrees(cell, loop_fn)


def test_a_token_that_the_embedding_does_not_have(parts):
    cell, embedding, _, _, _, h = parts

    def loop_fn(time, output, state, _):
        if output is None:
            return torch.zeros(B, dtype=torch.bool), torch.zeros(B, D), h, torch.tensor(0), None
        token = torch.full((B,), 8) + time
        return time >= T, embedding(token), state, token, None

    for backend in ("reference", "native"):
        with torch.no_grad(), pytest.raises(IndexError, match=r"loop_fn at time 3 looks up index 11 .* in an embedding of 11 rows"):
            raw_rnn(cell, loop_fn, backend=backend)


def test_the_product_of_an_emit_is_made_after_the_loop(parts):
    cell, _, project, x, lengths, h = parts

    def loop_fn(time, output, state, _):
        emit = torch.zeros(V) if output is None else torch.tanh(project(output)) + 1
        return time >= lengths, x[time], h if output is None else state, emit, None

    assert source(cell, loop_fn).sunk.lines == [f"a product [{H}, {V}] of an emit"]
    agrees(cell, loop_fn)
    agrees(cell, loop_fn, max_steps=3)


def test_a_product_that_feeds_back_stays(parts):
    cell, embedding, project, _, _, h = parts
    loop_fn = feedback.greedy(embedding, project, 0, 3, h, 9, emit="both")
    assert source(cell, loop_fn).sunk.lines == []
    with torch.no_grad():
        mine, theirs = (raw_rnn(cell, loop_fn, backend=backend)[0] for backend in ("native", "reference"))
    assert mine.sample_id.stack().equal(theirs.sample_id.stack())
    torch.testing.assert_close(mine.rnn_output.stack(), theirs.rnn_output.stack())


def test_bounds(parts):
    cell, embedding, project, x, lengths, h = parts
    assert [str(bound) for bound in bounds(program(cell, feedback.greedy(embedding, project, 0, 3, h, 9)))] == ["9"]
    reads = bounds(program(cell, feedback.sequence(x, lengths, h)))
    assert len(reads) == 1
    assert not reads[0].is_number  # x's length, whatever it is
    assert bounds(program(cell, feedback.greedy(embedding, project, 0, 3, h))) == []
