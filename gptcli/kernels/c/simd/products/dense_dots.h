/* Dense weights times a few tokens. */
#pragma once

#include "../../kernels.h"
#include "../../conversions.h"
#include "../vectors.h"

enum {
    DENSE_ROWS = LANES == 16 ? 4 : 2, /* computed together for several tokens, which share the loads */
    DENSE_TOKENS = 4,
    DENSE_UNROLL = 4,
};

INLINE floats load_weights(const void *weights, int64_t index, const Kind kind) {
    if (kind == FLOAT32) return load((const float *)weights + index);
    halves value = load_halves((const uint16_t *)weights + index);
    if (kind == FLOAT16) return float_of_halves(value);
    return (floats)(words_of_halves(value) << 16);
}

INLINE float load_weight(const void *weights, int64_t index, const Kind kind) {
    if (kind == FLOAT32) return ((const float *)weights)[index];
    uint16_t value = ((const uint16_t *)weights)[index];
    return kind == FLOAT16 ? float_of_half(value) : float_of_bfloat(value);
}

/* `rows` rows times `tokens` tokens; columns in steps of `unroll` vectors, for enough independent sums. */
INLINE void dense_tile(const Matrix *matrix, const float *x, int64_t row, int64_t token, const Output *output,
                       const Kind kind, const int rows, const int tokens, const int unroll) {
    const int64_t columns = matrix->columns, size = kind == FLOAT32 ? 4 : 2;
    const uint8_t *weights = (const uint8_t *)matrix->dense + row * columns * size;
    /* With several rows, prefetches the same columns of later rows: the next bytes are in use already. */
    const int64_t tile_bytes = rows * columns * size;
    const int64_t ahead = rows == 1 ? AHEAD : (AHEAD + tile_bytes - 1) / tile_bytes * tile_bytes;
    x += token * columns;
    floats sums[DENSE_ROWS][DENSE_TOKENS][DENSE_UNROLL] = {{{{0}}}};
    int64_t column = 0;
    for (; column + unroll * LANES <= columns; column += unroll * LANES) {
        UNROLL for (int r = 0; r < rows; r++) {
            for (int64_t i = 0; i < unroll * LANES * size; i += CACHE_LINE)
                prefetch(weights + (r * columns + column) * size + i, ahead);
            UNROLL for (int u = 0; u < unroll; u++) {
                floats w = load_weights(weights, r * columns + column + u * LANES, kind);
                UNROLL for (int t = 0; t < tokens; t++)
                    sums[r][t][u] += w * load(x + t * columns + column + u * LANES);
            }
        }
    }
    for (; column + LANES <= columns; column += LANES)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int t = 0; t < tokens; t++)
                sums[r][t][0] += load_weights(weights, r * columns + column, kind) * load(x + t * columns + column);
    for (int r = 0; r < rows; r++) {
        for (int t = 0; t < tokens; t++) {
            floats all = sums[r][t][0];
            UNROLL for (int u = 1; u < unroll; u++) all += sums[r][t][u];
            float total = sum(all);
            for (int64_t c = column; c < columns; c++)
                total += load_weight(weights, r * columns + c, kind) * x[t * columns + c];
            if (output->bias != NULL) total += output->bias[row + r];
            output->out[(token + t) * output->stride + row + r] = total;
        }
    }
}

INLINE void dense_rows(const Matrix *matrix, const float *x, int64_t tokens, int64_t begin, int64_t end,
                       const Output *output, const Kind kind) {
    for (int64_t row = begin; row < end; row += DENSE_ROWS) {
        int64_t last = row + DENSE_ROWS < end ? row + DENSE_ROWS : end;
        for (int64_t token = 0; token < tokens;) {
            int64_t left = tokens - token, count = left < DENSE_TOKENS ? left : DENSE_TOKENS;
            if (count == 1) {
                /* One row at a time: prefetching in hardware works best with a single stream. */
                for (int64_t r = row; r < last; r++) dense_tile(matrix, x, r, token, output, kind, 1, 1, 4);
            } else if (last - row < DENSE_ROWS) {
                count = 2;
                for (int64_t r = row; r < last; r++) dense_tile(matrix, x, r, token, output, kind, 1, 2, 4);
            } else if (count == 2) {
                dense_tile(matrix, x, row, token, output, kind, DENSE_ROWS, 2, 2);
            } else if (count == 3) {
                dense_tile(matrix, x, row, token, output, kind, DENSE_ROWS, 3, 1);
            } else {
                dense_tile(matrix, x, row, token, output, kind, DENSE_ROWS, 4, 1);
            }
            token += count;
        }
    }
}
