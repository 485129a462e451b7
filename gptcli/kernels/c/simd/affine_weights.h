/* Affine weights as numbers: scale * q + bias in fp32.
 *
 * A lane has several columns of a row, and they are not shifted down: masked, a q stands for itself times a power of
 * two, and its scale is divided by that, which is exact. Only the topmost column is shifted, because lanes are signed.
 */
#ifndef GPTCLI_SIMD_AFFINE_WEIGHTS_H
#define GPTCLI_SIMD_AFFINE_WEIGHTS_H

#include "affine.h"

enum { STEP = 8 }; /* columns at once: a line of 4 bits, or two of 8 */

/* The lowest bit of a column in its lane. */
INLINE int lowest_bit(int column, const int bits) { return column % 4 * 8 + (bits == 8 ? 0 : column / 4 * 4); }

/* A scale for each of the eight columns, and the bias, of one of a record's groups. */
INLINE floats exact_constants(const uint8_t *record, int64_t group, int64_t lane, const int bits,
                              const Constants constants, floats *scales) {
    floats scale = load_constant(record, group * BLOCK + lane, constants);
    UNROLL for (int c = 0; c < STEP; c++) {
        int shift = lowest_bit(c, bits);
        scales[c] = shift + bits == 32 ? scale : scale * (1 / (float)(1u << shift));
    }
    return constants == CENTRED ? scale * -(float)middle_of(bits) : load_constant(record, BLOCK + lane, constants);
}

/* One of the eight columns that start at a line. */
INLINE floats exact_weights(const uint8_t *lines, int column, const int bits, const floats *scales, floats bias) {
    int shift = lowest_bit(column, bits);
    words word = load_words(lines + column * bits / 32 * CACHE_LINE);
    words q = shift + bits == 32 ? word >> shift : word & ((1u << bits) - 1) << shift;
    return float_of_ints((ints)q) * scales[column] + bias;
}

INLINE void prefetch_columns(const uint8_t *lines, const int bits) {
    prefetch(lines, AHEAD);
    if (bits == 8) prefetch(lines + CACHE_LINE, AHEAD);
}

#endif
