/* Vectors of LANES floats: loads, stores, comparisons, and e^x with what is made of it. */
#pragma once

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { AHEAD = 4096 }; /* bytes between what is read and what is prefetched: memory takes that long */

INLINE floats load(const float *from) {
    floats value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE halves load_halves(const uint16_t *from) {
    halves value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE words load_words(const uint8_t *from) {
    words value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void store(float *to, floats value) { memcpy(to, &value, sizeof value); }
INLINE floats splat(float value) { return (floats){0} + value; }
INLINE floats float_of_ints(ints value) { return __builtin_convertvector(value, floats); }
INLINE floats choose(ints mask, floats yes, floats no) { return (floats)((mask & (ints)yes) | (~mask & (ints)no)); }

#if !HAS_MASKS
/* With a NaN both give b, for the comparison is false. */
INLINE floats least(floats a, floats b) { return choose(a < b, a, b); }
INLINE floats greatest(floats a, floats b) { return choose(a > b, a, b); }

/* The vector at `index` of an array of `size`, with zeros past its end. */
INLINE floats load_some(const float *from, int64_t index, int64_t size) {
    if (index + LANES <= size) return load(from + index);
    floats value = {0};
    memcpy(&value, from + index, (size_t)(size - index) * sizeof(float));
    return value;
}

INLINE void store_some(float *to, int64_t index, int64_t size, floats value) {
    int64_t count = size - index < LANES ? size - index : LANES;
    if (count == LANES)
        store(to + index, value);
    else
        memcpy(to + index, &value, (size_t)count * sizeof(float));
}
#endif

INLINE void prefetch(const void *address, int64_t ahead) { __builtin_prefetch((const char *)address + ahead); }

/* Part `i` of `n` of some bytes, into the L2 cache. */
INLINE void fetch_part(const void *from, int64_t bytes, int64_t i, int64_t n) {
    for (int64_t at = bytes * i / n; at < bytes * (i + 1) / n; at += CACHE_LINE)
        __builtin_prefetch((const char *)from + at, 0, 2);
}

/* Transposes LANES vectors by interleaving their two halves log2(LANES) times. */
INLINE void transpose(floats *vectors) {
    UNROLL for (int round = LANES; round > 1; round /= 2) {
        floats from[LANES];
        UNROLL for (int i = 0; i < LANES; i++) from[i] = vectors[i];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            vectors[2 * i] = interleave_low(from[i], from[i + LANES / 2]);
            vectors[2 * i + 1] = interleave_high(from[i], from[i + LANES / 2]);
        }
    }
}

INLINE float greatest_lane(floats value) {
    float most = value[0];
    for (int i = 1; i < LANES; i++) most = value[i] > most ? value[i] : most;
    return most;
}

/* e^(x - n ln(2)) for the nearest n to x / ln(2), a polynomial from Cephes (Moshier). */
INLINE floats exponential_of_rest(floats x, floats n) {
    floats r = x - n * 0.693359375f; /* ln(2) as a sum, its first term exact in few bits */
    r = r + n * 2.12194440e-4f;
    floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * r * r + r + 1;
}

/* e^x to 2 units in the last place. */
INLINE floats exponential(floats x) {
    x = least(splat(89), greatest(splat(-104), x)); /* where infinity and zero begin */
    ints n = nearest(x * 1.44269504f);
    floats p = exponential_of_rest(x, float_of_ints(n));
    ints half = n >> 1; /* 2^n as two factors: n may exceed what one exponent holds */
    return p * (floats)((half + 127) << 23) * (floats)((n - half + 127) << 23);
}

INLINE floats sigmoid(floats x) { return 1 / (1 + exponential(-x)); }
INLINE floats hyperbolic_tangent(floats x) { return 1 - 2 / (exponential(2 * x) + 1); }
