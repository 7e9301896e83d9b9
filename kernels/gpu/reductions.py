"""The greatest number of several programs' parts. In: float32 numbers; out: int32 keys in their order, and back."""

import triton
import triton.language as tl

LOWEST32 = tl.constexpr(-(1 << 31))  # below every key


@triton.jit
def order(x):
    """``x`` float32 as int32 in the same order: the sign bit stays, below it negative numbers are turned round; NaN stands above all, so
    that the greatest of several is NaN where one of them is, as in torch."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x != x, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def unordered(key):
    """The number of a key; the inverse of `order`, which is its own inverse but for NaN."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
