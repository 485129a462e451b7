/* Weights times many tokens in bf16, with sums in fp32. For vectors of 512 bits.
 *
 * Tokens and weights lie in tiles of 1 KB, which are 16 lines of 32 numbers:
 *   tokens    (tokens / 16, steps)   a line has SEGMENT columns of a token; past the last column are zeros
 *   weights   (steps, 2)             a line has two columns of 16 rows, those of a row side by side
 * A panel is PANEL_ROWS rows of some columns. All tokens, BF16_TOKENS at a time, are multiplied with it.
 */
#pragma once

#include "affine_dequantize.h"
#include "fetch_panel.h"
#include "../amx_tiles.h"
#include "../bf16_pairs.h"

/* Numbers for BF16_TOKENS tokens and PANEL_ROWS rows: token t's are at first + t * stride. */
typedef struct Square {
    float *first;
    int64_t stride;
} Square;

/* out = before + the products of `steps` tiles of weights and of both tiles of tokens, which are `next` numbers apart;
 * only of the first tile if there are no more `tokens`. */
typedef void Multiply(const uint16_t *x, int64_t next, const uint16_t *panel, int64_t steps, int64_t tokens,
                      Square before, Square out);

void avx512_bf16_round(const float *x, int64_t columns, int64_t token, uint16_t *out) {
    const int64_t steps = (columns + SEGMENT - 1) / SEGMENT;
    uint16_t *line = out + token / TILE_LINES * steps * TILE_NUMBERS + token % TILE_LINES * SEGMENT;
    for (int64_t column = 0; column < columns; column += SEGMENT, line += TILE_NUMBERS) {
        floats low = load_some(x, column, columns);
        floats high = columns - column > LANES ? load_some(x, column + LANES, columns) : (floats){0};
        _mm512_storeu_si512(line, rounded_pair(low, high));
    }
}

/* Stores two columns of 16 rows as a line. */
INLINE void store_columns(uint16_t *line, floats first, floats second) {
    _mm512_storeu_si512(line, interleaved(rounded_pair(first, second)));
}

/* A tile of the weights of a block of rows, [column, column + SEGMENT). */
INLINE void fill_affine_tile(const Matrix *matrix, int64_t block, int64_t column, uint16_t *tile, const int bits,
                             const Constants constants) {
    const int64_t span = groups_in_record(constants) * matrix->group, inside = column % span; /* columns of a record */
    const uint8_t *record = matrix->packed + block * matrix->block_bytes + column / span * matrix->record_bytes;
    const uint8_t *lines = record + constants_bytes(constants) + inside * BLOCK * bits / 8;
    floats scales[STEP] = {{0}}, bias = {0};
    for (int first = 0; first < SEGMENT; first += STEP) {
        if (first == 0 || (constants == NESTED_CENTRED && first == HALF_SEGMENT))
            bias = exact_constants(record, (inside + first) / matrix->group, 0, bits, constants, scales);
        UNROLL for (int c = 0; c < STEP; c += 2, tile += SEGMENT)
            store_columns(tile, exact_weights(matrix, lines, first, c, bits, constants, scales, bias),
                          exact_weights(matrix, lines, first, c + 1, bits, constants, scales, bias));
    }
}

/* Stores a tile from LANES rows of 32 columns in bf16. coded: whether they are in the order of decode_halves. */
INLINE void store_tile(floats *lines, uint16_t *tile, const int coded) {
    transpose(lines);
    UNROLL for (int i = 0; i < LANES; i++) {
        const int pair = coded ? i / 2 % 2 * 8 + i / 4 * 2 + i % 2 : i; /* of columns */
        _mm512_storeu_si512(tile + pair * SEGMENT, (__m512i)lines[i]);
    }
}

/* The same of bf16 weights. */
INLINE void fill_row_tile(const Matrix *matrix, int64_t row, int64_t column, uint16_t *tile) {
    floats lines[LANES] = {{0}};
    int64_t rows = matrix->rows - row, columns = matrix->columns, left = columns - column;
    __mmask32 some = left < SEGMENT ? ((__mmask32)1 << left) - 1 : ~(__mmask32)0;
    for (int64_t r = 0; r < LANES && r < rows; r++)
        lines[r] = (floats)_mm512_maskz_loadu_epi16(some, (const uint16_t *)matrix->dense + (row + r) * columns + column);
    store_tile(lines, tile, 0);
}

/* All tiles of a block of coded rows in a panel: steps [step, step + steps). A record fills two. */
INLINE void fill_coded_tiles(const Matrix *matrix, int64_t row, int64_t step, int64_t steps, uint16_t *panel) {
    int64_t rows = matrix->rows - row < LANES ? matrix->rows - row : LANES, each = matrix->columns / RECORD;
    int64_t listed[LANES]; /* the index of each row's next listed record */
    for (int64_t r = 0; r < rows; r++) listed[r] = first_listed(matrix, (row + r) * each + step / 2);
    for (int64_t index = step / 2; 2 * index < step + steps; index++) {
        floats lines[2][LANES] = {{{0}}};
        for (int64_t r = 0; r < rows; r++) {
            int64_t record = (row + r) * each + index;
            const uint8_t *spelled = NULL;
            if (listed_record(matrix, listed[r]) == record) spelled = matrix->spelled + listed[r]++ * RECORD;
            __m512i first, second;
            decode_halves(matrix, matrix->packed + record * CODE_BYTES, matrix->rest + record * matrix->rest_bytes,
                          spelled, &first, &second);
            lines[0][r] = (floats)first;
            lines[1][r] = (floats)second;
        }
        for (int half = 0; half < 2; half++) {
            int64_t at = 2 * index + half - step;
            if (at >= 0 && at < steps) store_tile(lines[half], panel + 2 * at * TILE_NUMBERS, 1);
        }
    }
}

/* The tiles of a block of rows in a panel: steps [step, step + steps). */
static void fill_tiles(const Matrix *matrix, int64_t row, int64_t step, int64_t steps, uint16_t *panel) {
    if (matrix->kind == CODED) {
        fill_coded_tiles(matrix, row, step, steps, panel);
        return;
    }
    for (int64_t i = 0; i < steps; i++, panel += 2 * TILE_NUMBERS) {
        if (row >= matrix->rows)
            memset(panel, 0, TILE_NUMBERS * sizeof *panel);
        else if (matrix->kind == AFFINE)
            BY_FORMAT(fill_affine_tile, matrix, row / BLOCK, (step + i) * SEGMENT, panel)
        else
            fill_row_tile(matrix, row, (step + i) * SEGMENT, panel);
    }
}

/* Multiplies tokens [token, token + BF16_TOKENS), of which `count` exist, with a panel, and adds the products to rows
 * [row, end) of the output; the first columns' to the bias. */
INLINE void bf16_square(const uint16_t *x, int64_t next, const uint16_t *panel, int64_t steps, int64_t row, int64_t end,
                        int64_t token, int64_t count, int first, const Output *output, Multiply multiply) {
    static float zeros[PANEL_ROWS];
    const Square nothing = {zeros, 0}, out = {output->out + token * output->stride + row, output->stride};
    const int64_t rows = end - row < PANEL_ROWS ? end - row : PANEL_ROWS;
    Square before = out;
    if (first) before = output->bias != NULL ? (Square){(float *)output->bias + row, 0} : nothing;
    if (rows == PANEL_ROWS && count >= BF16_TOKENS) {
        multiply(x, next, panel, steps, count, before, out);
        return;
    }
    /* A whole square, of which only the existing numbers are copied: a token's sums have the same order in any number. */
    float edge[BF16_TOKENS * PANEL_ROWS] = {0};
    for (int64_t t = 0; t < count; t++)
        memcpy(edge + t * PANEL_ROWS, before.first + t * before.stride, (size_t)rows * sizeof(float));
    multiply(x, next, panel, steps, count, (Square){edge, PANEL_ROWS}, (Square){edge, PANEL_ROWS});
    for (int64_t t = 0; t < count; t++)
        memcpy(out.first + t * out.stride, edge + t * PANEL_ROWS, (size_t)rows * sizeof(float));
}

/* Rows [begin, end) of all tokens. panel_floats: the size of `panel`, which has two numbers in the room of one. */
INLINE void bf16_panels(const Matrix *matrix, const uint16_t *x, int64_t tokens, int64_t begin, int64_t end,
                        uint16_t *panel, int64_t panel_floats, const Output *output, Multiply multiply) {
    const int64_t all = (matrix->columns + SEGMENT - 1) / SEGMENT, most = 2 * panel_floats / PANEL_ROWS / SEGMENT;
    const int64_t across = (all + most - 1) / most, width = (all + across - 1) / across; /* steps of about equal panels */
    const int64_t squares = across * ((tokens + BF16_TOKENS - 1) / BF16_TOKENS);
    for (int64_t row = begin; row < end; row += PANEL_ROWS)
        for (int64_t step = 0, square = 0; step < all; step += width) {
            int64_t steps = all - step < width ? all - step : width;
            for (int64_t i = 0; i < 2; i++)
                fill_tiles(matrix, row + i * LANES, step, steps, panel + i * TILE_NUMBERS);
            for (int64_t token = 0; token < tokens; token += BF16_TOKENS, square++) {
                fetch_panel(matrix, row + PANEL_ROWS, square, squares);
                bf16_square(x + (token / TILE_LINES * all + step) * TILE_NUMBERS, all * TILE_NUMBERS, panel, steps, row,
                            end, token, tokens - token < BF16_TOKENS ? tokens - token : BF16_TOKENS, step == 0, output,
                            multiply);
            }
        }
}
