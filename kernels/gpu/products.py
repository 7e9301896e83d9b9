"""Products in the loop. In: a program's rows of a packed weight and a vector of every row of the batch tile; out: ``W @ x^T`` in float32.

A product is ``acc[M, BB] += W[M, K] @ x^T[K, BB]``: the weight's columns stand in M, the batch tile in N. With M >= 64 that is wgmma on
sm_90; ``x @ W`` with wide tiles spills there. K goes in chunks of KC, so that no operand is huge; tuples of tiles hold the chunks.

PREC says how float32 is multiplied: "ieee" (the interpreter, exact), "tf32", or "hilo": full accuracy by three tf32 products, of which the
host has split the weight (``far`` is the distance to the low parts). Half precisions pass "tf32", which they ignore.
"""

import triton
import triton.language as tl


@triton.jit
def resident(w, far, m, k, K: tl.constexpr, KC: tl.constexpr, PREC: tl.constexpr):
    """Rows ``m`` of ``w`` ``[.., K]`` as a tuple of tiles ``[M, KC]``. Loaded before the loop they stay in shared memory or registers."""
    ws = ()
    for j in tl.static_range(0, K // KC):
        ws = ws + (tl.load(w + m[:, None] * K + j * KC + k[None, :]),)
    if PREC == "hilo":
        for j in tl.static_range(0, K // KC):
            ws = ws + (tl.load(w + far + m[:, None] * K + j * KC + k[None, :]),)
    return ws


@triton.jit
def truncated(x):
    """The part of a float32 that tf32 holds."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def vector(src, rows, k, WIDTH: tl.constexpr, K: tl.constexpr, KC: tl.constexpr, PREC: tl.constexpr):
    """``x^T`` as a tuple of tiles ``[KC, BB]`` from ``src`` ``[rows, WIDTH]``, past L1: others wrote it. Columns from WIDTH on are zero."""
    hs = ()
    lows = ()
    for j in tl.static_range(0, K // KC):
        if (j + 1) * KC <= WIDTH:
            h = tl.load(src + rows[None, :] * WIDTH + j * KC + k[:, None], cache_modifier=".cg")
        else:
            h = tl.load(
                src + rows[None, :] * WIDTH + j * KC + k[:, None], mask=(j * KC + k[:, None]) < WIDTH, other=0.0, cache_modifier=".cg"
            )
        if PREC == "hilo":
            hs = hs + (truncated(h),)
            lows = lows + (h - truncated(h),)
        else:
            hs = hs + (h,)
    return hs + lows


@triton.jit
def own(x, PREC: tl.constexpr):
    """A vector ``[K, BB]`` that this program holds whole, as `product` takes it: one chunk."""
    hs = (x,)
    if PREC == "hilo":
        hs = (truncated(x), x - truncated(x))
    return hs


@triton.jit
def product(ws, hs, acc, CHUNKS: tl.constexpr, PREC: tl.constexpr):
    """``acc + W @ x^T`` over the chunks, in their order whatever the batch: a row has the same bits alone and beside others."""
    P: tl.constexpr = "tf32" if PREC == "hilo" else PREC
    for j in tl.static_range(0, CHUNKS):
        if PREC == "hilo":
            acc = tl.dot(ws[CHUNKS + j], hs[j], acc=acc, input_precision=P)
            acc = tl.dot(ws[j], hs[CHUNKS + j], acc=acc, input_precision=P)
        acc = tl.dot(ws[j], hs[j], acc=acc, input_precision=P)
    return acc


@triton.jit
def streamed(w, far, m, k, hs, acc, K: tl.constexpr, KC: tl.constexpr, PREC: tl.constexpr):
    """`product` with a weight that does not fit on-chip: read through L2 in every step."""
    return product(resident(w, far, m, k, K, KC, PREC), hs, acc, K // KC, PREC)


@triton.jit
def halves(z, M: tl.constexpr, BB: tl.constexpr):
    """``[2 * M, BB]`` as its upper and its lower M rows."""
    return tl.split(tl.permute(tl.reshape(z, (2, M, BB)), (1, 2, 0)))
