/* Affine weights times activations of 24 bits, in tiles of 8 bits. Sums have the bits of affine_dots.h.
 *
 * A unit is a group's columns of a segment: all 32, or 16 where groups are half segments. Its tiles:
 *   activations   a line is a term of a token, side by side as Activations has them
 *   weights       a line has four columns of 16 rows, side by side as a block has them
 *   products      (activations' lines, 16) integers
 *
 * Weights of 4 bits leave room in their bytes: 16 times a weight fits, too. So DIGITS are two lines a token instead of
 * three. A line has the upper digits of 32 columns, in 8 bits, then the lower ones, in 4 bits from 0 to 15. The tile of
 * weights has them times 16, then as they are. A line's products are those of 12 bits of the activations, so SHORT_DIGITS
 * are one line.
 */
#include "../../kernels.h"

#if GPTCLI_X86 && GPTCLI_BF16

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8," \
                                                   "avx2,fma,f16c"))),                                                 \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8,avx2,fma,f16c")
#pragma GCC target("prefer-vector-width=512")
#endif

#include "../avx512_vectors.h"
#include "../vectors.h"

#include "affine.h"
#include "../amx_tiles.h"

enum {
    RING = 8,                         /* units under way, at least LATEST + 1; a power of two */
    MULTIPLIED = 2, LATEST = 4,       /* a unit is multiplied 2 units after it is unpacked, and added up after 4 */
    COLUMN_LINES = SEGMENT / 4,       /* of a segment's weights */
    LINES = TILE * MOST_TERMS,        /* of a unit's products, at most */
};

typedef uint8_t line_bytes __attribute__((vector_size(CACHE_LINE)));

/* Where a block's next unit is. */
typedef struct {
    const uint8_t *record, *lines;
    int64_t group, column; /* of the record, of the group */
} Cursor;

/* A unit of a block: its weights as signed or unsigned bytes, the constants of its rows, and its products. */
typedef struct {
    _Alignas(CACHE_LINE) uint8_t weights[2 * COLUMN_LINES * CACHE_LINE];
    _Alignas(CACHE_LINE) int32_t products[LINES * BLOCK];
    floats scales, biases;
} Unit;

INLINE int parts_of(const Constants constants) { return constants == NESTED_CENTRED ? 2 : 1; }
INLINE int are_digits(const int terms) { return terms == DIGITS || terms == SHORT_DIGITS; }

/* Lines of a token. */
INLINE int lines_of(const int terms) { return are_digits(terms) ? (int)value_bytes(terms) / 2 : terms; }

/* second: whether it is the second half of a segment. */
INLINE void unpack(const Matrix *matrix, Cursor *at, int second, Unit *unit, const int terms, const int bits,
                   const Constants constants) {
    const int parts = parts_of(constants), steps = COLUMN_LINES / parts;
    if (at->group == groups_in_record(constants)) *at = (Cursor){at->lines, at->lines, 0, 0};
    if (at->lines == at->record) {
        prefetch_constants(at->record, constants);
        at->lines += constants_bytes(constants);
    }
    unit->scales = load_scale(at->record, at->group, 0, constants);
    if (has_biases(constants)) unit->biases = load_bias(at->record, at->group, 0, constants);
    uint8_t *to = unit->weights;
    UNROLL for (int step = 0; step < steps; step++, to += CACHE_LINE) {
        words word = parts == 2 && second ? four_columns(matrix, at->lines, steps + step, bits, constants)
                                          : four_columns(matrix, at->lines, step, bits, constants);
        if (!has_biases(constants)) word = (words)((line_bytes)word - (uint8_t)zero_of(bits, constants));
        if (are_digits(terms)) {
            const words times_16 = word << 4 & 0xf0f0f0f0;
            memcpy(to, &times_16, sizeof times_16);
        }
        memcpy(to + (are_digits(terms) ? steps * CACHE_LINE : 0), &word, sizeof word);
    }
    if (parts == 1 || second) {
        UNROLL for (int line = 0; line < bits; line++) prefetch(at->lines + line * CACHE_LINE, AHEAD);
        at->lines += SEGMENT * BLOCK * bits / 8;
    }
    at->column += SEGMENT / parts;
    if (at->column == matrix->group) at->column = 0, at->group++;
}

/* The products of a unit with some lines of activations, in one tile of each. */
#define MULTIPLY(lines_tile, products_tile, lines, stride, products, constants)                                        \
    do {                                                                                                               \
        _tile_loadd(lines_tile, lines, stride);                                                                        \
        _tile_zero(products_tile);                                                                                     \
        if (has_biases(constants))                                                                                     \
            _tile_dpbsud(products_tile, lines_tile, 2);                                                                \
        else                                                                                                           \
            _tile_dpbssd(products_tile, lines_tile, 2);                                                                \
        _tile_stored(products_tile, products, CACHE_LINE);                                                             \
    } while (0)

/* values: of the unit's columns. */
INLINE void multiply(Unit *unit, const int8_t *values, const int width, const int terms, const Constants constants) {
    atomic_signal_fence(memory_order_seq_cst); /* compilers do not know that tiles are loaded from memory */
    _tile_loadd(2, unit->weights, CACHE_LINE);
    MULTIPLY(3, 0, values, are_digits(terms) ? 2 * SEGMENT : SEGMENT, unit->products, constants);
    if (width * lines_of(terms) > (int)TILE_LINES) /* never of DIGITS */
        MULTIPLY(4, 1, values + TILE_LINES * SEGMENT, SEGMENT, unit->products + TILE_LINES * BLOCK, constants);
    atomic_signal_fence(memory_order_seq_cst);
}

/* The product of a token's lines; exact before the last addition. */
INLINE floats joined_lines(const ints *each, const int terms) {
    switch (terms) {
    case DIGITS: return float_of_ints(each[0]) * 4096 + float_of_ints(each[1]);
    case SHORT_DIGITS: return float_of_ints(each[0]);
    case SHORT_TERMS: return float_of_ints((each[0] << 8) + each[1]);
    default: return joined_terms(each);
    }
}

/* Adds to the sums of `width` tokens what a unit adds. segment: the index of its first scale. */
INLINE void add_unit(floats *sums, const Unit *unit, const Activations *x, int64_t segment, const int width,
                     const int terms, const Constants constants) {
    const int32_t *products = unit->products;
    UNROLL for (int t = 0; t < width; t++, products += lines_of(terms) * BLOCK) {
        ints each[MOST_TERMS];
        UNROLL for (int i = 0; i < lines_of(terms); i++) memcpy(&each[i], products + i * BLOCK, sizeof(ints));
        sums[t] += joined_lines(each, terms) * (unit->scales * x->scales[segment + t]);
        if (has_biases(constants)) sums[t] += unit->biases * x->sums[segment + t];
    }
}

/* A block of rows times the tokens of a tile of `width`, of which `count` exist. While tiles multiply a unit, vectors
 * unpack a later one and add up an earlier one. */
INLINE void multiply_block(const Matrix *matrix, const Activations *x, int64_t block, int64_t tile, int64_t count,
                           const Output *output, const int width, const int terms, const int bits,
                           const Constants constants) {
    const int parts = parts_of(constants);
    const int64_t all = x->segments * parts, first = tile * x->segments;
    const uint8_t *packed = matrix->packed + block * matrix->block_bytes;
    const int64_t bytes = value_bytes(terms) * SEGMENT; /* of a token's segment */
    const int8_t *values = x->values + first * bytes;
    Cursor at = {packed, packed, 0, 0};
    Unit ring[RING];
    floats sums[TILE] = {{0}};
    for (int64_t unit = 0; unit < all + LATEST; unit++) {
        const int64_t now = unit - MULTIPLIED, done = unit - LATEST;
        if (unit < all) unpack(matrix, &at, unit % 2, &ring[unit % RING], terms, bits, constants);
        if (now >= 0 && now < all)
            multiply(&ring[now % RING], values + now / parts * width * bytes + now % parts * HALF_SEGMENT, width, terms,
                     constants);
        if (done >= 0) add_unit(sums, &ring[done % RING], x, first + done / parts * width, width, terms, constants);
    }
    const int64_t row = block * BLOCK;
    for (int64_t t = 0; t < count; t++) {
        floats bias = output->bias != NULL ? load_some(output->bias, row, matrix->rows) : (floats){0};
        store_some(output->out + (tile + t) * output->stride, row, matrix->rows, sums[t] + bias);
    }
}

INLINE void multiply_tile(const Matrix *matrix, const Activations *x, int64_t block, int64_t tile, int64_t count,
                          const Output *output, const int width, const int bits, const Constants constants) {
    const int of_digits = bits == 4 && !is_looked_up(constants); /* see terms_of in linear.c */
    if (of_digits && x->terms == DIGITS)
        multiply_block(matrix, x, block, tile, count, output, width, DIGITS, bits, constants);
    else if (of_digits)
        multiply_block(matrix, x, block, tile, count, output, width, SHORT_DIGITS, bits, constants);
    else if (x->terms == MOST_TERMS)
        multiply_block(matrix, x, block, tile, count, output, width, MOST_TERMS, bits, constants);
    else
        multiply_block(matrix, x, block, tile, count, output, width, SHORT_TERMS, bits, constants);
}

INLINE void multiply_range(const Matrix *matrix, const Activations *x, int64_t begin, int64_t end,
                           const Output *output, const int bits, const Constants constants) {
    for (int64_t block = begin; block < end; block++)
        for (int64_t tile = 0; tile < x->tokens; tile += x->width) {
            const int64_t count = x->tokens - tile < x->width ? x->tokens - tile : x->width;
            switch (x->width) {
#define TILE_OF(width) case width: multiply_tile(matrix, x, block, tile, count, output, width, bits, constants); break;
                TILE_OF(4) TILE_OF(5) TILE_OF(6) TILE_OF(7) TILE_OF(8)
#undef TILE_OF
            }
        }
}

void amx_affine_blocks(const Matrix *matrix, const Activations *x, int64_t begin, int64_t end, const Output *output) {
    if (x->terms == 1 || x->tokens < AMX_FEWEST) {
        avx512_level.affine_blocks(matrix, x, begin, end, output);
        return;
    }
    TileShapes tiles = whole_tiles();
    const int64_t lines = x->width * lines_of((int)x->terms), parts = parts_of(matrix->constants);
    const int64_t first = lines < TILE_LINES ? lines : TILE_LINES;
    tiles.lines[0] = tiles.lines[3] = (uint8_t)first;
    if (lines > first) tiles.lines[1] = tiles.lines[4] = (uint8_t)(lines - first);
    if (!are_digits((int)x->terms)) {
        tiles.lines[2] = (uint8_t)(COLUMN_LINES / parts);
        tiles.line_bytes[3] = tiles.line_bytes[4] = (uint16_t)(SEGMENT / parts);
    }
    _tile_loadconfig(&tiles);
    BY_FORMAT(multiply_range, matrix, x, begin, end, output);
    _tile_release();
}

INLINE ints load_bytes(const int8_t *from) { return (ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from)); }
INLINE void store_bytes(int8_t *to, ints values) { _mm_storeu_si128((void *)to, _mm512_cvtepi32_epi8((__m512i)values)); }

/* Stores the upper digits of numbers of 12 bits and, a segment later, the lower ones. */
INLINE void store_digits(int8_t *line, ints numbers) {
    store_bytes(line, numbers >> 4);
    store_bytes(line + SEGMENT, numbers & 15);
}

/* See Level. Digits are made of three terms. */
void amx_quantize(const float *x, int64_t segments, int64_t width, int64_t terms, int8_t *values, float *scales,
                  float *sums, int32_t *offsets) {
    if (!are_digits((int)terms)) {
        avx512_level.quantize(x, segments, width, terms, values, scales, sums, offsets);
        return;
    }
    for (int64_t segment = 0; segment < segments; segment++) {
        int8_t each[MOST_TERMS * SEGMENT], *to = values + segment * width * value_bytes(terms) * SEGMENT;
        int32_t unused[2 * MOST_TERMS];
        avx512_level.quantize(x + segment * SEGMENT, 1, 1, MOST_TERMS, each, scales + segment * width,
                              sums + segment * width, unused);
        ints total = {0};
        for (int column = 0; column < SEGMENT; column += LANES) {
            const words value = ((words)load_bytes(each + column) << 16) +
                                (words)(load_bytes(each + SEGMENT + column) * 256 + load_bytes(each + 2 * SEGMENT + column));
            if (terms == SHORT_DIGITS) {
                const ints rounded = (ints)(value + 2048) >> 12;
                store_digits(to + column, rounded);
                total += rounded;
                continue;
            }
            const ints lower = (ints)(value << 20) >> 20;
            store_digits(to + column, (ints)(value - (words)lower) >> 12);
            store_digits(to + 2 * SEGMENT + column, lower);
        }
        if (terms == DIGITS) continue;
        scales[segment * width] *= 4096;
        sums[segment * width] = scales[segment * width] * sum(float_of_ints(total));
    }
}

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
