/* Fetches what comes next while a panel is multiplied: the next panel's weights, and where the next sums go. */
#pragma once

#include "../../weights/coded_layout.h"
#include "../vectors.h"

enum { PANEL_ROWS = 2 * LANES };

/* Part `i` of `n` of what the panel that begins at a row is filled from. A few lines at a time: all at once would wait for
 * memory. */
INLINE void fetch_panel(const Matrix *matrix, int64_t row, int64_t i, int64_t n) {
    if (row >= matrix->rows) return;
    const int64_t first = row * matrix->columns, count = PANEL_ROWS * matrix->columns;
    if (matrix->kind == AFFINE) {
        const int64_t blocks = (PANEL_ROWS + BLOCK - 1) / BLOCK;
        fetch_part(matrix->packed + row / BLOCK * matrix->block_bytes, blocks * matrix->block_bytes, i, n);
    } else if (matrix->kind == CODED) {
        fetch_part(matrix->packed + first / RECORD * CODE_BYTES, count / RECORD * CODE_BYTES, i, n);
        fetch_part(matrix->rest + first / RECORD * matrix->rest_bytes, count / RECORD * matrix->rest_bytes, i, n);
    } else {
        const int64_t size = matrix->kind == FLOAT32 ? sizeof(float) : sizeof(uint16_t);
        fetch_part((const uint8_t *)matrix->dense + first * size, count * size, i, n);
    }
}

/* For writing: two vectors for each of the next tokens, even if there are none. */
INLINE void fetch_outputs(const float *first, int64_t stride, const int tokens) {
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int v = 0; v < 2; v++) __builtin_prefetch(first + t * stride + v * LANES, 1);
}
