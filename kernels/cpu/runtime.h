// What generated recurrences are made of: products with packed weights, scalar math that vectorises, 16-bit storage, random
// words and a team of threads. One file, no library behind it; it includes only C headers, as a source is compiled while its
// user waits (<cmath> alone would cost 0.25 s).
//
// Compile with -O3, contraction into fma allowed and without -ffast-math: NaN and infinity mean something here.
#pragma once

#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FRNN_INLINE inline __attribute__((always_inline))  // loops over the scalar math vectorise only if it is inlined

namespace frnn {

// 16-bit storage; what computes with it is below.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

// ---------------------------------------------------------------------------------------------------------------------------
// Products
//
// C = A @ W, A row-major [M, K] with few rows, W [K, N] packed once and used at every step. W is cut into panels of
// `panel<S>` columns; a panel stores its columns row by row, so that a kernel reads it from end to end. S is what is summed
// in, P what W is stored in: S, or bf16 where S is float, which halves the bytes that a product with few rows waits for.
//
// The bits of an element depend on its row of A, its column of W and nothing else: one accumulator runs over k upwards (one
// fma a step), then comes the bias, then the old C. How many rows or panels a kernel takes at once does not enter, nor does
// the thread that runs it.

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

// A tile of tile_rows x 2 vectors of accumulators leaves registers for two vectors of W and one of A: 12 of 16, or 16 of 32.
// Either count also covers the latency of the fma units (4 cycles x 2 a cycle on current x86, 4 x 4 on current ARM).
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int tile_rows = 8;
#else
constexpr int tile_rows = 6;
#endif

template <class S>
struct Lanes {
    static constexpr int count = vector_bytes / sizeof(S);
    typedef S V __attribute__((vector_size(vector_bytes), may_alias));
    typedef S U __attribute__((vector_size(vector_bytes), may_alias, aligned(sizeof(S))));  // anywhere in memory
};

template <class S>
constexpr int64_t panel = 2 * Lanes<S>::count;

// Elements from one panel to the next: an odd number of cache lines and some apart, as panels read side by side would
// otherwise fall into the same set of the cache wherever K is a power of two.
template <class S>
constexpr int64_t panel_stride(int64_t K) {
    return ((K | 1) + 10) * panel<S>;
}

// Elements that `pack` writes for W [K, N].
template <class S>
constexpr size_t packed_size(int64_t K, int64_t N) {
    return size_t((N + panel<S> - 1) / panel<S> * panel_stride<S>(K));
}

// Where column j of a panel stands in a row of it. In bf16 the two vectors of a row are interleaved: a shift and a mask of one
// load widen them.
template <class S, class P>
constexpr int64_t in_panel(int64_t j) {
    return sizeof(P) == sizeof(S) ? j : j < Lanes<S>::count ? 2 * j : 2 * (j - Lanes<S>::count) + 1;
}

// Packs W, whose element (k, n) is w[k * row_stride + n * col_stride], into `out`, packed_size(K, N) elements, 64-byte
// aligned. The last panel is filled up with zeros.
template <class S, class P>
__attribute__((noinline)) void pack(const P* w, int64_t row_stride, int64_t col_stride, int64_t K, int64_t N, P* out) {
    for (int64_t n = 0; n < N; n += panel<S>, out += panel_stride<S>(K))
        for (int64_t k = 0; k < panel_stride<S>(K) / panel<S>; ++k)
            for (int64_t j = 0; j < panel<S>; ++j)
                out[k * panel<S> + in_panel<S, P>(j)] = k < K && n + j < N ? w[k * row_stride + (n + j) * col_stride] : P{};
}

// A row of a panel, as two vectors.
template <class S>
FRNN_INLINE void widen(const S* packed, typename Lanes<S>::V& low, typename Lanes<S>::V& high) {
    typedef typename Lanes<S>::V V;
    low = *(const V*)packed;
    high = *(const V*)(packed + Lanes<S>::count);
}
template <class S>
FRNN_INLINE void widen(const bf16* packed, typename Lanes<S>::V& low, typename Lanes<S>::V& high) {
    typedef uint32_t U __attribute__((vector_size(vector_bytes), may_alias));
    const U both = *(const U*)packed;
    low = (typename Lanes<S>::V)(both << 16);
    high = (typename Lanes<S>::V)(both & 0xffff0000u);
}

// First column of part `index` of `parts` of about equal size, on a panel's edge; N for index == parts.
template <class S>
constexpr int64_t split(int64_t N, int index, int parts) {
    const int64_t panels = (N + panel<S> - 1) / panel<S>, at = panels * index / parts * panel<S>;
    return at < N ? at : N;
}

// Keeps a vector in a register: g++ would rather load it again as the operand of each fma, and loads are what runs out.
template <class V>
FRNN_INLINE void hold(V& v) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(v));
#elif defined(__x86_64__)
    __asm__("" : "+x"(v));
#else
    (void)v;
#endif
}

// R rows of A times some neighbouring panels, into out [R, panels * panel<S>]: R * panels * 2 accumulators.
template <class S, class P, int R, int panels>
__attribute__((noinline)) void tile(const S* const* rows, const P* packed, int64_t K, S* out) {
    typedef typename Lanes<S>::V V;
    constexpr int W = 2 * panels;
    const S* a[R];
    for (int r = 0; r < R; ++r) a[r] = rows[r];
    V sum[R][W] = {};
    for (int64_t k = 0; k < K; ++k, packed += panel<S>) {
        if (panels == 1) {  // two vectors of W stay, elements of A pass
            __builtin_prefetch(packed + 8 * panel<S>);
            V b[2];
            widen<S>(packed, b[0], b[1]);
            for (int j = 0; j < W; ++j) hold(b[j]);
            for (int r = 0; r < R; ++r)
                for (int j = 0; j < W; ++j) sum[r][j] += a[r][k] * b[j];
        } else {  // R elements of A stay, vectors of W pass
            V x[R];
            for (int r = 0; r < R; ++r) {
                x[r] = a[r][k] - V{};  // the way to write a broadcast: s - 0 is s, for every s
                hold(x[r]);
            }
            for (int p = 0; p < panels; ++p) {
                V b[2];
                widen<S>(packed + p * panel_stride<S>(K), b[0], b[1]);
                for (int j = 0; j < 2; ++j) {
                    if (R > 1) hold(b[j]);
                    for (int r = 0; r < R; ++r) sum[r][2 * p + j] += x[r] * b[j];
                }
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < W; ++j) ((V*)out)[r * W + j] = sum[r][j];
}

// The kernels by rows and panels at once. Few rows take several panels: a single row needs six of them to keep the fma units
// busy.
constexpr int most_panels(int rows) { return rows == 1 ? 6 : rows == 2 ? 3 : rows == 3 ? 2 : 1; }

template <class S, class P>
using Tile = void (*)(const S* const*, const P*, int64_t, S*);

template <class S, class P>
struct Tiles {
    static constexpr Tile<S, P> one[6] = {tile<S, P, 1, 1>, tile<S, P, 1, 2>, tile<S, P, 1, 3>, tile<S, P, 1, 4>, tile<S, P, 1, 5>, tile<S, P, 1, 6>};
    static constexpr Tile<S, P> two[3] = {tile<S, P, 2, 1>, tile<S, P, 2, 2>, tile<S, P, 2, 3>};
    static constexpr Tile<S, P> three[2] = {tile<S, P, 3, 1>, tile<S, P, 3, 2>};
    static constexpr Tile<S, P> more[] = {tile<S, P, 4, 1>, tile<S, P, 5, 1>, tile<S, P, 6, 1>,
#if defined(__AVX512F__) || defined(__aarch64__)
                                       tile<S, P, 7, 1>, tile<S, P, 8, 1>
#endif
    };

    static Tile<S, P> find(int rows, int64_t panels) {
        return rows == 1 ? one[panels - 1] : rows == 2 ? two[panels - 1] : rows == 3 ? three[panels - 1] : more[rows - 4];
    }
};

// C[:, n_begin:n_end] = (accumulate ? C : 0) + bias + A @ W[:, n_begin:n_end].
//   a         row i of A is a + i * lda, or a + rows[i] * lda where `rows` is given
//   packed    W [K, N] from `pack`, 64-byte aligned
//   n_begin   a multiple of panel<S>; `split` finds such edges
//   bias      [N], or null for none
//   c         row i of C is c + i * ldc
template <class S, class P>
__attribute__((noinline)) void product(const S* a, int64_t lda, int64_t M, const P* packed, int64_t K, int64_t N, int64_t n_begin,
                                       int64_t n_end, const S* bias, S* c, int64_t ldc, bool accumulate,
                                       const int64_t* rows = nullptr) {
    if (n_end > N) n_end = N;
    if (M <= 0 || n_begin >= n_end) return;
    const int64_t blocks = (M + tile_rows - 1) / tile_rows;  // of equal height or one less: a lone row would run at 1/3
    const int64_t panels = (n_end - n_begin + panel<S> - 1) / panel<S>;
    // All rows meet a group of panels while it is in the cache.
    const int64_t groups = (panels + most_panels(int(M / blocks)) - 1) / most_panels(int(M / blocks));
    alignas(64) S sums[6 * 2 * Lanes<S>::count * tile_rows];
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t end = n_begin + panels * (g + 1) / groups * panel<S>;
        for (int64_t i = 0; i < blocks; ++i) {
            const int64_t first = M * i / blocks;
            const int height = int(M * (i + 1) / blocks - first);
            const S* from[tile_rows];
            for (int r = 0; r < height; ++r) from[r] = a + (rows ? rows[first + r] : first + r) * lda;
            for (int64_t n = n_begin + panels * g / groups * panel<S>, width; n < end; n += width) {
                width = (end - n) / panel<S> < most_panels(height) ? end - n : most_panels(height) * panel<S>;
                Tiles<S, P>::find(height, width / panel<S>)(from, packed + n / panel<S> * panel_stride<S>(K), K, sums);
                const int64_t columns = n + width < n_end ? width : n_end - n;
                for (int r = 0; r < height; ++r) {
                    const S* sum = sums + r * width;
                    S* to = c + (first + r) * ldc + n;
                    if (bias && accumulate)
                        for (int64_t j = 0; j < columns; ++j) to[j] = sum[j] + bias[n + j] + to[j];
                    else if (bias)
                        for (int64_t j = 0; j < columns; ++j) to[j] = sum[j] + bias[n + j];
                    else if (accumulate)
                        for (int64_t j = 0; j < columns; ++j) to[j] = sum[j] + to[j];
                    else
                        for (int64_t j = 0; j < columns; ++j) to[j] = sum[j];
                }
            }
        }
    }
}

// C [M, N] = A [M, K] @ B [K, N], neither packed: for products whose right side changes every step. Element (i, k) of A is
// a[i * a_rs + k * a_cs], so of B; row i of C is c + i * ldc. An element's bits depend on its row, its column, K and the kind
// of strides, not on M: along k in vectors where both operands are contiguous in k, else one accumulator upwards.
namespace detail {

// `width` neighbouring vectors of row a, down b's rows.
template <class S, int width>
FRNN_INLINE void column_block(const S* a, int64_t a_cs, const S* b, int64_t b_rs, int64_t K, S* c, int64_t c_cs) {
    typedef typename Lanes<S>::V V;
    typedef typename Lanes<S>::U U;
    V sum[width] = {};
    for (int64_t k = 0; k < K; ++k)
        for (int j = 0; j < width; ++j) sum[j] += a[k * a_cs] * *(const U*)(b + k * b_rs + j * Lanes<S>::count);
    for (int j = 0; j < width; ++j)
        for (int l = 0; l < Lanes<S>::count; ++l) c[(j * Lanes<S>::count + l) * c_cs] = sum[j][l];
}

template <class S>
__attribute__((noinline)) void plain_columns(const S* a, int64_t a_rs, int64_t a_cs, const S* b, int64_t b_rs, int64_t M, int64_t K,
                                             int64_t N, S* c, int64_t c_rs, int64_t c_cs) {
    constexpr int L = Lanes<S>::count;
    for (int64_t i = 0; i < M; ++i, a += a_rs, c += c_rs) {
        int64_t n = 0;
        for (; n + 8 * L <= N; n += 8 * L) column_block<S, 8>(a, a_cs, b + n, b_rs, K, c + n * c_cs, c_cs);
        for (; n + L <= N; n += L) column_block<S, 1>(a, a_cs, b + n, b_rs, K, c + n * c_cs, c_cs);
        for (; n < N; ++n) {
            S sum = 0;
            for (int64_t k = 0; k < K; ++k) sum += a[k * a_cs] * b[k * b_rs + n];
            c[n * c_cs] = sum;
        }
    }
}

template <class S>
FRNN_INLINE S dot(const S* a, const S* b, int64_t K) {
    typedef typename Lanes<S>::V V;
    typedef typename Lanes<S>::U U;
    constexpr int L = Lanes<S>::count;
    V sum[4] = {};  // four chains hide the latency of fma
    int64_t k = 0;
    for (; k + 4 * L <= K; k += 4 * L)
        for (int j = 0; j < 4; ++j) sum[j] += *(const U*)(a + k + j * L) * *(const U*)(b + k + j * L);
    for (; k + L <= K; k += L) sum[0] += *(const U*)(a + k) * *(const U*)(b + k);
    S tail = 0;
    for (; k < K; ++k) tail += a[k] * b[k];
    V all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int half = L / 2; half; half /= 2)
        for (int l = 0; l < half; ++l) all[l] += all[l + half];
    return all[0] + tail;
}

}  // namespace detail

template <class S>
void product_plain(const S* a, int64_t a_rs, int64_t a_cs, const S* b, int64_t b_rs, int64_t b_cs, int64_t M, int64_t K, int64_t N, S* c,
                   int64_t ldc) {
    if ((a_cs == 1 && b_rs == 1) || K == 1)
        for (int64_t i = 0; i < M; ++i)
            for (int64_t n = 0; n < N; ++n) c[i * ldc + n] = detail::dot(a + i * a_rs, b + n * b_cs, K);
    else if (b_cs == 1 && N > 1)
        detail::plain_columns(a, a_rs, a_cs, b, b_rs, M, K, N, c, ldc, int64_t(1));
    else if (a_rs == 1)
        detail::plain_columns(b, b_cs, b_rs, a, a_cs, N, K, M, c, int64_t(1), ldc);
    else
        for (int64_t i = 0; i < M; ++i)
            for (int64_t n = 0; n < N; ++n) {
                S sum = 0;
                for (int64_t k = 0; k < K; ++k) sum += a[i * a_rs + k * a_cs] * b[k * b_rs + n * b_cs];
                c[i * ldc + n] = sum;
            }
}

// ---------------------------------------------------------------------------------------------------------------------------
// Scalar math. The float versions have no branches, so that loops over them vectorise; polynomials are minimax fits made for
// this file. Errors against the true value, in ulp: exp, log, log1p 1; expm1, erf, rsqrt 1.5; sin, cos 1.6; tanh 2.1, sigmoid 2.3.
// Results below 1.2e-38 may be 0.
// double goes to the C library.

FRNN_INLINE uint32_t bits(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
FRNN_INLINE float from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}
FRNN_INLINE uint64_t bits(double x) {
    uint64_t u;
    memcpy(&u, &x, 8);
    return u;
}

namespace detail {

struct Reduced {
    float p;      // e^r - 1
    float n;      // x = n ln 2 + r, |r| <= ln 2 / 2
    uint32_t in;  // n as two's complement
};

FRNN_INLINE Reduced reduce_exp(float x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    const float t = x * 0x1.715476p+0f + magic, n = t - magic;
    float r = x - n * 0x1.62e4p-1f;
    r = r - n * 0x1.7f7d1cp-20f;
    float q = 0x1.a1a1e4p-13f;
    q = q * r + 0x1.6d7528p-10f;
    q = q * r + 0x1.11109p-7f;
    q = q * r + 0x1.5554aep-5f;
    q = q * r + 0x1.555556p-3f;
    q = q * r + 0.5f;
    return {q * (r * r) + r, n, bits(t) - bits(magic)};
}

FRNN_INLINE float power_of_two(uint32_t n) { return from_bits((n + 127u) << 23); }  // -126 <= n <= 127

}  // namespace detail

FRNN_INLINE float exp(float x) {
    x = x > 89.0f ? 89.0f : x;  // comparisons in this order keep NaN
    x = x < -104.0f ? -104.0f : x;
    const detail::Reduced v = detail::reduce_exp(x);
    const uint32_t half = uint32_t(int32_t(v.in) >> 1);  // two factors: n reaches from -150 to 128
    return (v.p + 1.0f) * detail::power_of_two(half) * detail::power_of_two(v.in - half);
}

FRNN_INLINE float expm1(float x) {
    const float given = x;
    x = x > 89.0f ? 89.0f : x;
    x = x < -20.0f ? -20.0f : x;
    const detail::Reduced v = detail::reduce_exp(x);
    const float s = detail::power_of_two(v.in - 1u);  // half of 2^n, as 2^128 is none
    const float y = (s * v.p + (s - 0.5f)) * 2.0f;
    return given == 0.0f ? given : y;
}

FRNN_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

FRNN_INLINE float tanh(float x) {
    float y = __builtin_fabsf(x);
    y = y > 10.0f ? 10.0f : y;
    const detail::Reduced v = detail::reduce_exp(-2.0f * y);
    const float s = detail::power_of_two(v.in), e = s * v.p + s;  // exp(-2 |x|)
    // (1 - e) / (1 + e) loses digits by 1 - e in small x and by the rounded quotient in large x.
    const bool small = y < 0.55f;
    const float q = (small ? -(s * v.p + (s - 1.0f)) : 2.0f * e) / (1.0f + e);
    return __builtin_copysignf(small ? q : 1.0f - q, x);
}

namespace detail {

// log(m 2^e) for the m 2^e = u > 0 that is not denormal, with `low` added to the smallest terms.
FRNN_INLINE float log_normal(float u, float e, float low) {
    const uint32_t shifted = bits(u) - 0x3f3504f3u;  // of sqrt(1/2): m in [sqrt(1/2), sqrt(2))
    e += float(int32_t(shifted) >> 23);
    const float f = from_bits((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
    float p = 0x1.1457acp-4f;
    p = p * f + -0x1.de3c18p-4f;
    p = p * f + 0x1.e6f06ap-4f;
    p = p * f + -0x1.fc2208p-4f;
    p = p * f + 0x1.233768p-3f;
    p = p * f + -0x1.555c4ep-3f;
    p = p * f + 0x1.99a4b6p-3f;
    p = p * f + -0x1.000006p-2f;
    p = p * f + 0x1.555548p-2f;
    const float f2 = f * f;
    float y = p * (f2 * f) + (e * 0x1.7f7d1cp-20f + low);
    y = y - 0.5f * f2;
    return (f + y) + e * 0x1.62e4p-1f;
}

}  // namespace detail

FRNN_INLINE float log(float x) {
    const bool small = x < 0x1p-126f;
    const float y = detail::log_normal(small ? x * 0x1p23f : x, small ? -23.0f : 0.0f, 0.0f);
    const float inf = __builtin_inff();
    float z = x == inf ? inf : y;
    z = x == 0.0f ? -inf : z;
    return x >= 0.0f ? z : __builtin_nanf("");
}

FRNN_INLINE float log1p(float x) {
    const float u = 1.0f + x, inf = __builtin_inff();
    const float lost = x > 1.0f ? 1.0f - (u - x) : x - (u - 1.0f);  // of 1 + x, by rounding
    float y = detail::log_normal(u, 0.0f, lost / u);
    y = __builtin_fabsf(x) < 0x1p-24f ? x : y;
    y = x == inf ? inf : y;
    y = x == -1.0f ? -inf : y;
    return x >= -1.0f ? y : __builtin_nanf("");
}

FRNN_INLINE float erf(float x) {
    const float y = __builtin_fabsf(x), z = x * x;
    float p = -0x1.406866p-11f;  // erf(x) / x - 1, for |x| < 0.9
    p = p * z + 0x1.48be5ap-8f;
    p = p * z + -0x1.b6cbacp-6f;
    p = p * z + 0x1.ce1ec2p-4f;
    p = p * z + -0x1.8127p-2f;
    p = p * z + 0x1.06eba6p-3f;
    const float t = y > 4.1f ? 4.1f : y;
    float q = 0x1.9d8478p-13f;  // log erfc(x), for 0.9 <= x <= 4.1, where erf becomes 1
    q = q * t + -0x1.9080c8p-9f;
    q = q * t + 0x1.6cfcbp-6f;
    q = q * t + -0x1.aa22fcp-4f;
    q = q * t + -0x1.462cb6p-1f;
    q = q * t + -0x1.20b432p+0f;
    q = q * t + -0x1.7442dcp-13f;
    const float large = 1.0f - exp(q);
    return y < 0.9f ? x * p + x : __builtin_copysignf(large, x);
}

namespace detail {

// sin(x + turns pi / 2), for |x| < 2^50 (2^19 where the machine has no fma). Beyond, no digit of the argument's remainder is
// left and the result is NaN.
FRNN_INLINE float sine(float x, uint32_t turns) {
    const double magic = 0x1.8p52;
    const double t = double(x) * 0x1.45f306dc9c883p-1 + magic, n = t - magic;
    double d = double(x) - n * 0x1.921fb544p+0;  // pi / 2 in three parts, the first two of 33 bits
    d = d - n * 0x1.0b4611a6p-34;
    d = d - n * 0x1.3198a2e037073p-69;
    const float r = float(d), z = r * r;
    const uint32_t quadrant = uint32_t(bits(t)) + turns;
    float s = -0x1.994b4p-13f;
    s = s * z + 0x1.110756p-7f;
    s = s * z + -0x1.555546p-3f;
    s = s * (z * r) + r;
    float c = 0x1.99ff3ep-16f;
    c = c * z + -0x1.6c0c82p-10f;
    c = c * z + 0x1.55554ap-5f;
    c = c * (z * z) + (1.0f - 0.5f * z);
    const float y = from_bits(bits(quadrant & 1u ? c : s) ^ ((quadrant & 2u) << 30));
    return __builtin_fabsf(x) < 0x1p50f ? y : __builtin_nanf("");
}

}  // namespace detail

FRNN_INLINE float sin(float x) {
    const float y = detail::sine(x, 0u);
    return x == 0.0f ? x : y;
}
FRNN_INLINE float cos(float x) { return detail::sine(x, 1u); }
FRNN_INLINE float sqrt(float x) { return __builtin_sqrtf(x); }
FRNN_INLINE float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
FRNN_INLINE float pow(float x, float y) { return __builtin_powf(x, y); }

FRNN_INLINE double exp(double x) { return __builtin_exp(x); }
FRNN_INLINE double expm1(double x) { return __builtin_expm1(x); }
FRNN_INLINE double sigmoid(double x) { return 1.0 / (1.0 + __builtin_exp(-x)); }
FRNN_INLINE double tanh(double x) { return __builtin_tanh(x); }
FRNN_INLINE double log(double x) { return __builtin_log(x); }
FRNN_INLINE double log1p(double x) { return __builtin_log1p(x); }
FRNN_INLINE double erf(double x) { return __builtin_erf(x); }
FRNN_INLINE double sin(double x) { return __builtin_sin(x); }
FRNN_INLINE double cos(double x) { return __builtin_cos(x); }
FRNN_INLINE double sqrt(double x) { return __builtin_sqrt(x); }
FRNN_INLINE double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
FRNN_INLINE double pow(double x, double y) { return __builtin_pow(x, y); }

// ---------------------------------------------------------------------------------------------------------------------------
// 16-bit storage: rounding to nearest, ties to even; NaN stays NaN. In integers, which vectorise on every machine.

FRNN_INLINE float to_float(bf16 x) { return from_bits(uint32_t(x.bits) << 16); }
FRNN_INLINE bf16 to_bf16(float x) {
    const uint32_t u = bits(x), rounded = u + 0x7fffu + ((u >> 16) & 1u);
    return {uint16_t(((u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u : rounded) >> 16)};
}

FRNN_INLINE float to_float(f16 x) {
    const uint32_t u = uint32_t(x.bits & 0x7fffu) << 13;
    const uint32_t scaled = bits(from_bits(u) * 0x1p112f);  // moves the exponent's bias, denormals included
    return from_bits((u >= 0x0f800000u ? u | 0x7f800000u : scaled) | uint32_t(x.bits & 0x8000u) << 16);
}
FRNN_INLINE f16 to_f16(float x) {
    const uint32_t u = bits(x), a = u & 0x7fffffffu;
    const uint32_t normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
    const uint32_t tiny = bits(from_bits(a < 0x38800000u ? a : 0u) + 0.5f) - 0x3f000000u;  // the sum rounds to 2^-24
    uint32_t h = a < 0x38800000u ? tiny : normal;
    h = a >= 0x477ff000u ? 0x7c00u : h;  // 65520 and more
    h = a > 0x7f800000u ? 0x7e00u | ((a >> 13) & 0x3ffu) : h;
    return {uint16_t(h | (u >> 16 & 0x8000u))};
}

// ---------------------------------------------------------------------------------------------------------------------------
// The first word of Philox4x32-10 (Salmon et al. 2011), as fusedrnn.random.philox draws it.

FRNN_INLINE uint32_t philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
#pragma GCC unroll 10  // a loop inside keeps the loop around it from vectorising
    for (int round = 0; round < 10; ++round) {
        const uint32_t h0 = uint32_t(uint64_t(c0) * 0xD2511F53u >> 32), l0 = c0 * 0xD2511F53u;
        const uint32_t h1 = uint32_t(uint64_t(c2) * 0xCD9E8D57u >> 32), l1 = c2 * 0xCD9E8D57u;
        c0 = h1 ^ c1 ^ k0;
        c1 = l1;
        c2 = h0 ^ c3 ^ k1;
        c3 = l0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

// ---------------------------------------------------------------------------------------------------------------------------
// Threads. The pool lives in runtime.cpp's library, once a process however many sources are loaded; whoever loads a source
// hands it over by `frnn_bind`. A source without it runs everything on the calling thread.

FRNN_INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb");
#endif
}

// Waits until done(): polls for about 20 us, then lets others have the core between polls, as the thread that is waited for
// may be one of them.
template <class F>
FRNN_INLINE void wait_until(F done) {
    for (int polls = 0; !done(); ++polls)
        if (polls < 1000)
            relax();
        else
            sched_yield();
}

// Where `threads` threads wait for each other. Each of them calls wait(threads); what was written before is visible after.
struct Barrier {
    alignas(64) uint32_t arrived = 0;
    alignas(64) uint32_t round = 0;

    void wait(int threads) {
        if (threads < 2) return;
        const uint32_t mine = __atomic_load_n(&round, __ATOMIC_RELAXED);
        if (__atomic_add_fetch(&arrived, 1u, __ATOMIC_ACQ_REL) == uint32_t(threads)) {
            __atomic_store_n(&arrived, 0u, __ATOMIC_RELAXED);
            __atomic_store_n(&round, mine + 1u, __ATOMIC_RELEASE);
        } else {
            wait_until([&] { return __atomic_load_n(&round, __ATOMIC_ACQUIRE) != mine; });
        }
    }
};

// Runs f(context, index, count) for every index below count, which is `threads`, or less where the system gives no more.
typedef void (*Job)(void* context, int index, int count);
typedef void (*RunTeam)(int threads, Job f, void* context);

inline RunTeam& run_team() {
    static RunTeam bound = nullptr;
    return bound;
}

// Calls f(index, count) on `count` threads at once, index 0 on this one, and returns when all have. Count is `threads`, or
// less where the system gives no more; f must not throw. Any number of calls may run at a time.
template <class F>
void team(int threads, F f) {
    const RunTeam run = run_team();
    if (threads > 1 && run)
        run(threads, [](void* context, int index, int count) { (*static_cast<F*>(context))(index, count); }, &f);
    else
        f(0, 1);
}

}  // namespace frnn

extern "C" __attribute__((used, visibility("default"))) inline void frnn_bind(frnn::RunTeam run) { frnn::run_team() = run; }
