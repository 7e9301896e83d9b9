"""runtime.h: products, scalar math, 16-bit storage, random words and threads, each through a small source."""

# ruff: noqa: N803, N806 - M, K and N are the sizes of a product everywhere
from __future__ import annotations

import ctypes
import itertools
import os
import threading

import numpy as np
import pytest
import torch

from fusedrnn import random
from fusedrnn.kernels.cpu import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

UNARY = ("exp", "log", "tanh", "sigmoid", "erf", "expm1", "log1p", "sin", "cos", "sqrt", "rsqrt")
SOURCE = (
    '#include "runtime.h"\nusing namespace frnn;\n'
    + "\n".join(
        f"""
extern "C" {{
int64_t packed_size_{t}(int64_t K, int64_t N) {{ return packed_size<{t}>(K, N); }}
int64_t split_{t}(int64_t N, int i, int n) {{ return split<{t}>(N, i, n); }}
void pack_{t}(const {t}* w, int64_t rs, int64_t cs, int64_t K, int64_t N, {t}* out) {{ pack<{t}>(w, rs, cs, K, N, out); }}
void product_{t}(const {t}* a, int64_t lda, int64_t M, const {t}* w, int64_t K, int64_t N, int64_t n0, int64_t n1, const {t}* bias, {t}* c,
                 int64_t ldc, int accumulate, const int64_t* rows) {{
    product<{t}>(a, lda, M, w, K, N, n0, n1, bias, c, ldc, accumulate, rows);
}}
void plain_{t}(const {t}* a, int64_t ar, int64_t ac, const {t}* b, int64_t br, int64_t bc, int64_t M, int64_t K, int64_t N, {t}* c,
             int64_t l) {{
    product_plain<{t}>(a, ar, ac, b, br, bc, M, K, N, c, l);
}}
}}"""
        for t in ("float", "double")
    )
    + "\n".join(
        f'extern "C" void {f}_{t}(const {t}* x, {t}* y, int64_t n) {{ for (int64_t i = 0; i < n; ++i) y[i] = frnn::{f}(x[i]); }}'
        for f in UNARY
        for t in ("float", "double")
    )
    + """
extern "C" {
void pack_bf16(const bf16* w, int64_t rs, int64_t cs, int64_t K, int64_t N, bf16* out) { pack<float>(w, rs, cs, K, N, out); }
void product_bf16(const float* a, int64_t lda, int64_t M, const bf16* w, int64_t K, int64_t N, int64_t n0, int64_t n1, const float* bias,
                  float* c, int64_t ldc, int accumulate, const int64_t* rows) {
    product<float>(a, lda, M, w, K, N, n0, n1, bias, c, ldc, accumulate, rows);
}
void from_bf16(const bf16* x, float* y, int64_t n) { for (int64_t i = 0; i < n; ++i) y[i] = to_float(x[i]); }
void from_f16(const f16* x, float* y, int64_t n) { for (int64_t i = 0; i < n; ++i) y[i] = to_float(x[i]); }
void as_bf16(const float* x, bf16* y, int64_t n) { for (int64_t i = 0; i < n; ++i) y[i] = to_bf16(x[i]); }
void as_f16(const float* x, f16* y, int64_t n) { for (int64_t i = 0; i < n; ++i) y[i] = to_f16(x[i]); }
void words(uint64_t key, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t* y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] = philox(key, uint32_t(i), c1, c2, c3);
}
// Every thread adds its index to its place, waits, and sums all places, `steps` times; returns the threads that took part.
int rounds(int threads, int steps, int64_t* sums) {
    Barrier barrier;
    int64_t places[64] = {};
    int took = 0;
    team(threads, [&](int index, int count) {
        if (index == 0) took = count;
        for (int step = 0; step < steps; ++step) {
            places[index] += index + step;
            barrier.wait(count);
            int64_t sum = 0;
            for (int i = 0; i < count; ++i) sum += places[i];
            sums[index] = sums[index] * 3 + sum;
            barrier.wait(count);
        }
    });
    return took;
}
}
"""
)
TYPES = {"float": np.float32, "double": np.float64}


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEDRNN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        library = build.load(SOURCE, name="test_runtime")
        for t in TYPES:
            getattr(library, f"packed_size_{t}").restype = ctypes.c_int64
            getattr(library, f"split_{t}").restype = ctypes.c_int64
        return library


def ptr(array):
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def i64(*values):
    return [ctypes.c_int64(v) for v in values]


def packed(lib, w, t):
    K, N = w.shape
    size = getattr(lib, f"packed_size_{'float' if t == 'bf16' else t}")(*i64(K, N))
    buffer = np.full(size + 64, 0x7FC0 if t == "bf16" else np.nan, w.dtype)  # NaN
    out = buffer[(-buffer.ctypes.data % 64) // w.itemsize :][:size]
    getattr(lib, f"pack_{t}")(ptr(w), *i64(w.strides[0] // w.itemsize, w.strides[1] // w.itemsize, K, N), ptr(out))
    return out


def product(lib, a, p, K, N, t, bias=None, c=None, cols=None, rows=None):
    M = len(a) if rows is None else len(rows)
    out = np.full((M, N + 3), 7, a.dtype) if c is None else c
    n0, n1 = cols or (0, N)
    lda = a.strides[0] // a.itemsize
    args = [ptr(a), *i64(lda, M), ptr(p), *i64(K, N, n0, n1), ptr(bias), ptr(out), *i64(out.shape[1]), int(c is not None), ptr(rows)]
    getattr(lib, f"product_{t}")(*args)
    return out


@pytest.mark.parametrize("t", TYPES)
@pytest.mark.parametrize(("K", "N"), [(1, 1), (1, 40), (7, 1), (16, 16), (33, 17), (64, 96), (100, 203)])
@pytest.mark.parametrize("M", [*range(1, 18), 256])
def test_product(lib, t, M, K, N):
    rng = np.random.default_rng(M * 1000 + K + N)
    a, w, bias, c = (rng.standard_normal(s).astype(TYPES[t]) for s in ((M, K), (K, N), (N,), (M, N + 3)))
    p = packed(lib, w, t)
    want = a.astype(np.float64) @ w
    close = {"rtol": 0, "atol": 4e-7 * (K + 8) if t == "float" else 1e-12}
    plain = product(lib, a, p, K, N, t)
    np.testing.assert_allclose(plain[:, :N], want, **close)
    assert (plain[:, N:] == 7).all()
    np.testing.assert_allclose(product(lib, a, p, K, N, t, bias)[:, :N], want + bias, **close)
    np.testing.assert_allclose(product(lib, a, p, K, N, t, bias, c.copy())[:, :N], want + bias + c[:, :N], **close)
    np.testing.assert_allclose(product(lib, a, p, K, N, t, None, c.copy())[:, :N], want + c[:, :N], **close)


@pytest.mark.parametrize("t", TYPES)
def test_transposed_weight_packs_the_same(lib, t):
    w = np.random.default_rng(0).standard_normal((37, 50)).astype(TYPES[t])
    np.testing.assert_array_equal(packed(lib, w, t), packed(lib, np.asfortranarray(w), t))


@pytest.mark.parametrize(("K", "N"), [(1, 1), (7, 40), (33, 17), (100, 203)])
@pytest.mark.parametrize("M", [1, 2, 3, 5, 8, 17])
def test_bfloat16_weights_give_the_bits_of_their_float32(lib, M, K, N):
    rng = np.random.default_rng(M * 1000 + K + N)
    a, bias = (rng.standard_normal(s).astype(np.float32) for s in ((M, K), (N,)))
    narrow = torch.from_numpy(rng.standard_normal((K, N))).bfloat16()
    narrow.flatten()[::5] *= 1e-40  # denormals
    narrow[0, 0] = torch.inf
    want = product(lib, a, packed(lib, narrow.float().numpy(), "float"), K, N, "float", bias)
    weights = narrow.view(torch.int16).numpy().view(np.uint16)
    for stored in (weights, np.asfortranarray(weights)):
        np.testing.assert_array_equal(product(lib, a, packed(lib, stored, "bf16"), K, N, "bf16", bias), want)


@pytest.mark.parametrize("t", TYPES)
@pytest.mark.parametrize("N", [150, 192])
def test_bits_of_a_row_are_its_own(lib, t, N):
    K = 131
    rng = np.random.default_rng(1)
    a, w, bias, c = (rng.standard_normal(s).astype(TYPES[t]) for s in ((40, K), (K, N), (N,), (40, N)))
    p = packed(lib, w, t)
    want = product(lib, a, p, K, N, t, bias, c.copy())
    for M in range(1, 41):
        for first in {0, 40 - M}:
            part = slice(first, first + M)
            np.testing.assert_array_equal(product(lib, a[part], p, K, N, t, bias, c[part].copy()), want[part])
    for parts in (2, 3, 5):
        for M in (1, 2, 3, 40):
            out = c[:M].copy()
            edges = [getattr(lib, f"split_{t}")(ctypes.c_int64(N), i, parts) for i in range(parts + 1)]
            assert (edges[0], edges[-1]) == (0, N)
            for cols in itertools.pairwise(edges):
                product(lib, a[:M], p, K, N, t, bias, out, cols)
            np.testing.assert_array_equal(out, want[:M])
    rows = rng.permutation(40).astype(np.int64)
    np.testing.assert_array_equal(product(lib, a, p, K, N, t, bias, c[rows].copy(), rows=rows), want[rows])


@pytest.mark.parametrize("t", TYPES)
def test_products_keep_nan_and_infinity(lib, t):
    w = np.ones((8, 20), TYPES[t])
    a = np.ones((3, 8), TYPES[t])
    a[1, 3], a[2, 0] = np.nan, np.inf
    out = product(lib, a, packed(lib, w, t), 8, 20, t)[:, :20]
    assert (out[0] == 8).all()
    assert np.isnan(out[1]).all()
    assert np.isposinf(out[2]).all()


@pytest.mark.parametrize("t", TYPES)
@pytest.mark.parametrize("order", ["CC", "CF", "FC", "FF", "xx"])
@pytest.mark.parametrize(("M", "K", "N"), [(1, 1, 1), (5, 1, 9), (1, 70, 83), (9, 33, 1), (13, 64, 5), (70, 40, 83), (0, 3, 4), (3, 0, 4)])
def test_plain_product(lib, t, order, M, K, N):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((M, K)).astype(TYPES[t]), rng.standard_normal((K, N)).astype(TYPES[t])
    if order == "xx":  # strides of two elements
        a2, b2 = np.zeros((M, 2 * K), a.dtype), np.zeros((K, 2 * N), b.dtype)
        a2[:, ::2], b2[:, ::2] = a, b
        strides = [2 * K, 2, 2 * N, 2]
    else:
        a2, b2 = np.array(a, order=order[0]), np.array(b, order=order[1])
        strides = [*((K, 1) if order[0] == "C" else (1, M)), *((N, 1) if order[1] == "C" else (1, K))]
    out = np.full((M, N + 2), 7, a.dtype)
    getattr(lib, f"plain_{t}")(ptr(a2), *i64(*strides[:2]), ptr(b2), *i64(*strides[2:], M, K, N), ptr(out), *i64(N + 2))
    np.testing.assert_allclose(out[:, :N], a.astype(np.float64) @ b, rtol=0, atol=4e-5 if t == "float" else 1e-12)
    assert (out[:, N:] == 7).all()


def call(lib, name, x):
    y = np.empty_like(x)
    getattr(lib, f"{name}_{'float' if x.dtype == np.float32 else 'double'}")(ptr(x), ptr(y), *i64(len(x)))
    return y


def truth(name, x):
    t = torch.from_numpy(x.astype(np.float64))
    with np.errstate(all="ignore"):
        return (torch.erf(t) if name == "erf" else torch.sigmoid(t) if name == "sigmoid" else getattr(t, name)()).numpy()


WIDE = np.concatenate([s * np.logspace(-37, 38, 200_001, dtype=np.float64) for s in (1, -1)]).astype(np.float32)
NEAR = np.linspace(-110, 110, 400_001).astype(np.float32)
BOUNDS = {
    "exp": 1,
    "log": 1,
    "log1p": 1,
    "expm1": 1.5,
    "erf": 1.5,
    "sin": 1.6,
    "cos": 1.6,
    "tanh": 2.1,
    "sigmoid": 2.3,
    "sqrt": 0.5,
    "rsqrt": 1.5,
}


@pytest.mark.parametrize("name", UNARY)
def test_math_against_double(lib, name):
    x = np.unique(np.concatenate([WIDE, NEAR, NEAR / 16, 1 + NEAR / 256]))
    if name in ("sin", "cos"):
        x = x[np.abs(x) < (2**50 if "fma" in build._processor() else 2**19)]
    want = truth(name, x)
    got = call(lib, name, x)
    with np.errstate(all="ignore"):
        rounded = want.astype(np.float32)
    finite = np.isfinite(rounded) & (np.abs(want) > 1e-37)
    ulp = np.abs(got[finite] - want[finite]) / np.spacing(np.abs(rounded[finite])).astype(np.float64)
    slack = 1 if "fma" in build._processor() or build.platform.machine() == "arm64" else 2
    assert ulp.max() <= slack * BOUNDS[name], f"{name}: {ulp.max():.2f} ulp at {x[finite][ulp.argmax()]!r}"
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    infinite = np.isinf(rounded)
    np.testing.assert_array_equal(got[infinite], rounded[infinite])
    tiny = np.abs(want) <= 1e-37
    assert (np.abs(got[tiny] - want[tiny]) <= 1.2e-38).all()


@pytest.mark.parametrize("t", TYPES)
@pytest.mark.parametrize("name", UNARY)
def test_math_at_special_values(lib, name, t):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0], TYPES[t])
    want = truth(name, x)
    got = call(lib, name, x)
    exact = ~np.isfinite(want) | (want == 0) | (np.abs(want) == 1)
    np.testing.assert_array_equal(got[exact], want[exact].astype(TYPES[t]))
    zeros = want == 0
    np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(want[zeros]))


def test_saturation(lib):
    big = np.array([10.0, 50.0, 1e30, -10.0, -1e30], np.float32)
    np.testing.assert_array_equal(call(lib, "tanh", big), np.sign(big))
    np.testing.assert_array_equal(call(lib, "erf", big), np.sign(big))
    np.testing.assert_array_equal(call(lib, "sigmoid", np.array([40, -200], np.float32)), np.array([1, 0], np.float32))


@pytest.mark.parametrize(("kind", "torch_type"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_sixteen_bits(lib, kind, torch_type):
    every = np.arange(65536, dtype=np.uint16)
    as_float, back = np.empty(65536, np.float32), np.empty(65536, np.uint16)
    getattr(lib, f"from_{kind}")(ptr(every), ptr(as_float), *i64(65536))
    want = torch.from_numpy(every.view(np.int16)).view(torch_type).float().numpy()
    np.testing.assert_array_equal(as_float, want)
    getattr(lib, f"as_{kind}")(ptr(as_float), ptr(back), *i64(65536))
    number = ~np.isnan(want)
    np.testing.assert_array_equal(back[number], every[number])
    np.testing.assert_array_equal(np.isnan(torch.from_numpy(back.view(np.int16)).view(torch_type).float().numpy()), ~number)

    # All halves between neighbours, the floats next to them, and floats from everywhere.
    finite = np.unique(want[np.isfinite(want)].astype(np.float64))
    halves = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    rng = np.random.default_rng(3)
    anywhere = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        x = np.concatenate([halves, np.nextafter(halves, np.float32(np.inf)), np.nextafter(halves, np.float32(-np.inf)), anywhere])
    x = np.concatenate([x, np.array([65519.996, 65520, 65536, 3.4e38, np.inf, -np.inf], np.float32)])
    got = np.empty(len(x), np.uint16)
    getattr(lib, f"as_{kind}")(ptr(x), ptr(got), *i64(len(x)))
    rounded = torch.from_numpy(x).to(torch_type)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(got[number], rounded.view(torch.int16).numpy().view(np.uint16)[number])
    assert torch.from_numpy(got.view(np.int16)).view(torch_type).isnan().numpy()[~number].all()


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, -1, -6148914691236517206])
def test_philox(lib, key):
    n, counter = 1003, (5, 2**32 - 1, 77)
    got = np.empty(n, np.uint32)
    lib.words(ctypes.c_uint64(key & (2**64 - 1)), *(ctypes.c_uint32(c) for c in counter), ptr(got), *i64(n))
    np.testing.assert_array_equal(got.astype(np.int64), random.philox(torch.tensor(key), torch.arange(n), *counter).numpy())


def expected_rounds(threads, steps):
    total = 0
    for step in range(steps):
        total = total * 3 + sum(index * (step + 1) + step * (step + 1) // 2 for index in range(threads))
    return (total + 2**63) % 2**64 - 2**63


def rounds(lib, threads, steps=50):
    sums = np.zeros(64, np.int64)
    took = lib.rounds(threads, steps, ptr(sums))
    assert took == threads
    assert (sums[:threads] == expected_rounds(threads, steps)).all()


@pytest.fixture(params=["OpenMP", "own"])
def pool(request):
    """Whose threads run a team."""
    library = build.runtime()
    if request.param == "own":
        library.frnn_use_openmp(None, None, None)
    elif not build.use_openmp(library):
        pytest.skip("no OpenMP in this process")
    yield request.param
    build.use_openmp(library)


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_team_and_barrier(lib, threads):
    for _ in range(20):
        rounds(lib, threads)


@pytest.mark.usefixtures("pool")
def test_teams_of_several_callers(lib):
    failures = []

    def caller():
        try:
            for _ in range(20):
                rounds(lib, 2, 20)
        except BaseException as failure:
            failures.append(failure)

    callers = [threading.Thread(target=caller) for _ in range(3)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not failures


@pytest.mark.usefixtures("pool")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of fork in a process with threads
def test_team_after_fork(lib):
    rounds(lib, 3)
    child = os.fork()
    if not child:
        try:
            for _ in range(3):
                rounds(lib, 3)
            os._exit(0)
        except BaseException:
            os._exit(1)
    # Poll, so that a child that hangs fails the test and does not hang it.
    done = threading.Event()
    for _ in range(1000):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        done.wait(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    rounds(lib, 3)
