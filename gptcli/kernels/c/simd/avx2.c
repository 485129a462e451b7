/* The inner loops for AVX2 with FMA and F16C: x86 from 2013 on. */
#include "../kernels.h"

#if GPTCLI_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include <immintrin.h>

enum { LANES = 8 };
#define TILE_TOKENS 4
#define PAIRED_TOKENS 0
#define HAS_CODES 0
#define HAS_MASKS 0
#define FEW 3
#define PANEL_TOKENS 6

typedef float floats __attribute__((vector_size(32)));
typedef int32_t ints __attribute__((vector_size(32)));
typedef uint32_t words __attribute__((vector_size(32)));
typedef uint16_t halves __attribute__((vector_size(16)));

static inline floats float_of_halves(halves value) { return (floats)_mm256_cvtph_ps((__m128i)value); }
static inline halves halves_of_floats(floats value) {
    return (halves)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
}
static inline floats floats_of_bytes(const int8_t *from) {
    return (floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)from)));
}
static inline words words_of_halves(halves value) { return (words)_mm256_cvtepu16_epi32((__m128i)value); }
static inline floats interleave_low(floats a, floats b) {
    __m256 first = _mm256_unpacklo_ps((__m256)a, (__m256)b), second = _mm256_unpackhi_ps((__m256)a, (__m256)b);
    return (floats)_mm256_permute2f128_ps(first, second, 0x20);
}

static inline floats interleave_high(floats a, floats b) {
    __m256 first = _mm256_unpacklo_ps((__m256)a, (__m256)b), second = _mm256_unpackhi_ps((__m256)a, (__m256)b);
    return (floats)_mm256_permute2f128_ps(first, second, 0x31);
}

static inline ints nearest(floats value) { return (ints)_mm256_cvtps_epi32((__m256)value); }

static inline float sum(floats value) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)value), _mm256_extractf128_ps((__m256)value, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

static inline int32_t largest(ints value) {
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128((__m256i)value), _mm256_extracti128_si256((__m256i)value, 1));
    __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

static inline words look_up(const uint8_t *table, words indices) {
    __m256i values = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table));
    return (words)_mm256_shuffle_epi8(values, (__m256i)indices);
}

static inline __attribute__((always_inline)) ints dot(ints total, words weights, int32_t values, const int bits) {
    __m256i w = (__m256i)weights, x = _mm256_set1_epi32(values);
    /* maddubs adds two products in 16 bits: 2 * 63 * 127 fits, 2 * 255 * 127 does not. */
    if (bits < 8) return total + (ints)_mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)),
                                     _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(x, 8));
    return total + (ints)even + (ints)odd;
}

#include "level.h"

const Level avx2_level = LEVEL("avx2");

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
