/* Affine weights times fp32 activations.
 *
 * Each weight becomes scale * q + bias in fp32, exactly as in an expanded matrix, which need not be read. A lane has
 * several columns of a row, and they are not shifted down: masked, a q stands for itself times a power of two, and its
 * scale is divided by that, which is exact. Only the topmost column is shifted, because lanes are signed.
 */
#ifndef GPTCLI_SIMD_AFFINE_FP32_H
#define GPTCLI_SIMD_AFFINE_FP32_H

#include "affine.h"

enum { STEP = 8 }; /* columns at once: a line of 4 bits, or two of 8; also the number of independent sums */

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

/* LANES rows from `row` on times `tokens` tokens from `token` on. */
INLINE void exact_tile(const Matrix *matrix, const float *x, int64_t row, int64_t token, const Output *output,
                       const int bits, const Constants constants, const int tokens) {
    const int sums_each = tokens < STEP ? STEP / tokens : 1;
    const int64_t columns = matrix->columns, lane = row % BLOCK;
    const uint8_t *lines = matrix->packed + row / BLOCK * matrix->block_bytes; /* records follow each other */
    floats sums[TILE][STEP] = {{{0}}};
    x += token * columns;
    for (int64_t column = 0; column < columns;) {
        const uint8_t *record = lines;
        prefetch_constants(record, constants);
        lines += constants_bytes(constants);
        UNROLL for (int group = 0; group < groups_in_record(constants); group++) {
            floats scales[STEP], bias = exact_constants(record, group, lane, bits, constants, scales);
            for (int64_t end = column + matrix->group; column < end; column += STEP, lines += STEP * BLOCK * bits / 8) {
                prefetch_columns(lines, bits);
                UNROLL for (int c = 0; c < STEP; c++) {
                    floats weights = exact_weights(lines + lane * 4, c, bits, scales, bias);
                    UNROLL for (int t = 0; t < tokens; t++)
                        sums[t][c % sums_each] += weights * x[t * columns + column + c];
                }
            }
        }
    }
    floats done[TILE];
    UNROLL for (int t = 0; t < tokens; t++) {
        done[t] = sums[t][0];
        UNROLL for (int s = 1; s < sums_each; s++) done[t] += sums[t][s];
    }
    store_rows(matrix, row, token, tokens, done, 1, output);
}

INLINE void exact_range(const Matrix *matrix, const float *x, int64_t tokens, int64_t begin, int64_t end,
                        const Output *output, const int bits, const Constants constants) {
    for (int64_t row = begin; row < end; row += LANES) {
        for (int64_t token = 0; token < tokens; token += TILE) {
            switch (tokens - token < TILE ? tokens - token : TILE) {
#define TILE_OF(count) case count: exact_tile(matrix, x, row, token, output, bits, constants, count); break;
                TILE_OF(1) TILE_OF(2) TILE_OF(3) TILE_OF(4) TILE_OF(5) TILE_OF(6) TILE_OF(7) TILE_OF(8)
#undef TILE_OF
            }
        }
    }
}

static void exact_blocks(const Matrix *matrix, const float *x, int64_t tokens, int64_t begin, int64_t end,
                         const Output *output) {
    int64_t first = begin * BLOCK, last = end * BLOCK < matrix->rows ? end * BLOCK : matrix->rows;
    BY_FORMAT(exact_range, matrix, x, tokens, first, last, output);
}

#endif
