/* What products with affine weights and their expansion share: constants, and one copy of the code for each format. */
#pragma once

#include "../../kernels.h"
#include "../vectors.h"

enum { VECTORS = BLOCK / LANES }; /* that make up a block's rows */

typedef uint8_t unsigned_bytes __attribute__((vector_size(LANES)));
typedef int8_t signed_bytes __attribute__((vector_size(LANES)));

INLINE floats load_half(const uint8_t *record, int64_t index) {
    return float_of_halves(load_halves((const uint16_t *)record + index));
}

INLINE floats load_byte(const uint8_t *from, const int is_signed) {
    unsigned_bytes value;
    memcpy(&value, from, sizeof value);
    return float_of_ints(is_signed ? __builtin_convertvector((signed_bytes)value, ints)
                                   : __builtin_convertvector(value, ints));
}

/* The scales of LANES rows in one of a record's groups. */
INLINE floats load_scale(const uint8_t *record, int64_t group, int64_t lane, const Constants constants) {
    if (constants == SINGLES) return load((const float *)record + group * BLOCK + lane);
    if (constants == LOOKED_UP_WIDE) {
        halves value = load_halves((const uint16_t *)record + group * BLOCK + lane);
        return (floats)(words_of_halves(value) << 16);
    }
    if (!is_nested(constants)) return load_half(record, group * BLOCK + lane);
    const uint8_t *bytes = record + CACHE_LINE + group * BLOCK * (constants == NESTED ? 2 : 1) + lane;
    return load_half(record, lane) * load_byte(bytes, constants == NESTED_CENTRED);
}

/* Their biases, of constants that have any. */
INLINE floats load_bias(const uint8_t *record, int64_t group, int64_t lane, const Constants constants) {
    if (constants == SINGLES) return load((const float *)record + BLOCK + lane);
    if (constants == HALVES) return load_half(record, BLOCK + lane);
    return -(load_half(record, BLOCK + lane) * load_byte(record + CACHE_LINE + (2 * group + 1) * BLOCK + lane, 0));
}

/* The bits of the numbers that dot products are made of, and the one that stands for zero where there are no biases. */
INLINE int width_of(const int bits, const Constants constants) { return is_looked_up(constants) ? 8 : bits; }
INLINE int zero_of(const int bits, const Constants constants) { return middle_of(width_of(bits, constants)); }

/* Columns [4 * step, 4 * step + 4) of a segment, a byte each, of LANES rows whose words begin at `lines`. */
INLINE words four_columns(const Matrix *matrix, const uint8_t *lines, int step, const int bits,
                          const Constants constants) {
    if (bits == 8) return load_words(lines + step * CACHE_LINE);
    words word = load_words(lines + step / 2 * CACHE_LINE);
    word = (step % 2 == 1 ? word >> 4 : word) & 0x0f0f0f0f;
    if (bits == 5) {
        words upper = load_words(lines + 4 * CACHE_LINE);
        word |= (step < 4 ? upper << (4 - step) : upper >> (step - 4)) & 0x10101010;
    } else if (bits == 6) {
        words upper = load_words(lines + (4 + step / 4) * CACHE_LINE);
        word |= (step % 4 < 2 ? upper << (4 - step % 4 * 2) : upper >> (step % 4 * 2 - 4)) & 0x30303030;
    }
    return is_looked_up(constants) ? look_up(matrix->codes, word) : word;
}

/* The number that three terms stand for, the greatest first. The upper two fit into 32 bits together. */
INLINE floats joined_terms(const ints *each) {
    return float_of_ints((each[0] << 8) + each[1]) * 256 + float_of_ints(each[2]);
}

INLINE void prefetch_constants(const uint8_t *record, const Constants constants) {
    for (int64_t i = 0; i < constants_bytes(constants); i += CACHE_LINE) prefetch(record + i, AHEAD);
}

/* Calls a function with an affine matrix's bits and constants as its last arguments: a copy of it for each format. */
#define FORMAT_OF(bits, constants) ((bits) * 8 + (constants))
#define CASE_OF(bits, constants, function, matrix, ...)                                                                \
    case FORMAT_OF(bits, constants): function(matrix, __VA_ARGS__, bits, constants); break;
#define BY_FORMAT(function, matrix, ...)                                                                               \
    switch (FORMAT_OF(matrix->bits, matrix->constants)) {                                                              \
        CASE_OF(4, SINGLES, function, matrix, __VA_ARGS__)                                                             \
        CASE_OF(4, HALVES, function, matrix, __VA_ARGS__)                                                              \
        CASE_OF(4, CENTRED, function, matrix, __VA_ARGS__)                                                             \
        CASE_OF(8, SINGLES, function, matrix, __VA_ARGS__)                                                             \
        CASE_OF(8, HALVES, function, matrix, __VA_ARGS__)                                                              \
        CASE_OF(8, CENTRED, function, matrix, __VA_ARGS__)                                                             \
        CASE_OF(4, NESTED, function, matrix, __VA_ARGS__)                                                              \
        CASE_OF(5, NESTED, function, matrix, __VA_ARGS__)                                                              \
        CASE_OF(6, NESTED_CENTRED, function, matrix, __VA_ARGS__)                                                      \
        CASE_OF(5, HALVES, function, matrix, __VA_ARGS__)                                                              \
        CASE_OF(5, CENTRED, function, matrix, __VA_ARGS__)                                                             \
        CASE_OF(4, LOOKED_UP, function, matrix, __VA_ARGS__)                                                           \
        CASE_OF(4, LOOKED_UP_WIDE, function, matrix, __VA_ARGS__)                                                      \
    }
