// What generated expressions call besides arithmetic: torch's rules for extremes, remainders, indices and order.
#pragma once

#include "runtime.h"

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

namespace frnn {

template <class S> FRNN_INLINE bool isnan(S x) { return x != x; }
FRNN_INLINE bool isfinite(float x) { return (bits(x) & 0x7f800000u) != 0x7f800000u; }
FRNN_INLINE bool isfinite(double x) { return (bits(x) & 0x7ff0000000000000u) != 0x7ff0000000000000u; }
template <class S> FRNN_INLINE bool isfinite(S) { return true; }
template <class S> FRNN_INLINE bool isinf(S x) { return x == x && !isfinite(x); }
template <class S> FRNN_INLINE bool signbit(S x) { return x < 0; }
FRNN_INLINE bool signbit(float x) { return bits(x) >> 31; }
FRNN_INLINE bool signbit(double x) { return (uint64_t)bits(x) >> 63; }

// A NaN wins, as in torch.
template <class A, class B> FRNN_INLINE A maximum(A a, B b) { return a > b || a != a ? a : (A)b; }
template <class A, class B> FRNN_INLINE A minimum(A a, B b) { return a < b || a != a ? a : (A)b; }

template <class S> struct Extremes { static constexpr S low = (S)((S)-1 < (S)0 ? (S)((S)1 << (sizeof(S) * 8 - 1)) : (S)0), high = (S)~low; };
template <> struct Extremes<bool> { static constexpr bool low = false, high = true; };
template <class S> FRNN_INLINE S lowest() { return Extremes<S>::low; }
template <class S> FRNN_INLINE S highest() { return Extremes<S>::high; }
template <> FRNN_INLINE float lowest<float>() { return -INFINITY; }
template <> FRNN_INLINE float highest<float>() { return INFINITY; }
template <> FRNN_INLINE double lowest<double>() { return -(double)INFINITY; }
template <> FRNN_INLINE double highest<double>() { return (double)INFINITY; }

template <class S> FRNN_INLINE S abs(S x) { return x < 0 ? -x : x; }
FRNN_INLINE float abs(float x) { return __builtin_fabsf(x); }
FRNN_INLINE double abs(double x) { return __builtin_fabs(x); }
template <class S> FRNN_INLINE S sign(S x) { return (S)((x > 0) - (x < 0)); }

template <class S> FRNN_INLINE S floor(S x) { return x; }
template <class S> FRNN_INLINE S ceil(S x) { return x; }
template <class S> FRNN_INLINE S trunc(S x) { return x; }
template <class S> FRNN_INLINE S round(S x) { return x; }
FRNN_INLINE float floor(float x) { return __builtin_floorf(x); }
FRNN_INLINE double floor(double x) { return __builtin_floor(x); }
FRNN_INLINE float ceil(float x) { return __builtin_ceilf(x); }
FRNN_INLINE double ceil(double x) { return __builtin_ceil(x); }
FRNN_INLINE float trunc(float x) { return __builtin_truncf(x); }
FRNN_INLINE double trunc(double x) { return __builtin_trunc(x); }
FRNN_INLINE float round(float x) { return __builtin_rintf(x); }  // halves to even
FRNN_INLINE double round(double x) { return __builtin_rint(x); }

// Torch raises where an integer is divided by zero: a fault.
template <class S> FRNN_INLINE S divisor(S b, int64_t* fault) {
    if (b == 0) *fault = 1;
    return b;
}

// The sign of a remainder is the divisor's; of fmod, the dividend's. A division of integers by zero is a fault, gives 0 and does not trap.
template <class S> FRNN_INLINE S fmod(S a, S b) { return b == 0 || b == (S)-1 ? 0 : (S)(a % b); }
FRNN_INLINE float fmod(float a, float b) { return __builtin_fmodf(a, b); }
FRNN_INLINE double fmod(double a, double b) { return __builtin_fmod(a, b); }
template <class S> FRNN_INLINE S remainder(S a, S b) {
    const S r = fmod(a, b);
    return r != 0 && ((r < 0) != (b < 0)) ? (S)(r + b) : r;
}
template <class S> FRNN_INLINE S trunc_divide(S a, S b) { return b == 0 ? 0 : b == (S)-1 ? (S)(0 - a) : (S)(a / b); }
FRNN_INLINE float trunc_divide(float a, float b) { return trunc(a / b); }
FRNN_INLINE double trunc_divide(double a, double b) { return trunc(a / b); }
template <class S> FRNN_INLINE S floor_divide(S a, S b) {
    const S q = trunc_divide(a, b);
    return (S)(q - (b != 0 && q * b != a && ((a < 0) != (b < 0))));
}
// As Python divides floats: through the remainder, so that a // b and a % b agree.
template <class F> FRNN_INLINE F floor_divide_float(F a, F b) {
    if (b == 0) return a / b;
    const F mod = fmod(a, b);
    F q = (a - mod) / b;
    if (mod != 0 && ((b < 0) != (mod < 0))) q -= 1;
    if (q == 0) return a / b < 0 ? (F)-0.0 : (F)0;
    const F down = floor(q);
    return q - down > (F)0.5 ? down + 1 : down;
}
FRNN_INLINE float floor_divide(float a, float b) { return floor_divide_float(a, b); }
FRNN_INLINE double floor_divide(double a, double b) { return floor_divide_float(a, b); }

FRNN_INLINE bool invert(bool x) { return !x; }
template <class S> FRNN_INLINE S invert(S x) { return (S)~x; }

// Shifts by a negative number of bits or by too many: all of them go.
template <class S> FRNN_INLINE S shift_left(S a, S b) { return b < 0 || b >= (S)(sizeof(S) * 8) ? (S)0 : (S)((uint64_t)a << b); }
template <class S> FRNN_INLINE S shift_right(S a, S b) {
    constexpr int most = (int)sizeof(S) * 8 - ((S)-1 < (S)0);
    return (S)(a >> (b < 0 || b >= (S)most ? most : (int)b));
}

template <class S> FRNN_INLINE S pow(S a, S b) {  // of integers
    if (b < 0) return a == 1 ? 1 : a == (S)-1 ? (b % 2 ? -1 : 1) : 0;
    S r = 1;
    for (; b > 0; b = (S)(b >> 1), a = (S)(a * a))
        if (b & 1) r = (S)(r * a);
    return r;
}

FRNN_INLINE float exp2(float x) { return __builtin_exp2f(x); }
FRNN_INLINE double exp2(double x) { return __builtin_exp2(x); }
FRNN_INLINE float log2(float x) { return __builtin_log2f(x); }
FRNN_INLINE double log2(double x) { return __builtin_log2(x); }
FRNN_INLINE float log10(float x) { return __builtin_log10f(x); }
FRNN_INLINE double log10(double x) { return __builtin_log10(x); }
FRNN_INLINE float tan(float x) { return __builtin_tanf(x); }
FRNN_INLINE double tan(double x) { return __builtin_tan(x); }
FRNN_INLINE float erfc(float x) { return __builtin_erfcf(x); }
FRNN_INLINE double erfc(double x) { return __builtin_erfc(x); }
FRNN_INLINE float atan(float x) { return __builtin_atanf(x); }
FRNN_INLINE double atan(double x) { return __builtin_atan(x); }
FRNN_INLINE float asin(float x) { return __builtin_asinf(x); }
FRNN_INLINE double asin(double x) { return __builtin_asin(x); }
FRNN_INLINE float acos(float x) { return __builtin_acosf(x); }
FRNN_INLINE double acos(double x) { return __builtin_acos(x); }
FRNN_INLINE float sinh(float x) { return __builtin_sinhf(x); }
FRNN_INLINE double sinh(double x) { return __builtin_sinh(x); }
FRNN_INLINE float cosh(float x) { return __builtin_coshf(x); }
FRNN_INLINE double cosh(double x) { return __builtin_cosh(x); }
FRNN_INLINE float atan2(float y, float x) { return __builtin_atan2f(y, x); }
FRNN_INLINE double atan2(double y, double x) { return __builtin_atan2(y, x); }
FRNN_INLINE float copysign(float x, float y) { return __builtin_copysignf(x, y); }
FRNN_INLINE double copysign(double x, double y) { return __builtin_copysign(x, y); }

// The inverse of erf: Giles 2010, "Approximating the erfinv function", then two steps of Newton in double.
FRNN_INLINE double erfinv(double x) {
    if (!(x > -1 && x < 1)) return x == 1 ? (double)INFINITY : x == -1 ? -(double)INFINITY : (double)NAN;
    double w = -__builtin_log((1 - x) * (1 + x)), p;
    if (w < 5) {
        w -= 2.5;
        p = 2.81022636e-08;
        const double c[] = {3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164, 0.246640727, 1.50140941};
        for (int i = 0; i < 8; ++i) p = c[i] + p * w;
    } else {
        w = __builtin_sqrt(w) - 3;
        p = -0.000200214257;
        const double c[] = {0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047, 1.00167406, 2.83297682};
        for (int i = 0; i < 8; ++i) p = c[i] + p * w;
    }
    double y = p * x;
    for (int i = 0; i < 2; ++i) y -= (__builtin_erf(y) - x) / (1.1283791670955126 * __builtin_exp(-y * y));  // 2 / sqrt(pi)
    return y;
}
FRNN_INLINE float erfinv(float x) { return (float)erfinv((double)x); }

FRNN_INLINE int64_t wrapped(int64_t at, int64_t size) { return at < 0 ? at + size : at; }
// The start of a slice, as torch bounds it.
FRNN_INLINE int64_t bounded(int64_t at, int64_t size) {
    at = wrapped(at, size);
    return at < 0 ? 0 : at > size ? size : at;
}
// A read along time: past the end the last element. Below -size there is none: a fault.
FRNN_INLINE int64_t read_at(int64_t at, int64_t size, int64_t* fault) {
    at = wrapped(at, size);
    if (at < 0 && size) *fault = 1;
    return at < 0 ? 0 : at >= size ? (size ? size - 1 : 0) : at;
}

// Orders in which NaN is the largest.
template <class S> FRNN_INLINE bool before(S a, S b) { return a < b || (b != b && a == a); }
template <class S> FRNN_INLINE bool after(S a, S b) { return a > b || (a != a && b == b); }

// Stable merge sort of 0..n-1 by `comes(i, j)`: i strictly before j.
template <class C> void sort(int64_t* order, int64_t n, C comes) {
    for (int64_t i = 0; i < n; ++i) order[i] = i;
    int64_t* const other = (int64_t*)__builtin_malloc((size_t)n * sizeof(int64_t));
    int64_t *from = order, *to = other;
    for (int64_t width = 1; width < n; width *= 2) {
        for (int64_t low = 0; low < n; low += 2 * width) {
            const int64_t mid = low + width < n ? low + width : n, high = low + 2 * width < n ? low + 2 * width : n;
            for (int64_t i = low, j = mid, k = low; k < high; ++k) to[k] = i < mid && (j >= high || !comes(from[j], from[i])) ? from[i++] : from[j++];
        }
        int64_t* const swap = from;
        from = to;
        to = swap;
    }
    if (from != order) memcpy(order, from, (size_t)n * sizeof(int64_t));
    __builtin_free(other);
}

}  // namespace frnn
