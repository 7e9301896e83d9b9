"""Integer and float division as torch has it: towards minus infinity. In: two tensors; out: quotient or remainder, of b's sign."""

import triton
import triton.language as tl


@triton.jit
def floor_divide(a, b):
    """``floor(a / b)`` of floats or of integers; an integer divided by zero is undefined."""
    if a.dtype.is_floating():
        return tl.floor(a / b)
    quotient = a // b
    return tl.where((quotient * b != a) & ((a < 0) != (b < 0)), quotient - 1, quotient)


@triton.jit
def remainder(a, b):
    """``a - b * floor(a / b)``, which has the sign of b."""
    if a.dtype.is_floating():
        return a - b * tl.floor(a / b)
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)
