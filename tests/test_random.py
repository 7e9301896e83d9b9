"""Counter-based draws: the generator against its authors' test vectors, and that a draw depends on its place alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn import random, raw_rnn


@pytest.mark.parametrize(
    ("counter", "key", "word"),
    [  # Random123's known answers for philox4x32-10, first word
        ((0, 0, 0, 0), 0, 0x6627E8D5),
        ((0xFFFFFFFF,) * 4, -1, 0x408F276D),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0x299F31D0 << 32) | 0xA4093822, 0xD16CFE09),
    ],
)
def test_known_answers(counter, key, word):
    assert random.philox(torch.tensor([key]), torch.tensor([counter[0]]), *counter[1:]).item() == word


def test_triton_draws_the_same_words():
    pytest.importorskip("triton")
    script = Path(__file__).with_name("philox_in_triton.py")
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@given(st.integers(-(2**63), 2**64), st.integers(1, 40))
def test_row_seeds_differ_between_rows_and_stay_with_them(seed, batch):
    seeds = random.row_seeds(seed, batch)
    assert seeds.unique().numel() == batch
    assert torch.equal(random.row_seeds(seed, batch + 3)[:batch], seeds)


def test_row_seeds_pass_through_and_are_checked():
    own = torch.tensor([3, 1], dtype=torch.int32)
    assert torch.equal(random.row_seeds(own, 2), own.long())
    with pytest.raises(ValueError, match=r"integer tensor \[3\], got torch.int32 of shape \[2\]"):
        random.row_seeds(own, 3)


def test_uniform_is_inside_the_unit_interval_and_flat():
    draws = random.uniform((4096,), random.row_seeds(1, 16), dtype=torch.float32)
    assert draws.min() > 0
    assert draws.max() < 1
    counts = torch.histc(draws, 16, 0, 1)
    assert ((counts - 4096).abs() < 5 * 4096**0.5).all()
    # Neighbouring rows and columns are uncorrelated.
    assert torch.corrcoef(draws)[0, 1:].abs().max() < 0.08
    assert torch.corrcoef(torch.stack([draws[:, :-1].flatten(), draws[:, 1:].flatten()]))[0, 1].abs() < 0.02


def test_gumbel_and_bernoulli_have_their_moments():
    seeds = random.row_seeds(2, 64)
    gumbel = random.gumbel((2048,), seeds, dtype=torch.float64)
    assert abs(gumbel.mean() - 0.57722) < 0.02
    assert abs(gumbel.var() - torch.pi**2 / 6) < 0.05
    assert abs(random.bernoulli((2048,), seeds, p=0.3).double().mean() - 0.3) < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gumbel_is_finite_in_every_dtype(dtype):
    draws = random.gumbel((512,), random.row_seeds(3, 64), dtype=dtype)
    assert draws.dtype == dtype
    assert torch.isfinite(draws).all()


def drawn(seeds, steps=4, per_step=2):
    """What a loop draws at each step: ``[steps, per_step, B, 3]``."""
    seen = []

    class Cell:
        output_size = state_size = 1

        def __call__(self, x, s):
            seen.append([random.uniform((3,), seeds)])
            return x, s

    def loop_fn(time, out, state, _):
        if out is not None:
            seen[-1] += [random.uniform((3,), seeds) for _ in range(per_step - 1)]
        ones = torch.ones(len(seeds), 1)
        return time >= steps, ones, ones, out, None

    raw_rnn(Cell(), loop_fn)
    return torch.stack([torch.stack(step) for step in seen])


def test_a_draw_depends_on_seed_step_and_site_alone():
    seeds = random.row_seeds(7, 5)
    batch = drawn(seeds)
    assert torch.equal(batch, drawn(seeds))
    assert batch.flatten().unique().numel() == batch.numel()
    for row in range(5):
        assert torch.equal(drawn(seeds[row : row + 1]), batch[:, :, row : row + 1])
    assert torch.equal(drawn(seeds.flip(0)), batch.flip(2))


def test_nested_loops_draw_anew_at_each_outer_step():
    seeds = random.row_seeds(7, 2)
    seen = []

    class Outer:
        output_size = state_size = 1

        def __call__(self, x, s):
            seen.append(drawn(seeds, steps=2))
            return x, s

    ones = torch.ones(2, 1)
    raw_rnn(Outer(), lambda t, out, s, ls: (t >= 3, ones, ones, out, None))
    draws = torch.stack(seen)
    assert draws.flatten().unique().numel() == draws.numel()


def test_every_step_false_repeats_a_draw():
    seeds = random.row_seeds(7, 2)
    seen = []

    class Cell:
        output_size = state_size = 1

        def __call__(self, x, s):
            seen.append(random.bernoulli((64,), seeds, every_step=False))
            return x, s

    ones = torch.ones(2, 1)
    raw_rnn(Cell(), lambda t, out, s, ls: (t >= 3, ones, ones, out, None))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_row_seed_is_checked():
    with pytest.raises(ValueError, match=r"row_seed must be int64 \[B\], got torch.int32"):
        random.uniform((), torch.zeros(2, dtype=torch.int32))


def test_the_seed_of_one_row_is_that_of_all_rows():
    for seed in (0, 1, -3, 2**63 - 1, -(2**63), 12345678901234567890):
        assert [random.row_seed(seed, row) for row in range(4)] == random.row_seeds(seed, 4).tolist()
