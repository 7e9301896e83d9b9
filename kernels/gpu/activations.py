"""Pointwise functions, accurate in float32. In: float32 tiles; out: the same shape, NaN where the argument is.

Errors are in units in the last place (ulp) against float64, the largest seen over all magnitudes under the interpreter, rounded up. A
device's ``ex2.approx`` and ``div.full`` may each add up to two, and it flushes results below 2^-126 to zero. tl.sigmoid computes exp(-x)
with a relative error that grows with x (60 ulp at -80), and 2 * sigmoid(2x) - 1 loses all of a small tanh.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950216293335)  # log2(e) as a float32, and what that leaves out
LOG2E_LOW = tl.constexpr(1.9259629911266175e-08)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def signed(size, sign):
    """``size`` with the sign of ``sign``, of zero too."""
    bits = (size.to(tl.int32, bitcast=True) & 0x7FFFFFFF) | (sign.to(tl.int32, bitcast=True) & -0x80000000)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def exp_of_negative(x):
    """e^x for x <= 0: 1 ulp. The rounding error of x * log2(e) is found by fma and put right after exp2."""
    x = tl.where(x < -128.0, -128.0, x)  # zero as well, and infinity - infinity below is avoided
    power = x * LOG2E
    rest = tl.fma(x, LOG2E_LOW, tl.fma(x, LOG2E, -power))
    e = tl.exp2(power)
    return tl.fma(e, rest * LN2, e)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x): 3 ulp."""
    e = exp_of_negative(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def tanh(x):
    """2 ulp. Below 0.625 the polynomial of Cephes' tanhf (Moshier 1992), else 1 - 2 / (e^2x + 1)."""
    size = tl.abs(x)
    square = x * x
    p = tl.fma(square, -5.70498872745e-3, 2.06390887954e-2)
    p = tl.fma(p, square, -5.37397155531e-2)
    p = tl.fma(p, square, 1.33314422036e-1)
    p = tl.fma(p, square, -3.33332819422e-1)
    near = tl.fma(p * square, size, size)
    far = 1.0 - 2.0 / (tl.exp2(size * (2.0 * LOG2E)) + 1.0)
    return signed(tl.where(size < 0.625, near, far), x)


@triton.jit
def expm1(x):
    """e^x - 1: 6 ulp. Below 0.7 x + x^2 q(x), q the minimax polynomial of degree 6 on [-0.72, 0.72] in single precision (error 2^-29)."""
    q = tl.fma(x, 2.4779596060398035e-05, 2.0115589722990990e-04)
    q = tl.fma(q, x, 1.3890675036236644e-03)
    q = tl.fma(q, x, 8.3325151354074478e-03)
    q = tl.fma(q, x, 4.1666608303785324e-02)
    q = tl.fma(q, x, 1.6666673123836517e-01)
    q = tl.fma(q, x, 0.5)
    near = signed(tl.fma(q * x, x, x), x)
    half = exp_of_negative(-0.5 * tl.abs(x))  # squared below: e^-|x| itself would be denormal where 1 / e^-|x| is still finite
    root = tl.where(x < 0.0, half, 1.0 / half)
    return tl.where(tl.abs(x) < 0.7, near, tl.fma(root, root, -1.0))


@triton.jit
def log1p(x):
    """log(1 + x): 4 ulp. With u = 1 + x rounded, log(u) * x / (u - 1) (Kahan; Goldberg 1991, theorem 4)."""
    u = 1.0 + x
    far = tl.log(u) * (x / (u - 1.0))
    return tl.where(u == 1.0, x, tl.where(u == float("inf"), u, far))


@triton.jit
def softplus(x):
    """log(1 + e^x): 5 ulp."""
    return tl.where(x != x, x, tl.where(x > 0.0, x, 0.0) + log1p(exp_of_negative(-tl.abs(x))))


@triton.jit
def power(x, y):
    """x^y with the special cases of C's pow: of a result between 2^-k and 2^k 2 + k ulp, as y * log2|x| is rounded before exp2."""
    x, y = tl.where(y == y, x, x), tl.where(x == x, y, y)  # one of them may be a number of Python's
    size = tl.where(tl.abs(x) == 1.0, 1.0, tl.exp2(y * tl.log2(tl.abs(x))))
    whole = tl.floor(y) == y
    odd = whole & (tl.floor(0.5 * y) * 2.0 != y) & (tl.abs(y) < 16777216.0)  # beyond 2^24 all float32 are even
    made = tl.where(odd, signed(size, x), size)
    made = tl.where((x < 0.0) & (x > -float("inf")) & (whole == 0), float("nan"), made)
    return tl.where((y == 0.0) | (x == 1.0), 1.0, made)


@triton.jit
def erf(x):
    """The error function, of CUDA's libdevice (2 ulp) and of C's library under the interpreter."""
    return tl.math.erf(x)
