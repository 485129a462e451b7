/* Affine weights times activations in three terms, in tiles of 8 bits. Sums have the bits of affine_dots.h.
 *
 * A unit is a group's columns of a segment: all 32, or 16 where groups are half segments. Its tiles:
 *   activations   a line is a term of a token, side by side as Activations has them
 *   weights       a line has four columns of 16 rows, side by side as a block has them
 *   products      (activations' lines, 16) integers
 */
#include "../kernels.h"

#if GPTCLI_X86 && GPTCLI_BF16

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8," \
                                                   "avx2,fma,f16c"))),                                                 \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8,avx2,fma,f16c")
#pragma GCC target("prefer-vector-width=512")
#endif

#include "avx512.h"
#include "vectors.h"

#include "affine.h"
#include "amx.h"

enum {
    UNITS = 4,                                /* multiplied at once */
    TOKENS = 4 * TILE,                        /* that share unpacked weights */
    COLUMN_LINES = SEGMENT / 4,               /* of a segment's weights */
    UNIT_BYTES = COLUMN_LINES * CACHE_LINE,
    FEWEST = 4,                               /* tokens; fewer wait for memory */
};

typedef uint8_t line_bytes __attribute__((vector_size(CACHE_LINE)));

/* Where a block's next unit is. */
typedef struct {
    const uint8_t *record, *lines;
    int64_t group, column; /* of the record, of the group */
} Cursor;

/* Some units of a block, as signed or unsigned bytes, with the constants of their rows. */
typedef struct {
    _Alignas(CACHE_LINE) uint8_t weights[UNITS][UNIT_BYTES];
    floats scales[UNITS], biases[UNITS];
} Units;

INLINE int parts_of(const Constants constants) { return constants == NESTED_CENTRED ? 2 : 1; }

INLINE void unpack(const Matrix *matrix, Cursor *at, int64_t count, Units *units, const int bits,
                   const Constants constants) {
    const int parts = parts_of(constants), steps = COLUMN_LINES / parts;
    for (int64_t unit = 0; unit < count; unit++) {
        if (at->group == groups_in_record(constants)) *at = (Cursor){at->lines, at->lines, 0, 0};
        if (at->lines == at->record) {
            prefetch_constants(at->record, constants);
            at->lines += constants_bytes(constants);
        }
        units->scales[unit] = load_scale(at->record, at->group, 0, constants);
        if (has_biases(constants)) units->biases[unit] = load_bias(at->record, at->group, 0, constants);
        const int second = parts == 2 && unit % 2 == 1; /* half of a segment */
        UNROLL for (int step = 0; step < steps; step++) {
            words word = second ? four_columns(matrix, at->lines, steps + step, bits, constants)
                                : four_columns(matrix, at->lines, step, bits, constants);
            if (!has_biases(constants)) word = (words)((line_bytes)word - (uint8_t)zero_of(bits, constants));
            memcpy(units->weights[unit] + step * CACHE_LINE, &word, sizeof word);
        }
        if (parts == 1 || second) {
            UNROLL for (int line = 0; line < bits; line++) prefetch(at->lines + line * CACHE_LINE, AHEAD);
            at->lines += SEGMENT * BLOCK * bits / 8;
        }
        at->column += SEGMENT / parts;
        if (at->column == matrix->group) at->column = 0, at->group++;
    }
}

/* The products of a unit with some lines of activations, in one tile of each. */
#define MULTIPLY(lines_tile, products_tile, lines, products, constants)                                                \
    do {                                                                                                               \
        _tile_loadd(lines_tile, lines, SEGMENT);                                                                       \
        _tile_zero(products_tile);                                                                                     \
        if (has_biases(constants))                                                                                     \
            _tile_dpbsud(products_tile, lines_tile, 2);                                                                \
        else                                                                                                           \
            _tile_dpbssd(products_tile, lines_tile, 2);                                                                \
        _tile_stored(products_tile, products, CACHE_LINE);                                                             \
    } while (0)

/* products: (count, TILE * MOST_TERMS, 16). values: of the first unit's segment, whose lines are `lines`. */
INLINE void multiply_units(const Units *units, int64_t count, const int8_t *values, int64_t lines, int32_t *products,
                           const Constants constants) {
    const int parts = parts_of(constants);
    for (int64_t unit = 0; unit < count; unit++, products += TILE * MOST_TERMS * BLOCK) {
        const int8_t *first = values + unit / parts * lines * SEGMENT + unit % parts * HALF_SEGMENT;
        _tile_loadd(2, units->weights[unit], CACHE_LINE);
        MULTIPLY(3, 0, first, products, constants);
        if (TILE * MOST_TERMS > TILE_LINES && lines > TILE_LINES)
            MULTIPLY(4, 1, first + TILE_LINES * SEGMENT, products + TILE_LINES * BLOCK, constants);
    }
}

/* Adds to a token's sums what some units add. products: its first term's; index: of its first segment's scale. */
INLINE floats add_units(floats sum, const Units *units, int64_t count, const int32_t *products, const Activations *x,
                        int64_t index, const Constants constants) {
    const int parts = parts_of(constants);
    UNROLL for (int64_t unit = 0; unit < count; unit++, products += TILE * MOST_TERMS * BLOCK) {
        const int64_t segment = index + unit / parts * x->width;
        ints each[MOST_TERMS];
        UNROLL for (int term = 0; term < MOST_TERMS; term++) memcpy(&each[term], products + term * BLOCK, sizeof(ints));
        sum += joined_terms(each) * (units->scales[unit] * x->scales[segment]);
        if (has_biases(constants)) sum += units->biases[unit] * x->sums[segment];
    }
    return sum;
}

/* Adds what some units of a block add to the sums of tokens [begin, end). */
INLINE void multiply_some(const Matrix *matrix, const Activations *x, Cursor *at, int64_t unit, int64_t count,
                          int64_t begin, int64_t end, floats *sums, const int bits, const Constants constants) {
    Units units;
    _Alignas(CACHE_LINE) int32_t products[UNITS * TILE * MOST_TERMS * BLOCK];
    unpack(matrix, at, count, &units, bits, constants);
    atomic_signal_fence(memory_order_seq_cst); /* compilers do not know that tiles are loaded from memory */
    for (int64_t tile = begin; tile < end; tile += x->width, sums += x->width) {
        const int64_t first = tile * x->segments + unit / parts_of(constants) * x->width; /* index of a scale */
        multiply_units(&units, count, x->values + first * MOST_TERMS * SEGMENT, x->width * MOST_TERMS, products,
                       constants);
        for (int64_t t = 0; t < x->width && tile + t < end; t++)
            sums[t] = add_units(sums[t], &units, count, products + t * MOST_TERMS * BLOCK, x, first + t, constants);
    }
}

/* A block of rows times tokens [begin, end), at most TOKENS. begin: a multiple of x->width. */
INLINE void multiply_block(const Matrix *matrix, const Activations *x, int64_t block, int64_t begin, int64_t end,
                           const Output *output, const int bits, const Constants constants) {
    const int64_t all = x->segments * parts_of(constants);
    const uint8_t *packed = matrix->packed + block * matrix->block_bytes;
    Cursor at = {packed, packed, 0, 0};
    floats sums[TOKENS] = {{0}};
    int64_t unit = 0;
    for (; unit + UNITS <= all; unit += UNITS)
        multiply_some(matrix, x, &at, unit, UNITS, begin, end, sums, bits, constants);
    if (unit < all) multiply_some(matrix, x, &at, unit, all - unit, begin, end, sums, bits, constants);
    const int64_t row = block * BLOCK;
    for (int64_t token = begin; token < end; token++) {
        floats bias = output->bias != NULL ? load_some(output->bias, row, matrix->rows) : (floats){0};
        store_some(output->out + token * output->stride, row, matrix->rows, sums[token - begin] + bias);
    }
}

INLINE void multiply_range(const Matrix *matrix, const Activations *x, int64_t begin, int64_t end,
                           const Output *output, const int bits, const Constants constants) {
    for (int64_t token = 0; token < x->tokens; token += TOKENS) {
        const int64_t last = token + TOKENS < x->tokens ? token + TOKENS : x->tokens;
        for (int64_t block = begin; block < end; block++)
            multiply_block(matrix, x, block, token, last, output, bits, constants);
    }
}

void amx_affine_blocks(const Matrix *matrix, const Activations *x, int64_t begin, int64_t end, const Output *output) {
    if (x->terms < MOST_TERMS || x->tokens < FEWEST) {
        avx512_level.affine_blocks(matrix, x, begin, end, output);
        return;
    }
    TileShapes tiles = whole_tiles();
    const int64_t lines = x->width * x->terms, parts = parts_of(matrix->constants);
    const int64_t first = lines < TILE_LINES ? lines : TILE_LINES;
    tiles.lines[0] = tiles.lines[3] = (uint8_t)first;
    if (lines > first) tiles.lines[1] = tiles.lines[4] = (uint8_t)(lines - first);
    tiles.lines[2] = (uint8_t)(COLUMN_LINES / parts);
    tiles.line_bytes[3] = tiles.line_bytes[4] = (uint16_t)(SEGMENT / parts);
    _tile_loadconfig(&tiles);
    BY_FORMAT(multiply_range, matrix, x, begin, end, output);
    _tile_release();
}

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
