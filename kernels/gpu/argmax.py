"""Argmax across programs. In: numbers and their columns; out: int64 keys, whose maximum is torch's argmax: ties to the lowest index."""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(1 << 63))  # below every key


@triton.jit
def order_key(x, index):
    """``x`` float32 and ``index`` int32 (not negative), broadcast together, as one int64 each.

    High word: the bits of x, ordered as integers: the sign bit stays, below it negative numbers are turned round; -0 counts as +0 and NaN
    above all, as in torch. Low word: 0x7FFFFFFF - index, so that among equals the lowest index is the greatest key.
    """
    x = tl.where(x == 0, 0.0, x)
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(x != x, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (bits.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def key_index(key, SIZE: tl.constexpr):
    """The index of a key (int32), within ``[0, SIZE)`` whatever the key: after a time-out it may be anything."""
    index = 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)
    return tl.minimum(tl.maximum(index, 0), SIZE - 1)
