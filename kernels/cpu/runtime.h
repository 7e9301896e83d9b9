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

// ---------------------------------------------------------------------------------------------------------------------------
// Products
//
// C = A @ W, A row-major [M, K] with few rows, W [K, N] packed once and used at every step. W is cut into panels of
// `panel<S>` columns; a panel stores its columns row by row, so that a kernel reads it from end to end.
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

// Elements from one panel to the next. An odd number of cache lines: panels read side by side would otherwise fall into the same
// set of the cache wherever K is a power of two.
template <class S>
constexpr int64_t panel_stride(int64_t K) {
    return ((K | 1) + PADX) * panel<S>;
}

// Elements that `pack` writes for W [K, N].
template <class S>
constexpr size_t packed_size(int64_t K, int64_t N) {
    return size_t((N + panel<S> - 1) / panel<S> * panel_stride<S>(K));
}

// Packs W, whose element (k, n) is w[k * row_stride + n * col_stride], into `out`, packed_size(K, N) elements, 64-byte
// aligned. The last panel is filled up with zeros.
template <class S>
__attribute__((noinline)) void pack(const S* w, int64_t row_stride, int64_t col_stride, int64_t K, int64_t N, S* out) {
    for (int64_t n = 0; n < N; n += panel<S>, out += panel_stride<S>(K))
        for (int64_t k = 0; k < panel_stride<S>(K) / panel<S>; ++k)
            for (int64_t j = 0; j < panel<S>; ++j)
                out[k * panel<S> + j] = k < K && n + j < N ? w[k * row_stride + (n + j) * col_stride] : S(0);
}

// First column of part `index` of `parts` of about equal size, on a panel's edge; N for index == parts.
template <class S>
constexpr int64_t split(int64_t N, int index, int parts) {
    const int64_t panels = (N + panel<S> - 1) / panel<S>, at = panels * index / parts * panel<S>;
    return at < N ? at : N;
}

// R rows of A times P neighbouring panels, into out [R, P * panel<S>]: R * P * 2 accumulators.
template <class S, int R, int P>
__attribute__((noinline)) void tile(const S* const* rows, const S* packed, int64_t K, S* out) {
    typedef typename Lanes<S>::V V;
    constexpr int W = 2 * P, L = Lanes<S>::count;
    const S* a[R];
    for (int r = 0; r < R; ++r) a[r] = rows[r];
    V sum[R][W] = {};
    for (int64_t k = 0; k < K; ++k, packed += panel<S>) {
        V b[W];
        for (int j = 0; j < W; ++j) b[j] = *(const V*)(packed + (j / 2) * panel_stride<S>(K) + (j % 2) * L);
#if defined(__x86_64__)
        // Keeps b in registers: g++ would rather load it again as each fma's operand, and loads are what runs out.
        if (R > 1)
            for (int j = 0; j < W; ++j) __asm__("" : "+x"(b[j]));
#endif
        if (PREF) for (int p = 0; p < P; ++p) __builtin_prefetch(packed + p * panel_stride<S>(K) + PREF * panel<S>);
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < W; ++j) sum[r][j] += a[r][k] * b[j];
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < W; ++j) ((V*)out)[r * W + j] = sum[r][j];
}

// The kernels by rows and panels at once. Few rows take several panels: a single row needs six of them to keep the fma units
// busy.
constexpr int most_panels(int rows) { return rows == 1 ? 6 : rows == 2 ? 3 : rows == 3 ? 2 : 1; }

template <class S>
using Tile = void (*)(const S* const*, const S*, int64_t, S*);

template <class S>
struct Tiles {
    static constexpr Tile<S> one[6] = {tile<S, 1, 1>, tile<S, 1, 2>, tile<S, 1, 3>, tile<S, 1, 4>, tile<S, 1, 5>, tile<S, 1, 6>};
    static constexpr Tile<S> two[3] = {tile<S, 2, 1>, tile<S, 2, 2>, tile<S, 2, 3>};
    static constexpr Tile<S> three[2] = {tile<S, 3, 1>, tile<S, 3, 2>};
    static constexpr Tile<S> more[tile_rows - 3] = {tile<S, 4, 1>, tile<S, 5, 1>, tile<S, 6, 1>};

    static Tile<S> find(int rows, int64_t panels) {
        return rows == 1 ? one[panels - 1] : rows == 2 ? two[panels - 1] : rows == 3 ? three[panels - 1] : more[rows - 4];
    }
};

// C[:, n_begin:n_end] = (accumulate ? C : 0) + bias + A @ W[:, n_begin:n_end].
//   a         row i of A is a + i * lda, or a + rows[i] * lda where `rows` is given
//   packed    W [K, N] from `pack`, 64-byte aligned
//   n_begin   a multiple of panel<S>; `split` finds such edges
//   bias      [N], or null for none
//   c         row i of C is c + i * ldc
template <class S>
__attribute__((noinline)) void product(const S* a, int64_t lda, int64_t M, const S* packed, int64_t K, int64_t N, int64_t n_begin,
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
                Tiles<S>::find(height, width / panel<S>)(from, packed + n / panel<S> * panel_stride<S>(K), K, sums);
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

}  // namespace frnn
