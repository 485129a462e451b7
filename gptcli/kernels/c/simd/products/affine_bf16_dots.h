/* Affine weights of up to 5 bits times activations of a few tokens in bf16. For vectors of 512 bits.
 *
 * A q is at most 8 bits with its sign, so bf16 holds it exactly. One instruction looks up two columns of 16 rows, and one
 * multiplies them with a token's; a group's sum is scaled in fp32. So only activations are rounded.
 */
#pragma once

#include "affine_dots.h"
#include "../bf16_pairs.h"

/* The numbers that q stand for, by q. */
INLINE __m512i pairs_table(const Matrix *matrix, const int bits, const Constants constants) {
    floats low = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (is_looked_up(constants)) low = load_byte(matrix->codes, 0);
    if (!has_biases(constants)) low = low - (float)zero_of(bits, constants);
    return rounded_pair(low, low + 16);
}

/* Adds to the sums what a segment adds. values: of `tokens` tokens, in the order of round_to_pairs. */
INLINE void add_pairs(const Matrix *matrix, __m512i table, const uint8_t *lines, const int8_t *values,
                      const float *totals, floats scales, floats biases, const int bits, const Constants constants,
                      const int tokens, floats *sums) {
    __m512 products[TILE_TOKENS] = {{0}};
    UNROLL for (int step = 0; step < SEGMENT / 4; step++) {
        if (step < bits) prefetch(lines + step * CACHE_LINE, AHEAD);
        const words four = four_columns(matrix, lines, step, bits, SINGLES); /* looked up here in another way */
        UNROLL for (int odd = 0; odd < 2; odd++) {
            const __m512i pairs = _mm512_permutexvar_epi16((__m512i)(odd ? four >> 8 : four), table);
            UNROLL for (int t = 0; t < tokens; t++) {
                const __m512i both = _mm512_set1_epi32(four_values(values + 2 * t * SEGMENT + 8 * step + 4 * odd));
                products[t] = _mm512_dpbf16_ps(products[t], (__m512bh)pairs, (__m512bh)both);
            }
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) {
        sums[t] += (floats)products[t] * scales;
        if (has_biases(constants)) sums[t] += biases * totals[t];
    }
}

/* A block of rows times `tokens` tokens from `token` on, all within one tile of the activations. */
INLINE void pairs_tile(const Matrix *matrix, const Activations *x, int64_t block, int64_t token, const Output *output,
                       const int bits, const Constants constants, const int tokens) {
    const __m512i table = pairs_table(matrix, bits, constants);
    const int64_t inside = token % x->width, steps = matrix->group / SEGMENT; /* segments of a group */
    const float *totals = x->sums + (token - inside) * x->segments + inside;
    const int8_t *values = x->values + 2 * SEGMENT * ((token - inside) * x->segments + inside);
    const uint8_t *lines = matrix->packed + block * matrix->block_bytes; /* records follow each other */
    floats sums[TILE_TOKENS] = {{0}};
    for (int64_t segment = 0; segment < x->segments;) {
        const uint8_t *record = lines;
        prefetch_constants(record, constants);
        lines += constants_bytes(constants);
        for (int group = 0; group < groups_in_record(constants); group++) {
            floats scales, biases = {0};
            load_constants(record, matrix->block_bytes, group, constants, 1, &scales, &biases);
            for (const int64_t end = segment + steps; segment < end; segment++) {
                add_pairs(matrix, table, lines, values, totals, scales, biases, bits, constants, tokens, sums);
                lines += SEGMENT * BLOCK * bits / 8;
                totals += x->width;
                values += 2 * SEGMENT * x->width;
            }
        }
    }
    store_rows(matrix, block * BLOCK, token, tokens, sums, 1, output);
}

INLINE void pairs_range(const Matrix *matrix, const Activations *x, int64_t begin, int64_t end, const Output *output,
                        const int bits, const Constants constants) {
    if (bits > MOST_PAIRED) return; /* see terms_of in linear.c */
    for (int64_t block = begin; block < end; block++)
        for (int64_t token = 0, count; token < x->tokens; token += count)
            switch (count = tile_tokens(x->tokens - token)) {
#define TILE_OF(count) case count: pairs_tile(matrix, x, block, token, output, bits, constants, count); break;
                TILE_OF(1) TILE_OF(2) TILE_OF(4) TILE_OF(8)
#undef TILE_OF
            }
}

/* One token to bf16, and the sums of its segments; see Activations. Of every four columns, those that add_pairs looks up
 * together are side by side: the first and third, then the others. */
INLINE void round_to_pairs(const float *x, int64_t segments, int64_t width, int8_t *values, float *sums) {
    const __m512i order = _mm512_set_epi16(31, 29, 30, 28, 27, 25, 26, 24, 23, 21, 22, 20, 19, 17, 18, 16, 15, 13, 14, 12,
                                           11, 9, 10, 8, 7, 5, 6, 4, 3, 1, 2, 0);
    for (int64_t segment = 0; segment < segments; segment++, x += SEGMENT) {
        const __m512i rounded = rounded_pair(load(x), load(x + LANES));
        const words word = (words)rounded;
        _mm512_storeu_si512(values + segment * width * 2 * SEGMENT, _mm512_permutexvar_epi16(order, rounded));
        sums[segment * width] = sum((floats)(word << 16) + (floats)(word & 0xffff0000));
    }
}
