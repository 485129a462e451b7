/* Any weights times many tokens.
 *
 * A panel is PANEL_ROWS rows of at most PANEL_COLUMNS columns, expanded to fp32 and transposed: a column's rows are
 * side by side. It stays in the L1 cache while all tokens are multiplied with it, a few at a time, with sums in
 * registers. The sums of consecutive panels are added up in the output.
 */
#pragma once

#include "affine_dequantize.h"
#include "coded_dots.h"
#include "dense_dots.h"
#include "fetch_panel.h"

enum { PANEL_COLUMNS = L1_FLOATS / PANEL_ROWS };

/* The first `count` weights of a vector; the others are zero. */
INLINE floats load_some_weights(const void *weights, int64_t index, int64_t count, const Kind kind) {
    if (count >= LANES) return load_weights(weights, index, kind);
    floats value = {0};
    for (int64_t i = 0; i < count; i++) value[i] = load_weight(weights, index + i, kind);
    return value;
}

/* Rows [row, end), at most PANEL_ROWS, and columns [column, column + count); missing rows and columns are zero. */
INLINE void fill_panel(const Matrix *matrix, int64_t row, int64_t end, int64_t column, int64_t count, float *panel,
                       const Kind kind) {
    for (int64_t i = 0; i < count; i += LANES) {
        for (int v = 0; v < PANEL_ROWS; v += LANES) {
            floats block[LANES] = {{0}};
            int64_t rows = end - row - v, first = (row + v) * matrix->columns + column + i;
            if (rows >= LANES && count - i >= LANES) {
                UNROLL for (int r = 0; r < LANES; r++)
                    block[r] = load_weights(matrix->dense, first + r * matrix->columns, kind);
            } else {
                UNROLL for (int r = 0; r < LANES; r++)
                    if (r < rows)
                        block[r] = load_some_weights(matrix->dense, first + r * matrix->columns, count - i, kind);
            }
            transpose(block);
            UNROLL for (int c = 0; c < LANES; c++) store(panel + (i + c) * PANEL_ROWS + v, block[c]);
        }
    }
}

/* The same for a coded matrix; the columns are whole records. */
INLINE void fill_coded_panel(const Matrix *matrix, int64_t row, int64_t end, int64_t column, int64_t count,
                             float *panel, const int wide) {
    for (int64_t i = 0; i < count; i += RECORD) {
        for (int v = 0; v < PANEL_ROWS; v += LANES) {
            floats blocks[RECORD_VECTORS][LANES] = {{{0}}};
            for (int r = 0; r < LANES && row + v + r < end; r++) {
                int64_t record = ((row + v + r) * matrix->columns + column + i) / RECORD;
                floats weights[RECORD_VECTORS];
                decode_record(matrix, matrix->packed + record * CODE_BYTES, matrix->rest + record * matrix->rest_bytes,
                              spelled_tops(matrix, record), weights, wide);
                UNROLL for (int b = 0; b < RECORD_VECTORS; b++) blocks[b][r] = weights[b];
            }
            for (int b = 0; b < RECORD_VECTORS; b++) {
                transpose(blocks[b]);
                for (int c = 0; c < LANES; c++) store(panel + (i + b * LANES + c) * PANEL_ROWS + v, blocks[b][c]);
            }
        }
    }
}

/* The same for an affine matrix, whose rows are side by side already; column and count are multiples of SEGMENT. */
INLINE void fill_affine_panel(const Matrix *matrix, int64_t row, int64_t end, int64_t column, int64_t count,
                              float *panel, const int bits, const Constants constants) {
    const int64_t span = groups_in_record(constants) * matrix->group; /* columns of a record */
    for (int v = 0; v < PANEL_ROWS; v += LANES) {
        const uint8_t *block = matrix->packed + (row + v) / BLOCK * matrix->block_bytes;
        int64_t lane = (row + v) % BLOCK;
        for (int64_t i = 0; i < count; i += SEGMENT) {
            float *to = panel + i * PANEL_ROWS + v;
            if (row + v >= end) {
                for (int64_t c = 0; c < SEGMENT; c++) store(to + c * PANEL_ROWS, (floats){0});
                continue;
            }
            int64_t inside = (column + i) % span;
            const uint8_t *record = block + (column + i) / span * matrix->record_bytes;
            const uint8_t *lines = record + constants_bytes(constants) + inside * BLOCK * bits / 8 + lane * 4;
            floats scales[STEP] = {{0}}, bias = {0};
            for (int first = 0; first < SEGMENT; first += STEP) {
                if (first == 0 || (constants == NESTED_CENTRED && first == HALF_SEGMENT))
                    bias = exact_constants(record, (inside + first) / matrix->group, lane, bits, constants, scales);
                UNROLL for (int c = 0; c < STEP; c++)
                    store(to + (first + c) * PANEL_ROWS,
                          exact_weights(matrix, lines, first, c, bits, constants, scales, bias));
            }
        }
    }
}

static void fill(const Matrix *matrix, int64_t row, int64_t end, int64_t column, int64_t count, float *panel) {
    if (matrix->kind == CODED && matrix->rest_bytes > RECORD)
        fill_coded_panel(matrix, row, end, column, count, panel, 1);
    else if (matrix->kind == CODED)
        fill_coded_panel(matrix, row, end, column, count, panel, 0);
    else if (matrix->kind == FLOAT32)
        fill_panel(matrix, row, end, column, count, panel, FLOAT32);
    else if (matrix->kind == FLOAT16)
        fill_panel(matrix, row, end, column, count, panel, FLOAT16);
    else if (matrix->kind == BFLOAT16)
        fill_panel(matrix, row, end, column, count, panel, BFLOAT16);
    else
        BY_FORMAT(fill_affine_panel, matrix, row, end, column, count, panel);
}

/* A value for each of a panel's rows and some tokens: at first + token * stride. */
typedef struct Rows {
    float *first;
    int64_t stride;
} Rows;

/* out = before + a panel of `count` columns times `tokens` tokens; x: of the first token at the panel's first column.
 * Calls nothing: a call would spill the sums to memory. */
INLINE void panel_tile(const float *panel, const float *x, int64_t stride, int64_t count, Rows before, Rows out,
                       const int tokens) {
    floats sums[PANEL_TOKENS][2] = {{{0}}};
    fetch_outputs(out.first + tokens * out.stride, out.stride, tokens);
    for (int64_t column = 0; column < count; column++) {
        floats low = load(panel + column * PANEL_ROWS), high = load(panel + column * PANEL_ROWS + LANES);
        UNROLL for (int t = 0; t < tokens; t++) {
            sums[t][0] += low * x[t * stride + column];
            sums[t][1] += high * x[t * stride + column];
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) {
        const float *from = before.first + t * before.stride;
        store(out.first + t * out.stride, load(from) + sums[t][0]);
        store(out.first + t * out.stride + LANES, load(from + LANES) + sums[t][1]);
    }
}

/* As panel_tile, for any number of tokens up to PANEL_TOKENS. */
static void panel_tokens(const float *panel, const float *x, int64_t stride, int64_t count, Rows before, Rows out,
                         int64_t tokens) {
    switch (tokens) {
#define TILE_OF(tokens) case tokens: panel_tile(panel, x, stride, count, before, out, tokens); break;
        TILE_OF(1) TILE_OF(2) TILE_OF(3) TILE_OF(4)
#if PANEL_TOKENS >= 6
        TILE_OF(5) TILE_OF(6)
#endif
#if PANEL_TOKENS >= 12
        TILE_OF(7) TILE_OF(8) TILE_OF(9) TILE_OF(10) TILE_OF(11) TILE_OF(12)
#endif
#undef TILE_OF
    }
}

/* Adds a panel's products to rows [row, end) of the output, at most PANEL_ROWS; the first columns' to the bias. */
static void panel_rows(const float *panel, const float *x, int64_t stride, int64_t count, int64_t row, int64_t end,
                       int64_t token, int64_t tokens, int first, const Output *output) {
    static const float zeros[PANEL_ROWS];
    const Rows nothing = {(float *)zeros, 0}, out = {output->out + token * output->stride + row, output->stride};
    Rows before = out;
    if (first) before = output->bias != NULL ? (Rows){(float *)output->bias + row, 0} : nothing;
    if (row + PANEL_ROWS <= end) {
        panel_tokens(panel, x, stride, count, before, out, tokens);
        return;
    }
    float edge[PANEL_TOKENS * PANEL_ROWS]; /* a whole panel's results, of which only the existing rows are copied */
    panel_tokens(panel, x, stride, count, nothing, (Rows){edge, PANEL_ROWS}, tokens);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < end - row; i++)
            out.first[t * out.stride + i] = before.first[t * before.stride + i] + edge[t * PANEL_ROWS + i];
}

/* Rows [begin, end) of all tokens. */
static void panels(const Matrix *matrix, const float *x, int64_t tokens, int64_t begin, int64_t end, float *panel,
                   const Output *output) {
    const int64_t columns = matrix->columns, across = (columns + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
    const int64_t width = ((columns + across - 1) / across + RECORD - 1) / RECORD * RECORD; /* of about equal panels */
    const int64_t tiles = (tokens + PANEL_TOKENS - 1) / PANEL_TOKENS, tile = (tokens + tiles - 1) / tiles;
    for (int64_t row = begin; row < end; row += PANEL_ROWS)
        for (int64_t column = 0, number = 0; column < columns; column += width) {
            int64_t count = columns - column < width ? columns - column : width;
            fill(matrix, row, end, column, count, panel);
            for (int64_t token = 0; token < tokens; token += tile, number++) {
                fetch_panel(matrix, row + PANEL_ROWS, number, across * tiles);
                int64_t some = tokens - token < tile ? tokens - token : tile;
                panel_rows(panel, x + token * columns + column, columns, count, row, end, token, some, column == 0,
                           output);
            }
        }
}
