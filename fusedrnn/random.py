"""Random draws that are a function of their place: the row's seed, the row's step, the call site and the column, and nothing else.

A row draws the same numbers alone, in any batch and in every executor. The generator is Philox4x32-10 (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3"), keyed by the row's seed, with the counter (column, time, call site, lineage);
the first of its four words is the draw. Triton's ``tl.philox`` computes the same words.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch

from . import frames

# Multipliers and Weyl increments of Philox4x32 (Salmon et al. 2011, section 4.3 and table 2).
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_NO_TIME = _LOW  # the time of draws that are the same at every step: no loop gets there


def philox(key: torch.Tensor, c0: torch.Tensor, c1: int | torch.Tensor, c2: int, c3: int) -> torch.Tensor:
    """The first word of Philox4x32-10.

    Args:
        key: int64, the 64-bit key; broadcasts with ``c0``.
        c0: int64 in [0, 2^32), the first counter word.
        c1, c2, c3: the other counter words, in [0, 2^32); c1 also as an int64 tensor on key's device that broadcasts with ``c0``.

    Returns:
        int64 in [0, 2^32), of the broadcast shape.
    """
    k0, k1 = key & _LOW, (key >> 32) & _LOW
    x0 = c0 + torch.zeros_like(key)
    x1, x2, x3 = (
        word & _LOW if isinstance(word, torch.Tensor) else torch.full((), word & _LOW, dtype=torch.int64, device=key.device)
        for word in (c1, c2, c3)
    )
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64, so both 32-bit halves come out right.
        p0, p1 = x0 * _M0, x2 * _M1
        x0, x1, x2, x3 = ((p1 >> 32) & _LOW) ^ x1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ x3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return x0


def row_seeds(seed: int | torch.Tensor, batch_size: int, device: torch.device | str | None = None) -> torch.Tensor:
    """``[batch_size]`` int64: the seed of each row, from one seed for all of them (SplitMix64 of ``seed + row``), or ``seed`` itself
    where it is a ``[batch_size]`` integer tensor already."""
    if isinstance(seed, torch.Tensor) and seed.ndim:
        if seed.shape != (batch_size,) or seed.is_floating_point() or seed.dtype == torch.bool:
            raise ValueError(f"seed must be an int or an integer tensor [{batch_size}], got {seed.dtype} of shape {list(seed.shape)}")
        return seed.to(torch.int64)
    base = seed if isinstance(seed, torch.Tensor) else signed(operator.index(seed))
    # Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"; constants as two's complement int64.
    z = torch.arange(batch_size, dtype=torch.int64, device=device) + base
    z = z * signed(0x9E3779B97F4A7C15)
    z = (z ^ ((z >> 30) & (2**34 - 1))) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ ((z >> 27) & (2**37 - 1))) * signed(0x94D049BB133111EB)
    return z ^ ((z >> 31) & (2**33 - 1))


def row_seed(seed: int, row: int = 0) -> int:
    """The seed of one row, as `row_seeds` gives it, as a Python number."""
    z = (seed + row) * 0x9E3779B97F4A7C15 & 2**64 - 1
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
    z = (z ^ z >> 27) * 0x94D049BB133111EB & 2**64 - 1
    return signed(z ^ z >> 31)


def signed(word: int) -> int:
    """The lowest 64 bits of a whole number, as two's complement."""
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word


def uniform(
    shape_per_row: Sequence[int], row_seed: torch.Tensor, *, dtype: torch.dtype | None = None, every_step: bool = True
) -> torch.Tensor:
    """Uniform draws in (0, 1), never 0 or 1: odd multiples of 2^-24, which float32 holds exactly.

    Args:
        shape_per_row: shape of one row's draws; ``()`` for one number a row.
        row_seed: ``[B]`` int64, as `row_seeds` makes them.
        dtype: floating dtype of the result, torch's default if None. Lower precisions round.
        every_step: False draws the same numbers at every step of a loop (a dropout mask kept for a whole sequence).

    Returns:
        ``[B, *shape_per_row]``, the same numbers for the same row seed, step and call site in every executor.

    Raises:
        ValueError: ``row_seed`` is not int64 ``[B]``.
    """
    if row_seed.ndim != 1 or row_seed.dtype != torch.int64:
        raise ValueError(f"row_seed must be int64 [B], got {row_seed.dtype} of shape {list(row_seed.shape)}")
    shape = tuple(shape_per_row)
    word = _words(row_seed, math.prod(shape), every_step)
    draws = ((word >> 9) * 2 + 1).to(torch.float64 if dtype == torch.float64 else torch.float32) * 2.0**-24
    return draws.to(dtype or torch.get_default_dtype()).reshape(row_seed.shape[0], *shape)


def _words(row_seed: torch.Tensor, columns: int, every_step: bool) -> torch.Tensor:
    """``[B, columns]`` int64 in [0, 2^32): the words of the next call site of the running loop's step."""
    frame = frames.current()
    time, site, lineage = (0, 0, 0) if frame is None else (frame.time if every_step else _NO_TIME, frame.next_site(), frame.lineage)
    if frame is not None and frame.clock is not None:  # a step is being captured: one node instead of the rounds
        clock = frame.clock if every_step else torch.full((), -1, dtype=torch.int32)
        return torch.ops.fusedrnn.draw(row_seed, columns, clock, site, lineage)  # type: ignore[no-any-return]
    column = torch.arange(columns, dtype=torch.int64, device=row_seed.device)
    return philox(row_seed[:, None], column, time, site, lineage)


def gumbel(shape_per_row: Sequence[int], row_seed: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Standard Gumbel draws, ``-log(-log(u))`` of `uniform`; the largest of logits plus these is a draw from their softmax
    (Gumbel 1954; Maddison et al. 2014). The bits of ``u`` are the same everywhere, the logarithms are the platform's.
    Raises as `uniform`."""
    dtype = dtype or torch.get_default_dtype()
    draws = uniform(shape_per_row, row_seed, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return -torch.log(-torch.log(draws)).to(dtype)


def bernoulli(
    shape_per_row: Sequence[int], row_seed: torch.Tensor, *, p: float | torch.Tensor = 0.5, every_step: bool = True
) -> torch.Tensor:
    """Bool draws ``[B, *shape_per_row]``, True with probability ``p`` (a number, or a tensor that broadcasts to the result).
    Raises as `uniform`."""
    return uniform(shape_per_row, row_seed, dtype=torch.float32, every_step=every_step) < p
