/* Vectors of 512 bits, as level.h wants them. Included after a compiler target is set. */
#pragma once

#include "../kernels.h"

#include <immintrin.h>

enum { LANES = 16 };
#define TILE_TOKENS 8
#define PAIRED_TOKENS 4
#define HAS_CODES 1
#define HAS_MASKS 1
#define FEW 16
#define PANEL_TOKENS 12

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

static inline floats float_of_halves(halves value) { return (floats)_mm512_cvtph_ps((__m256i)value); }
static inline halves halves_of_floats(floats value) {
    return (halves)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
}
static inline floats floats_of_bytes(const int8_t *from) {
    return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from)));
}
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

/* As in vectors.h. */
static inline floats least(floats a, floats b) { return (floats)_mm512_min_ps((__m512)a, (__m512)b); }
static inline floats greatest(floats a, floats b) { return (floats)_mm512_max_ps((__m512)a, (__m512)b); }

static inline __mmask16 lanes_before(int64_t index, int64_t size) {
    return size - index < LANES ? (__mmask16)((1 << (size - index)) - 1) : (__mmask16)-1;
}

static inline floats load_some(const float *from, int64_t index, int64_t size) {
    return (floats)_mm512_maskz_loadu_ps(lanes_before(index, size), from + index);
}

static inline void store_some(float *to, int64_t index, int64_t size, floats value) {
    _mm512_mask_storeu_ps(to + index, lanes_before(index, size), (__m512)value);
}

static inline words look_up(const uint8_t *table, words indices) {
    __m512i values = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table));
    return (words)_mm512_shuffle_epi8(values, (__m512i)indices);
}

static inline __attribute__((always_inline)) ints dot(ints total, words weights, int32_t values, const int bits) {
    (void)bits;
    return (ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)weights, _mm512_set1_epi32(values));
}

/* The lowest byte of each of 64 words, in stored order: the inverse of the interleaving below. */
static inline __m512i packed_bytes(const __m512i *words) {
    return _mm512_packus_epi16(_mm512_packus_epi32(words[0], words[1]), _mm512_packus_epi32(words[2], words[3]));
}

/* Returns whether all upper bytes of a record have a code, and writes the record if the matrix has memory. tops: becomes
 * the upper bytes in stored order. */
static inline __attribute__((always_inline)) int encode_record(const Matrix *matrix, const uint8_t *weights,
                                                               int64_t record, uint8_t *tops, const int wide) {
    __m512i words[4], upper[4], next[4], low[4];
    for (int v = 0; v < 4; v++) {
        words[v] = wide ? _mm512_loadu_si512(weights + 64 * v)
                        : _mm512_slli_epi32(
                              _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(weights + 32 * v))), 16);
        upper[v] = _mm512_srli_epi32(words[v], 24);
        next[v] = _mm512_and_si512(_mm512_srli_epi32(words[v], 16), _mm512_set1_epi32(255));
        low[v] = _mm512_and_si512(words[v], _mm512_set1_epi32(65535));
    }
    const __m512i none = _mm512_set1_epi8(-1);
    __m512i top = packed_bytes(upper), code = none;
    for (int i = 0; i < 16; i++) {
        __mmask64 same = _mm512_cmpeq_epi8_mask(top, _mm512_set1_epi8((char)matrix->tops[i]));
        code = _mm512_mask_mov_epi8(code, same, _mm512_set1_epi8((char)i));
    }
    _mm512_storeu_si512(tops, top);
    if (matrix->packed != NULL) {
        uint8_t *rest = matrix->rest + record * matrix->rest_bytes;
        __m256i first = _mm256_and_si256(_mm512_castsi512_si256(code), _mm256_set1_epi8(15));
        __m256i second = _mm256_slli_epi16(_mm512_extracti64x4_epi64(code, 1), 4);
        second = _mm256_and_si256(second, _mm256_set1_epi8(-16));
        _mm256_storeu_si256((void *)(matrix->packed + record * CODE_BYTES), _mm256_or_si256(first, second));
        _mm512_storeu_si512(rest, packed_bytes(next));
        if (wide) {
            _mm512_storeu_si512(rest + RECORD, _mm512_packus_epi32(low[0], low[1]));
            _mm512_storeu_si512(rest + 2 * RECORD, _mm512_packus_epi32(low[2], low[3]));
        }
    }
    return _mm512_cmpeq_epi8_mask(code, none) == 0;
}

/* The upper halves of a record's numbers: those of the first 32 columns, then of the others. Four columns from each half
 * of these follow each other: 0 to 3, 16 to 19, 4 to 7, ... */
static inline __attribute__((always_inline)) void decode_halves(const Matrix *matrix, const uint8_t *codes,
                                                                const uint8_t *rest, const uint8_t *spelled,
                                                                __m512i *first, __m512i *second) {
    const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    const __m512i known = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)matrix->tops));
    __m512i twice = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)codes));
    __m512i code = _mm512_and_si512(_mm512_srlv_epi16(twice, shifts), _mm512_set1_epi8(15));
    __m512i tops = _mm512_shuffle_epi8(known, code), next = _mm512_loadu_si512(rest);
    if (__builtin_expect(spelled != NULL, 0)) tops = _mm512_loadu_si512(spelled);
    *first = _mm512_unpacklo_epi8(next, tops);
    *second = _mm512_unpackhi_epi8(next, tops);
}

/* See coded_dots.h. Takes 19 vector instructions for 64 weights in bf16, loads included. */
static inline __attribute__((always_inline)) void decode_record(const Matrix *matrix, const uint8_t *codes,
                                                                const uint8_t *rest, const uint8_t *spelled,
                                                                floats *weights, const int wide) {
    __m512i first, second, low = _mm512_setzero_si512(), more = low;
    decode_halves(matrix, codes, rest, spelled, &first, &second);
    if (wide) {
        low = _mm512_loadu_si512(rest + RECORD);
        more = _mm512_loadu_si512(rest + 2 * RECORD);
    }
    weights[0] = (floats)_mm512_unpacklo_epi16(low, first);
    weights[1] = (floats)_mm512_unpackhi_epi16(low, first);
    weights[2] = (floats)_mm512_unpacklo_epi16(more, second);
    weights[3] = (floats)_mm512_unpackhi_epi16(more, second);
}
