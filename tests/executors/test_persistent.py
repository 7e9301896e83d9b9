"""Persistent kernels, emulated: the edges of a loop, dtypes, gradients and surroundings."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn.capture import cache
from fusedrnn.executors import persistent, persistent_call
from fusedrnn.kernels.gpu.launch import emulation

from .layouts import assert_same, assert_same_bits, outcome
from .loops import D, H, T, both, cell_of, endless, greedy, reading, run, start_of

if os.environ["FUSEDRNN_EMULATE"] != "1":
    pytest.skip("no kernel is emulated", allow_module_level=True)


@pytest.mark.parametrize(
    "lengths",
    [[5, 2, 0, 1], [1], [0, 1], [1, 1, 1], [0, 0, 0], [], [5] * 16, [3, 5] * 16 + [4]],
    ids=lambda lengths: f"{len(lengths)} rows",
)
def test_lengths(lengths):
    result = both(reading(lengths=lengths))
    assert result.lengths.tolist() == lengths


@pytest.mark.parametrize("kind", ["lstm", "gru", "tf gru", "rnn"])
def test_one_step(kind):
    both(reading(kind, [1, 0, 1], steps=1))


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_emits_that_are_put_together(steps):
    """Vectors, numbers of a row and what is known before the loop, cut off and past the end of rows too."""
    cell, loop_fn = reading("lstm", [5, 2, 0, 1])
    of_rows, of_none = torch.randn(4, 3), torch.randn(2)

    def joined(time, output, state, loop_state):
        finished, inputs, new, _, carried = loop_fn(time, output, state, loop_state)
        if output is None:
            return finished, inputs, new, (torch.zeros(3 * H + 6), torch.zeros(2, H)), carried
        h, c = state
        whole = torch.cat([h, c.sin() * time, h.mean(1, keepdim=True), of_rows, of_none.expand(4, 2), c], 1)
        return finished, inputs, new, (whole, torch.stack([h, c], 1)), carried

    both((cell, joined), max_steps=steps)


@pytest.mark.parametrize("steps", [1, 3, 5, 9])
def test_max_steps(steps):
    result = both(reading(), max_steps=steps)
    assert result.truncated.tolist() == [length > steps for length in (5, 2, 0, 1)]


def test_a_loop_that_never_ends_is_cut_off():
    cell, loop_fn = endless(until=1e9)
    result = both((cell, loop_fn), max_steps=7)
    assert result.truncated.all()
    assert result.emit_ta.size() == 7


@pytest.mark.parametrize("first", [1, 3, 64])
def test_without_a_bound_launches_resume(monkeypatch, first):
    """However many steps a launch has, the bits are the same."""
    loop = endless()
    whole = run(loop)
    monkeypatch.setattr(persistent_call, "_FIRST_STEPS", first)
    launches = emulation.launches
    assert_same_bits(run(loop), whole)
    assert (emulation.launches - launches) == {1: 5, 3: 4, 64: 1}[first]  # 22 steps: 1 + 2 + 4 ...
    assert whole.lengths.tolist() == run(loop, "reference").lengths.tolist()


@pytest.mark.parametrize("iterations", [1, 2, 32])
def test_parallel_iterations(iterations):
    """As many steps are made ahead at a time; it decides no bit."""
    loop = reading()
    launches = emulation.launches
    result = run(loop, parallel_iterations=iterations)
    assert emulation.launches - launches == -(-T // iterations)
    assert_same_bits(result, run(loop))


def test_little_memory_for_what_is_made_ahead(monkeypatch):
    loop = reading()
    whole = run(loop)
    monkeypatch.setattr(persistent_call, "_MOST_AHEAD", 4 * 4 * 5 * H * 2)
    launches = emulation.launches
    assert_same_bits(run(loop), whole)
    assert emulation.launches - launches > 1


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_finished_rows_hold_stays_there(poison):
    x = torch.randn(T, 4, D, generator=torch.Generator().manual_seed(2))
    for row, length in enumerate((5, 2, 0, 1)):
        x[length:, row] = poison
    result = both(reading(x=x))
    assert all(leaf.isfinite().all() for leaf in outcome(result))


def test_a_row_may_be_nan():
    """Row 1 alone is."""
    x = torch.randn(T, 4, D, generator=torch.Generator().manual_seed(2))
    x[0, 1] = torch.nan
    emits = both(reading(x=x)).emit_ta.stack()
    assert emits[:2, 1].isnan().all()
    assert emits[:, [0, 2, 3]].isfinite().all()


@torch.no_grad()
def test_infinities_in_full_float32(monkeypatch):
    """A product of three tf32 products: what is infinite has no second part."""
    monkeypatch.setattr(persistent, "_precision", lambda device: "hilo")
    cache.clear()
    cell, x, start = nn.RNNCell(4, 8), torch.randn(3, 3, 4), torch.rand(3, 8)
    cell.weight_hh.copy_(torch.rand(8, 8) + 0.1)
    start[0, 0] = torch.inf

    def loop_fn(time, output, state, loop_state):
        return time >= 3, x[time], start if output is None else state, output, None

    both((cell, loop_fn))
    cache.clear()


@pytest.mark.parametrize("lengths", [[1, 2], [5, 0], [3]])
def test_written_arrays(lengths):
    """Rows, numbers, and what is of no row: as many as the loop has steps."""
    batch, ends = len(lengths), torch.tensor(lengths)
    x, start = torch.ones(T, batch, D), torch.ones(batch, H)

    def loop_fn(time, output, state, arrays):
        if output is None:
            return time >= ends, x[time], start, None, tuple(fusedrnn.TensorArray(torch.float32, T) for _ in range(3))
        rows, numbers, clock = arrays
        arrays = rows.write(time - 1, output), numbers.write(2 * time, output.sum(1)), clock.write(time - 1, time * 0.5)
        return time >= ends, x[time], state, output, arrays

    both((cell_of("rnn"), loop_fn))


def gradients(loop, leaves, backend):
    result = run(loop, backend)
    loss = sum((leaf * torch.linspace(-1, 1, leaf.numel()).reshape(leaf.shape)).sum() for leaf in outcome_with_gradients(result))
    return torch.autograd.grad(loss, leaves)


def outcome_with_gradients(result):
    emits, state, _ = result
    return [emits.stack(), *(state if isinstance(state, tuple) else [state])]


@pytest.mark.parametrize("kind", ["lstm", "tf gru"])
def test_gradients(kind):
    x = torch.randn(T, 4, D, requires_grad=True)
    loop = reading(kind, x=x)
    leaves = [x, *loop[0].parameters()]
    found, wanted = (gradients(loop, leaves, backend) for backend in ("persistent", "reference"))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradients_are_kept(mode):
    loop = reading()
    with mode():
        result = both(loop)
        assert not any(leaf.requires_grad for leaf in outcome_with_gradients(result))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lstm", "tf gru"])
def test_half_precision(kind, dtype):
    """At most twice as far from float64 as the plain loop in that dtype."""
    exact = outcome(run(rounded(kind, dtype), "reference"))
    mine, plain = outcome(run(reading(kind, dtype=dtype))), outcome(run(reading(kind, dtype=dtype), "reference"))
    assert mine[0].dtype == dtype
    for one, other, want in zip(mine, plain, exact, strict=True):
        assert one.dtype == other.dtype
        error, allowed = ((value.double() - want.double()).abs().max().item() for value in (one, other))
        assert error <= 2 * allowed + 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_greedy_decode_in_half_precision(dtype):
    """The tokens are those of the plain loop: the seed leaves no two words close."""
    loop = greedy(dtype=dtype)
    found, plain = run(loop), run(loop, "reference")
    assert torch.equal(found.emit_ta.stack(), plain.emit_ta.stack())
    assert torch.equal(found.lengths, plain.lengths)


def rounded(kind, dtype):
    """The loop of that dtype, computed in float64."""
    cell = cell_of(kind, dtype).double()
    x = torch.randn(T, 4, D, generator=torch.Generator().manual_seed(2)).to(dtype).double()
    ends = torch.tensor([5, 2, 0, 1])
    start = start_of(cell, 4, dtype)
    start = tuple(leaf.double() for leaf in start) if isinstance(start, tuple) else start.double()

    def loop_fn(time, output, state, loop_state):
        return time >= ends, x[time], start if output is None else state, output, None

    return cell, loop_fn


def test_a_table_that_is_carried():
    """It is what it is now, not what it was before the loop."""
    x, start = torch.randn(T, 3, D), torch.randn(3, H)

    def loop_fn(time, output, state, table):
        if output is None:
            return time >= T, x[time], start, None, torch.randn(2, H // 2, generator=torch.Generator().manual_seed(3))
        state = state * 0.5 + nn.functional.embedding(state.argmax(1) % 2, table).repeat(1, 2)
        return time >= T, x[time], state, output, table * 1.1

    both((cell_of("rnn").requires_grad_(False), loop_fn))


def test_a_sum_converts_before_it_adds():
    x, start = torch.randn(T, 3, D), torch.randn(3, H)

    def loop_fn(time, output, state, loop_state):
        state = start if output is None else state * 0.5 + 0.1 * (state * 3).sum(1, keepdim=True, dtype=torch.int32)
        return time >= T, x[time], state, output, None

    both((cell_of("rnn").requires_grad_(False), loop_fn))


def test_autocast():
    loop = reading("gru")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = run(loop), run(loop, "reference")
    assert_same(got, want, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_g2p_decodes_the_same_phonemes():
    from fusedrnn.models import G2P, g2p_checkpoint, g2p_numpy

    words = sorted({f"{a}{b}{c}" for a in ("re", "un", "k") for b in ("ight", "ola", "ess", "xyz", "ing") for c in ("", "s", "ment", "er")})
    arrays = g2p_checkpoint.arrays()
    launches = emulation.launches
    found = G2P.pretrained()(words, backend="persistent")
    assert emulation.launches > launches
    assert found == [g2p_numpy.decode(arrays, word) for word in words]
    assert len(words) == 60
    assert np.mean([len(one) for one in found]) > 3
