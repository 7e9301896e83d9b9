"""Products in the loop. In: a program's rows of a packed weight and a vector of every row of the batch tile; out: ``W @ x^T`` in float32.

A product is ``acc[M, BB] += W[M, K] @ x^T[K, BB]``: the weight's columns stand in M, the batch tile in N. With M >= 64 that is wgmma on
sm_90; ``x @ W`` with wide tiles spills there. K goes in chunks of KC, so that no operand is huge; tuples of tiles hold the chunks.

A weight may be of one byte (ONE_BYTE); it is multiplied as OF, the vector's dtype, which holds it exactly. A resident one that fits into
shared memory the host has converted; else it stays bytes in registers and is converted in every step.

Where SOME is set, rows that are negative stand for nothing: they are not read, and what is made of them is zero.

PREC says how float32 is multiplied: "ieee" (the interpreter, exact), "tf32", or "hilo": full accuracy by three tf32 products, of which the
host has split the weight (``far`` is the distance to the low parts). Half precisions pass "tf32", which they ignore.
"""

import triton
import triton.language as tl

from .quantised import converted, opaque


@triton.jit
def resident(
    w, far, m, k, K: tl.constexpr, KC: tl.constexpr, OF: tl.constexpr, ONE_BYTE: tl.constexpr, PREC: tl.constexpr, ASM: tl.constexpr
):
    """Rows ``m`` of ``w`` ``[.., K]`` as a tuple of tiles ``[M, KC]``. Loaded before the loop they stay in shared memory or registers."""
    ws = ()
    for j in tl.static_range(0, K // KC):
        ws = ws + (tl.load(w + m[:, None] * K + j * KC + k[None, :]),)
    if PREC == "hilo" and not ONE_BYTE:
        for j in tl.static_range(0, K // KC):
            ws = ws + (tl.load(w + far + m[:, None] * K + j * KC + k[None, :]),)
    return ws


@triton.jit
def truncated(x):
    """The part of a float32 that tf32 holds."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def rest(x):
    """What tf32 leaves of a float32; of an infinite one nothing."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x - truncated(x))


@triton.jit
def finite(x):
    """``x`` with 0 for what is infinite: times the rest of a weight, which may be 0, that would be NaN."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def chunk(src, rows, k, j, WIDTH: tl.constexpr, KC: tl.constexpr, WHOLE: tl.constexpr, SOME: tl.constexpr):
    """Columns ``j * KC`` on of ``x^T`` ``[KC, BB]``, from ``src`` ``[rows, WIDTH]``, past L1: others wrote it.

    Behind WIDTH it is zero, where it is not known that all of the chunk is WHOLE.
    """
    at = src + rows[None, :] * WIDTH + j * KC + k[:, None]
    if SOME and WHOLE:
        x = tl.load(at, mask=rows[None, :] >= 0, other=0.0, cache_modifier=".cg")
    elif SOME:
        x = tl.load(at, mask=(rows[None, :] >= 0) & ((j * KC + k[:, None]) < WIDTH), other=0.0, cache_modifier=".cg")
    elif WHOLE:
        x = tl.load(at, cache_modifier=".cg")
    else:
        x = tl.load(at, mask=(j * KC + k[:, None]) < WIDTH, other=0.0, cache_modifier=".cg")
    return x


@triton.jit
def multiply(
    ws, src, rows, k, acc, WIDTH: tl.constexpr, K: tl.constexpr, KC: tl.constexpr, WINDOW: tl.constexpr, OF: tl.constexpr,
    ONE_BYTE: tl.constexpr, PREC: tl.constexpr, ASM: tl.constexpr, SOME: tl.constexpr = False,
):  # fmt: skip
    """``acc + W @ x^T`` with a resident weight and an exchanged vector, in the order of its chunks whatever the batch.

    WINDOW chunks are asked for at once: many hide the way to the level-2 cache, all of them may not fit into shared memory.
    """
    CHUNKS: tl.constexpr = K // KC
    P: tl.constexpr = "tf32" if PREC == "hilo" else PREC
    for begin in tl.static_range(0, CHUNKS, WINDOW):
        xs = ()
        for j in tl.static_range(0, WINDOW):
            if begin + j < CHUNKS:
                xs = xs + (chunk(src, rows, k, begin + j, WIDTH, KC, (begin + j + 1) * KC <= WIDTH, SOME),)
        for j in tl.static_range(0, WINDOW):
            if begin + j < CHUNKS:
                high = ws[begin + j]
                if ONE_BYTE and high.dtype != OF:
                    high = converted(opaque(high, ASM), OF)
                if PREC == "hilo":
                    top = truncated(xs[j])
                    if not ONE_BYTE:
                        acc = tl.dot(ws[CHUNKS + begin + j], finite(top), acc=acc, input_precision=P)
                    acc = tl.dot(high, rest(xs[j]), acc=acc, input_precision=P)
                    acc = tl.dot(high, top, acc=acc, input_precision=P)
                else:
                    acc = tl.dot(high, xs[j], acc=acc, input_precision=P)
    return acc


@triton.jit
def streamed(
    w, far, m, k, src, rows, acc, WIDTH: tl.constexpr, K: tl.constexpr, KC: tl.constexpr, STAGES: tl.constexpr, OF: tl.constexpr,
    ONE_BYTE: tl.constexpr, PREC: tl.constexpr, ASM: tl.constexpr, SOME: tl.constexpr = False,
):  # fmt: skip
    """`multiply` with a weight that does not fit on-chip: it comes through the level-2 cache in every step, STAGES chunks under way."""
    P: tl.constexpr = "tf32" if PREC == "hilo" else PREC
    for j in tl.range(0, K // KC, num_stages=STAGES):
        x = chunk(src, rows, k, j, WIDTH, KC, False, SOME)
        at = w + m[:, None] * K + j * KC + k[None, :]
        high = tl.load(at)
        if ONE_BYTE:
            high = converted(high, OF)
        if PREC == "hilo":
            top = truncated(x)
            if not ONE_BYTE:
                acc = tl.dot(tl.load(at + far), finite(top), acc=acc, input_precision=P)
            acc = tl.dot(high, rest(x), acc=acc, input_precision=P)
            acc = tl.dot(high, top, acc=acc, input_precision=P)
        else:
            acc = tl.dot(high, x, acc=acc, input_precision=P)
    return acc


@triton.jit
def own(x, PREC: tl.constexpr):
    """A vector ``[K, BB]`` that this program holds whole, as `product` takes it: one chunk."""
    hs = (x,)
    if PREC == "hilo":
        hs = (truncated(x), rest(x))
    return hs


@triton.jit
def product(ws, xs, acc, OF: tl.constexpr, ONE_BYTE: tl.constexpr, PREC: tl.constexpr, ASM: tl.constexpr):
    """`multiply` with a vector that this program holds whole (`own`): one chunk."""
    P: tl.constexpr = "tf32" if PREC == "hilo" else PREC
    high = ws[0]
    if ONE_BYTE and high.dtype != OF:
        high = converted(opaque(high, ASM), OF)
    if PREC == "hilo":
        if not ONE_BYTE:
            acc = tl.dot(ws[1], finite(xs[0]), acc=acc, input_precision=P)
        acc = tl.dot(high, xs[1], acc=acc, input_precision=P)
    return tl.dot(high, xs[0], acc=acc, input_precision=P)


@triton.jit
def halves(z, M: tl.constexpr, BB: tl.constexpr):
    """``[2 * M, BB]`` as its upper and its lower M rows."""
    return tl.split(tl.permute(tl.reshape(z, (2, M, BB)), (1, 2, 0)))


@triton.jit
def met(z, M: tl.constexpr, V: tl.constexpr, BB: tl.constexpr):
    """Of the products of V vectors side by side, ``[N * M, V * BB]``, those of the v-th M rows with the v-th vector: ``[N * M, BB]``.

    Rows behind the last vector's are zero.
    """
    N: tl.constexpr = z.shape[0] // M
    blocks = tl.reshape(z, (N, M, V, BB))
    own_rows = tl.arange(0, N)[:, None, None, None] == tl.arange(0, V)[None, None, :, None]
    return tl.reshape(tl.sum(tl.where(own_rows, blocks, 0.0), 2), (N * M, BB))
