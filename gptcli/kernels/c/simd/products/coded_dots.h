/* Coded weights: encoding them, and products with a few tokens. */
#pragma once

#include "../../weights/coded_layout.h"
#include "dense_dots.h"

enum { RECORD_VECTORS = RECORD / LANES };

#if HAS_CODES
INLINE int64_t encode_range(Matrix *matrix, const uint8_t *weights, int64_t begin, int64_t end, int64_t listed,
                            const int wide) {
    for (int64_t record = begin; record < end; record++) {
        uint8_t tops[RECORD];
        if (encode_record(matrix, weights + record * RECORD * (wide ? 4 : 2), record, tops, wide)) continue;
        if (matrix->packed != NULL) {
            matrix->spelled_records[listed] = (uint32_t)record;
            memcpy(matrix->spelled + listed * RECORD, tops, RECORD);
        }
        listed++;
    }
    return listed;
}

static int64_t encode(Matrix *matrix, const uint8_t *weights, int64_t begin, int64_t end, int64_t listed) {
    return matrix->rest_bytes > RECORD ? encode_range(matrix, weights, begin, end, listed, 1)
                                       : encode_range(matrix, weights, begin, end, listed, 0);
}
#else
#define encode NULL

/* A record's weights in the order of its columns. spelled: its upper bytes, or NULL. */
INLINE void decode_record(const Matrix *matrix, const uint8_t *codes, const uint8_t *rest, const uint8_t *spelled,
                          floats *weights, const int wide) {
    float columns[RECORD];
    (void)wide;
    decode_columns(matrix, codes, rest, spelled, columns);
    for (int v = 0; v < RECORD_VECTORS; v++) weights[v] = load(columns + v * LANES);
}
#endif

/* A row times `tokens` tokens. *next: the number of listed records before this row, and on return before the next. */
INLINE void coded_tile(const Matrix *matrix, const float *x, int64_t row, int64_t token, const Output *output,
                       int64_t *next, const int wide, const int tokens, const int unroll) {
    const int64_t columns = matrix->columns, first = row * columns / RECORD;
    const uint8_t *codes = matrix->packed + first * CODE_BYTES, *rest = matrix->rest + first * matrix->rest_bytes;
    int64_t listed = *next, next_listed = listed_record(matrix, listed);
    x += token * columns;
    floats sums[DENSE_TOKENS][DENSE_UNROLL] = {{{0}}};
    for (int64_t record = 0; record < columns / RECORD; record++) {
        const uint8_t *spelled = NULL;
        if (__builtin_expect(first + record == next_listed, 0)) {
            spelled = matrix->spelled + listed * RECORD;
            next_listed = listed_record(matrix, ++listed);
        }
        prefetch(codes, AHEAD / 2);
        for (int i = 0; i < (wide ? 3 : 1); i++) prefetch(rest + i * CACHE_LINE, AHEAD);
        floats weights[RECORD_VECTORS];
        decode_record(matrix, codes, rest, spelled, weights, wide);
        UNROLL for (int v = 0; v < RECORD_VECTORS; v++)
            UNROLL for (int t = 0; t < tokens; t++)
                sums[t][v % unroll] += weights[v] * load(x + t * columns + record * RECORD + v * LANES);
        codes += CODE_BYTES;
        rest += wide ? 3 * RECORD : RECORD;
    }
    for (int t = 0; t < tokens; t++) {
        floats all = sums[t][0];
        UNROLL for (int u = 1; u < unroll; u++) all += sums[t][u];
        output->out[(token + t) * output->stride + row] =
            output->bias != NULL ? sum(all) + output->bias[row] : sum(all);
    }
    *next = listed;
}

/* Sums in the order of dense_rows, so that results have the same bits. */
INLINE void coded_rows(const Matrix *matrix, const float *x, int64_t tokens, int64_t begin, int64_t end,
                       const Output *output, const int wide) {
    int64_t listed = matrix->spelled_from[begin / BLOCK];
    for (int64_t row = begin; row < end; row++) {
        int64_t after = listed;
        for (int64_t token = 0; token < tokens;) {
            int64_t left = tokens - token, count = left < DENSE_TOKENS ? left : DENSE_TOKENS, next = listed;
            switch (count) {
            case 1: coded_tile(matrix, x, row, token, output, &next, wide, 1, 4); break;
            case 2: coded_tile(matrix, x, row, token, output, &next, wide, 2, 2); break;
            case 3: coded_tile(matrix, x, row, token, output, &next, wide, 3, 1); break;
            default: coded_tile(matrix, x, row, token, output, &next, wide, 4, 1); break;
            }
            token += count;
            after = next;
        }
        listed = after;
    }
}

static void dense_blocks(const Matrix *matrix, const float *x, int64_t tokens, int64_t begin, int64_t end,
                         const Output *output) {
    int64_t first = begin * BLOCK, last = end * BLOCK < matrix->rows ? end * BLOCK : matrix->rows;
    if (matrix->kind == CODED && matrix->rest_bytes > RECORD)
        coded_rows(matrix, x, tokens, first, last, output, 1);
    else if (matrix->kind == CODED)
        coded_rows(matrix, x, tokens, first, last, output, 0);
    else if (matrix->kind == FLOAT32)
        dense_rows(matrix, x, tokens, first, last, output, FLOAT32);
    else if (matrix->kind == FLOAT16)
        dense_rows(matrix, x, tokens, first, last, output, FLOAT16);
    else
        dense_rows(matrix, x, tokens, first, last, output, BFLOAT16);
}
