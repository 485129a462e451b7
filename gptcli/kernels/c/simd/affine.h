/* What products with affine weights and their expansion share: constants, and one copy of the code for each format. */
#ifndef GPTCLI_SIMD_AFFINE_H
#define GPTCLI_SIMD_AFFINE_H

#include "../kernels.h"
#include "vectors.h"

enum { VECTORS = BLOCK / LANES }; /* that make up a block's rows */

INLINE floats load_constant(const uint8_t *record, int64_t index, const Constants constants) {
    if (constants == SINGLES) return load((const float *)record + index);
    return float_of_halves(load_halves((const uint16_t *)record + index));
}

INLINE void prefetch_constants(const uint8_t *record, const Constants constants) {
    for (int64_t i = 0; i < constants_bytes(constants); i += CACHE_LINE) prefetch(record + i, AHEAD);
}

/* Calls a function with an affine matrix's bits and constants as its last arguments: a copy of it for each format. */
#define BY_FORMAT(function, matrix, ...)                                                                               \
    switch (matrix->bits + matrix->constants) {                                                                        \
    case 4 + SINGLES: function(matrix, __VA_ARGS__, 4, SINGLES); break;                                                \
    case 4 + HALVES: function(matrix, __VA_ARGS__, 4, HALVES); break;                                                  \
    case 4 + CENTRED: function(matrix, __VA_ARGS__, 4, CENTRED); break;                                                \
    case 8 + SINGLES: function(matrix, __VA_ARGS__, 8, SINGLES); break;                                                \
    case 8 + HALVES: function(matrix, __VA_ARGS__, 8, HALVES); break;                                                  \
    case 8 + CENTRED: function(matrix, __VA_ARGS__, 8, CENTRED); break;                                                \
    }

#endif
