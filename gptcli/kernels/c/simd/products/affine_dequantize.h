/* Affine weights as numbers: scale * q + bias in fp32.
 *
 * A lane has several columns of a row, and they are not shifted down: masked, a q stands for itself times a power of
 * two, and its scale is divided by that, which is exact. Only the topmost column is shifted, because lanes are signed.
 */
#pragma once

#include "affine.h"

enum { STEP = 8 }; /* columns at once: a line of 4 bits, or two of 8 */

/* The lowest bit of a column in its lane. */
INLINE int lowest_bit(int column, const int bits) { return column % 4 * 8 + (bits == 8 ? 0 : column / 4 * 4); }

/* Whether a format has the lines that the trick above needs. */
INLINE int is_plain(const int bits, const Constants constants) { return bits % 4 == 0 && !is_looked_up(constants); }

/* Where a column is in its lane, and whether nothing is above it there. */
INLINE int shift_of(int column, const int bits, const Constants constants) {
    return is_plain(bits, constants) ? lowest_bit(column, bits) : column % 4 * 8;
}

INLINE int is_topmost(int column, const int bits, const Constants constants) {
    return is_plain(bits, constants) && bits == 4 ? column == 7 : column % 4 == 3;
}

/* The scales that exact_weights needs for each of eight columns, and the bias, of one of a record's groups. */
INLINE floats exact_constants(const uint8_t *record, int64_t group, int64_t lane, const int bits,
                              const Constants constants, floats *scales) {
    floats scale = load_scale(record, group, lane, constants);
    UNROLL for (int c = 0; c < STEP; c++) {
        scales[c] = is_topmost(c, bits, constants) ? scale : scale / (float)(1u << shift_of(c, bits, constants));
    }
    if (has_biases(constants)) return load_bias(record, group, lane, constants);
    return scale * -(float)zero_of(bits, constants);
}

/* Column `first` + `column` of a segment that begins at `lines`; first: a multiple of eight. */
INLINE floats exact_weights(const Matrix *matrix, const uint8_t *lines, int first, int column, const int bits,
                            const Constants constants, const floats *scales, floats bias) {
    const int shift = shift_of(column, bits, constants), plain = is_plain(bits, constants);
    words word = plain ? load_words(lines + (first + column) * bits / 32 * CACHE_LINE)
                       : four_columns(matrix, lines, (first + column) / 4, bits, constants);
    words q = is_topmost(column, bits, constants) ? word >> shift : word & ((1u << (plain ? bits : 8)) - 1) << shift;
    return float_of_ints((ints)q) * scales[column] + bias;
}
