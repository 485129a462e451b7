/* Affine weights times activations, in integers. With three terms that is fp32 arithmetic: see Activations. */
#pragma once

#include "affine.h"

enum {
    MOST_VECTORS = PAIRED_TOKENS > 0 ? 2 * VECTORS : VECTORS, /* of a register tile */
    SPLIT_TOKENS = TILE_TOKENS / 2,                           /* of a register tile with three terms */
};

/* Dot products: of each term, token and vector of rows. */
typedef ints Dots[MOST_TERMS][TILE_TOKENS][MOST_VECTORS];

/* The constants of a group in a record of each of `blocks` blocks. */
INLINE void load_constants(const uint8_t *record, int64_t block_bytes, int64_t group, const Constants constants,
                           const int blocks, floats *scales, floats *biases) {
    UNROLL for (int v = 0; v < blocks * VECTORS; v++) {
        const uint8_t *of_block = record + v / VECTORS * block_bytes;
        scales[v] = load_scale(of_block, group, v % VECTORS * LANES, constants);
        if (has_biases(constants)) biases[v] = load_bias(of_block, group, v % VECTORS * LANES, constants);
    }
}

INLINE int32_t four_values(const int8_t *values) {
    int32_t word;
    memcpy(&word, values, sizeof word);
    return word;
}

/* Adds the dot products of steps [begin, end) of a segment, of four columns each: packed weights with the values of
 * `tokens` tokens. */
INLINE void segment_dots(const Matrix *matrix, const uint8_t *lines, const int8_t *values, const int begin,
                         const int end, const int bits, const Constants constants, const int terms, const int blocks,
                         const int tokens, Dots dots) {
    UNROLL for (int step = begin; step < end; step++) {
        UNROLL for (int v = 0; v < blocks * VECTORS; v++) {
            const uint8_t *of_block = lines + v / VECTORS * matrix->block_bytes;
            if (v == 0 && blocks == 1 && step < bits) prefetch(of_block + step * CACHE_LINE, AHEAD);
            words word = four_columns(matrix, of_block + v % VECTORS * LANES * 4, step, bits, constants);
            UNROLL for (int t = 0; t < tokens; t++)
                UNROLL for (int term = 0; term < terms; term++) {
                    const int8_t *four = values + (t * terms + term) * SEGMENT + step * 4;
                    dots[term][t][v] = dot(dots[term][t][v], word, four_values(four), width_of(bits, constants));
                }
        }
    }
}

/* Dot products without biases start at minus what the q that stands for zero adds to them. */
INLINE void start_dots(const int32_t *offsets, const int begin, const int end, const int width, const int terms,
                       const int blocks, const int tokens, Dots dots) {
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int term = 0; term < terms; term++) {
            int32_t offset = 0;
            UNROLL for (int half = begin / 4; half < end / 4; half++) offset += offsets[(t * terms + term) * 2 + half];
            UNROLL for (int v = 0; v < blocks * VECTORS; v++)
                dots[term][t][v] = ((ints){0} + offset) >> (8 - width); /* exact */
        }
}

/* The dot product of all terms. */
INLINE floats joined_dots(Dots dots, int token, int vector, const int terms) {
    if (terms == 1) return float_of_ints(dots[0][token][vector]);
    if (terms == SHORT_TERMS) return float_of_ints((dots[0][token][vector] << 8) + dots[1][token][vector]);
    const ints each[] = {dots[0][token][vector], dots[1][token][vector], dots[2][token][vector]};
    return joined_terms(each);
}

/* Stores (tokens, vectors) values. noinline: memcpy would spill the vector registers of the caller's loops. */
static __attribute__((noinline)) void store_rows(const Matrix *matrix, int64_t row, int64_t token, int64_t tokens,
                                                 const floats *values, int64_t vectors, const Output *output) {
    for (int64_t t = 0; t < tokens; t++) {
        float *out = output->out + (token + t) * output->stride;
        for (int v = 0; v < vectors && row + v * LANES < matrix->rows; v++) {
            int64_t first = row + v * LANES;
            floats bias = output->bias != NULL ? load_some(output->bias, first, matrix->rows) : (floats){0};
            store_some(out, first, matrix->rows, values[t * vectors + v] + bias);
        }
    }
}

/* Adds to the sums what one group of a segment, steps [begin, end), adds. */
INLINE void add_group(const Matrix *matrix, const Activations *x, int64_t index, const uint8_t *lines, const int begin,
                      const int end, const floats *scales, const floats *biases, const int bits,
                      const Constants constants, const int terms, const int blocks, const int tokens,
                      floats sums[TILE_TOKENS][MOST_VECTORS]) {
    Dots dots = {{{{0}}}};
    if (!has_biases(constants))
        start_dots(x->offsets + index * terms * 2, begin, end, width_of(bits, constants), terms, blocks, tokens, dots);
    segment_dots(matrix, lines, x->values + index * terms * SEGMENT, begin, end, bits, constants, terms, blocks, tokens,
                 dots);
    UNROLL for (int t = 0; t < tokens; t++) {
        UNROLL for (int v = 0; v < blocks * VECTORS; v++) {
            sums[t][v] += joined_dots(dots, t, v, terms) * (scales[v] * x->scales[index + t]);
            if (has_biases(constants)) sums[t][v] += biases[v] * x->sums[index + t];
        }
    }
}

/* `blocks` blocks of rows times `tokens` tokens from `token` on, all within one tile of the activations. */
INLINE void affine_tile(const Matrix *matrix, const Activations *x, int64_t block, int64_t token, const Output *output,
                        const int bits, const Constants constants, const int terms, const int blocks,
                        const int tokens) {
    int64_t index = token / x->width * x->segments * x->width + token % x->width; /* of the segment and token */
    const int64_t last = index + x->segments * x->width, block_bytes = matrix->block_bytes;
    const int parts = constants == NESTED_CENTRED ? 2 : 1; /* groups of a segment */
    const int64_t group_step = parts == 2 ? x->width : matrix->group / SEGMENT * x->width;
    const uint8_t *lines = matrix->packed + block * block_bytes; /* records follow each other */
    floats sums[TILE_TOKENS][MOST_VECTORS] = {{{0}}};
    while (index < last) {
        const uint8_t *record = lines;
        prefetch_constants(record, constants);
        lines += constants_bytes(constants);
        for (int group = 0; group < groups_in_record(constants); group += parts) {
            floats scales[2][MOST_VECTORS], biases[2][MOST_VECTORS];
            UNROLL for (int part = 0; part < parts; part++)
                load_constants(record, block_bytes, group + part, constants, blocks, scales[part], biases[part]);
            for (int64_t end = index + group_step; index < end;
                 index += x->width, lines += SEGMENT * BLOCK * bits / 8)
                UNROLL for (int part = 0; part < parts; part++)
                    add_group(matrix, x, index, lines, part * 8 / parts, (part + 1) * 8 / parts, scales[part],
                              biases[part], bits, constants, terms, blocks, tokens, sums);
        }
    }
    floats done[TILE_TOKENS * MOST_VECTORS];
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int v = 0; v < blocks * VECTORS; v++) done[t * blocks * VECTORS + v] = sums[t][v];
    store_rows(matrix, block * BLOCK, token, tokens, done, blocks * VECTORS, output);
}

/* One or two blocks of rows times all tokens, at most `most` in a register tile. */
INLINE void affine_block(const Matrix *matrix, const Activations *x, int64_t block, const Output *output,
                         const int bits, const Constants constants, const int terms, const int blocks, const int most) {
    for (int64_t token = 0, count; token < x->tokens; token += count)
        switch (count = x->tokens - token < most ? x->tokens - token : most) {
#define TILE_OF(count)                                                                                                 \
    case count:                                                                                                        \
        if (count <= most) affine_tile(matrix, x, block, token, output, bits, constants, terms, blocks, count);        \
        break;
            TILE_OF(1) TILE_OF(2)
#if TILE_TOKENS >= 4
            TILE_OF(3) TILE_OF(4)
#endif
#if TILE_TOKENS >= 8
            TILE_OF(5) TILE_OF(6) TILE_OF(7) TILE_OF(8)
#endif
#undef TILE_OF
        }
}

#if TILE_TOKENS >= 8
/* How many of the tokens that are left a tile takes: the compiler must know their number. */
INLINE int64_t tile_tokens(int64_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

/* As affine_block, for two terms. */
INLINE void affine_short_block(const Matrix *matrix, const Activations *x, int64_t block, const Output *output,
                               const int bits, const Constants constants) {
    for (int64_t token = 0, count; token < x->tokens; token += count)
        switch (count = tile_tokens(x->tokens - token)) {
#define TILE_OF(count) case count: affine_tile(matrix, x, block, token, output, bits, constants, 2, 1, count); break;
            TILE_OF(1) TILE_OF(2) TILE_OF(4) TILE_OF(8)
#undef TILE_OF
        }
}
#endif

#if PAIRED_TOKENS > 0
enum { PAIRED_FROM = 24 }; /* tokens; with fewer, waiting for two streams of weights costs what it gains */
#endif

INLINE void affine_range(const Matrix *matrix, const Activations *x, int64_t begin, int64_t end, const Output *output,
                         const int bits, const Constants constants) {
    int64_t block = begin;
    if (x->terms == MOST_TERMS)
        for (; block < end; block++)
            affine_block(matrix, x, block, output, bits, constants, MOST_TERMS, 1, SPLIT_TOKENS);
#if TILE_TOKENS >= 8
    if (x->terms == SHORT_TERMS)
        for (; block < end; block++) affine_short_block(matrix, x, block, output, bits, constants);
#endif
#if PAIRED_TOKENS > 0
    /* Two blocks at once share what is loaded of the tokens, but only half as many tokens fit into registers. */
    if (x->tokens >= PAIRED_FROM)
        for (; block + 2 <= end; block += 2)
            affine_block(matrix, x, block, output, bits, constants, 1, 2, PAIRED_TOKENS);
#endif
    for (; block < end; block++) affine_block(matrix, x, block, output, bits, constants, 1, 1, TILE_TOKENS);
}
