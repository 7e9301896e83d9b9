"""Weights of one byte in registers. In: a tile of int8, or of float8 e4m3 as uint8; out: the same numbers in another dtype, exactly."""

import triton
import triton.language as tl


@triton.jit
def opaque(w, ASM: tl.constexpr):
    """``w``, of which the compiler knows nothing: it would convert it before the loop, and keep twice or four times the bytes."""
    if ASM:
        w = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [w], dtype=w.dtype, is_pure=False, pack=4)
    return w


@triton.jit
def converted(w, OF: tl.constexpr):
    """int8, or the bits of float8 e4m3 as uint8, as OF."""
    return e4m3(w).to(OF) if w.dtype == tl.uint8 else w.to(OF)


@triton.jit
def e4m3(w):
    """Bits of float8 e4m3 (uint8: a sign, four bits of an exponent with bias 7, three of a fraction; OCP 8-bit floating point, 2023) as
    float32. NaN is not told apart: no weight is."""
    bits = w.to(tl.int32)
    fraction = (bits & 0x07).to(tl.float32) * 0.001953125  # 2^-9
    rebiased = (((bits & 0x7F) << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    size = tl.where((bits & 0x78) == 0, fraction, rebiased)
    return tl.where((bits & 0x80) != 0, -size, size)
