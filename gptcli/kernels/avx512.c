/* The kernels for AVX-512 with VNNI: Intel from Ice Lake, AMD from Zen 4 on. */
#include "kernels.h"

#if GPTCLI_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,prefer-vector-width=512")
#endif

#include <immintrin.h>

enum { LANES = 16 };
#define TOKENS 8
#define PAIRED_TOKENS 4
#define PANEL_TOKENS 12

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

static inline floats float_of_halves(halves value) { return (floats)_mm512_cvtph_ps((__m256i)value); }
static inline words words_of_halves(halves value) { return (words)_mm512_cvtepu16_epi32((__m256i)value); }
static inline floats interleave_low(floats a, floats b) {
    const __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return (floats)_mm512_permutex2var_ps((__m512)a, order, (__m512)b);
}

static inline floats interleave_high(floats a, floats b) {
    const __m512i order = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return (floats)_mm512_permutex2var_ps((__m512)a, order, (__m512)b);
}

static inline ints nearest(floats value) { return (ints)_mm512_cvtps_epi32((__m512)value); }
static inline float sum(floats value) { return _mm512_reduce_add_ps((__m512)value); }
static inline int32_t largest(ints value) { return _mm512_reduce_max_epi32((__m512i)value); }

static inline __attribute__((always_inline)) ints dot(ints total, words weights, int32_t values, const int bits) {
    (void)bits;
    return (ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)weights, _mm512_set1_epi32(values));
}

#include "level.h"

const Level avx512_level = LEVEL("avx512");

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
