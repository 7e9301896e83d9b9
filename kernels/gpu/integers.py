"""Division as torch has it: towards minus infinity. In: two tensors of one dtype; out: quotient or remainder, of b's sign.

Triton's own ``//`` of integers and ``%`` are C's, towards zero, on a device and under the interpreter.
"""

import triton
import triton.language as tl


@triton.jit
def floor_divide(a, b):
    """``floor(a / b)`` of floats or of integers; an integer divided by zero is undefined.

    Of floats what is left of fmod is divided, as in torch: a / b itself may round up to the next whole number.
    """
    if a.dtype.is_floating():
        rest = a % b
        quotient = (a - rest) / b
        quotient = tl.where((rest != 0.0) & ((rest < 0.0) != (b < 0.0)), quotient - 1.0, quotient)
        whole = tl.floor(quotient)
        whole = tl.where(quotient - whole > 0.5, whole + 1.0, whole)
        whole = tl.where(quotient == 0.0, 0.0 * (a / b), whole)  # a zero of the quotient's sign
        found = tl.where(b == 0.0, a / b, whole)
    else:
        quotient = a // b
        found = tl.where((quotient * b != a) & ((a < 0) != (b < 0)), quotient - 1, quotient)
    return found


@triton.jit
def trunc_divide(a, b):
    """``trunc(a / b)`` of floats or of integers; an integer divided by zero is undefined."""
    if a.dtype.is_floating():
        quotient = a / b
        found = tl.where(quotient < 0.0, tl.ceil(quotient), tl.floor(quotient))
    else:
        found = a // b
    return found


@triton.jit
def remainder(a, b):
    """``a - b * floor(a / b)``, which has the sign of b."""
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)
