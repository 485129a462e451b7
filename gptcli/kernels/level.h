/* All that computes, written once for vectors of LANES floats. avx512.c, avx2.c and portable.c include it, each with
 * its compiler target, after defining:
 *
 *   LANES               4, 8 or 16
 *   TOKENS              tokens of a register tile, a divisor of TILE
 *   PAIRED_TOKENS       tokens of a register tile of two blocks of rows: 4, or 0 where registers are too few for it
 *   PANEL_TOKENS        tokens of a register tile with a panel: 12, 6 or 4
 *   floats, ints, words vectors of LANES float, int32_t, uint32_t
 *   halves              a vector of LANES uint16_t
 *   float_of_halves     halves in fp16 to floats
 *   words_of_halves     halves to words
 *   interleave_low      a[0], b[0], a[1], b[1], ... of the first halves of two floats
 *   interleave_high     the same of the second halves
 *   nearest             floats to ints, ties to even
 *   sum, largest        of a vector's lanes: floats, and ints that are not negative
 *   dot                 ints + the products of four u8 (a word) and four s8 (an int32_t), in each lane, exact
 *   CODES               1 if there are an encode_record and a decode_record as below, else 0
 *
 * Functions that have constants among their arguments are inlined into one copy for each of them, so that their inner
 * loops unroll and their arrays become registers.
 */
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef int8_t bytes __attribute__((vector_size(LANES)));

enum {
    VECTORS = BLOCK / LANES, /* that hold a block's rows */
    MOST_VECTORS = PAIRED_TOKENS > 0 ? 2 * VECTORS : VECTORS, /* of an affine tile */
    AHEAD = 4096,            /* bytes between what is read and what is prefetched: memory takes that long */
};

/* ---- vectors ---- */

INLINE floats load(const float *from) {
    floats value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE halves load_halves(const uint16_t *from) {
    halves value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE words load_words(const uint8_t *from) {
    words value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void store(float *to, floats value) { memcpy(to, &value, sizeof value); }
INLINE floats splat(float value) { return (floats){0} + value; }
INLINE floats float_of_ints(ints value) { return __builtin_convertvector(value, floats); }
INLINE floats choose(ints mask, floats yes, floats no) { return (floats)((mask & (ints)yes) | (~mask & (ints)no)); }

/* A comparison with a NaN is false: both give b then. */
INLINE floats least(floats a, floats b) { return choose(a < b, a, b); }
INLINE floats greatest(floats a, floats b) { return choose(a > b, a, b); }

INLINE void prefetch(const void *place, int64_t ahead) { __builtin_prefetch((const char *)place + ahead); }

INLINE float greatest_lane(floats value) {
    float most = value[0];
    for (int i = 1; i < LANES; i++) most = value[i] > most ? value[i] : most;
    return most;
}

/* e^x to 2 units in the last place: 2^n * e^r with |r| <= ln(2) / 2, a polynomial from Cephes (Moshier). */
INLINE floats exponential(floats x) {
    x = least(splat(89), greatest(splat(-104), x)); /* where infinity and zero begin */
    ints n = nearest(x * 1.44269504f);
    floats r = x - float_of_ints(n) * 0.693359375f; /* ln(2) in two parts, the first exact in few bits */
    r = r + float_of_ints(n) * 2.12194440e-4f;
    floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1;
    ints half = n >> 1; /* 2^n in two factors: n may be beyond what one exponent holds */
    return p * (floats)((half + 127) << 23) * (floats)((n - half + 127) << 23);
}

INLINE floats sigmoid(floats x) { return 1 / (1 + exponential(-x)); }
INLINE floats hyperbolic_tangent(floats x) { return 1 - 2 / (exponential(2 * x) + 1); }

/* The vector at `place` of an array of `size`; beyond its end there are zeros. */
INLINE floats load_some(const float *from, int64_t place, int64_t size) {
    if (place + LANES <= size) return load(from + place);
    floats value = {0};
    memcpy(&value, from + place, (size_t)(size - place) * sizeof(float));
    return value;
}

INLINE void store_some(float *to, int64_t place, int64_t size, floats value) {
    int64_t count = size - place < LANES ? size - place : LANES;
    if (count == LANES)
        store(to + place, value);
    else
        memcpy(to + place, &value, (size_t)count * sizeof(float));
}

/* ---- linear: quantized activations ---- */

static void quantize(const float *x, int64_t parts, int64_t width, int8_t *values, float *scales, float *sums,
                     int32_t *offsets) {
    for (int64_t part = 0; part < parts; part++, x += PART, values += width * PART) {
        /* Compared as integers, magnitudes order alike, and a NaN is the greatest: it must not be lost. */
        ints most = {0};
        for (int i = 0; i < PART; i += LANES) {
            ints bits = (ints)load(x + i) & 0x7fffffff;
            most = (ints)choose(bits > most, (floats)bits, (floats)most);
        }
        int32_t bits = largest(most);
        float magnitude;
        memcpy(&magnitude, &bits, sizeof bits);
        float inverse = magnitude < 1e-30f ? 0 : 127 / magnitude; /* 127 / a subnormal would be infinite */
        words total = {0}; /* unsigned: what a NaN is rounded to may overflow; its scale is NaN, too */
        for (int i = 0; i < PART; i += LANES) {
            ints rounded = nearest(load(x + i) * inverse);
            total += (words)rounded;
            bytes narrow = __builtin_convertvector(rounded, bytes);
            memcpy(values + i, &narrow, sizeof narrow);
        }
        scales[part * width] = magnitude / 127;
        float all = sum(float_of_ints((ints)total)); /* exact: below 2^24 */
        sums[part * width] = magnitude / 127 * all;
        offsets[part * width] = magnitude < INFINITY ? -middle_of(8) * (int32_t)all : 0;
    }
}

/* ---- linear: affine weights ---- */

INLINE floats load_constant(const uint8_t *record, int64_t place, const Constants constants) {
    if (constants == SINGLES) return load((const float *)record + place);
    return float_of_halves(load_halves((const uint16_t *)record + place));
}

/* The constants that begin at `first` in a record of each of `blocks` blocks. */
INLINE void load_constants(const uint8_t *record, int64_t block_bytes, int64_t first, const Constants constants,
                           const int blocks, floats *loaded) {
    UNROLL for (int v = 0; v < blocks * VECTORS; v++)
        loaded[v] = load_constant(record + v / VECTORS * block_bytes, first + v % VECTORS * LANES, constants);
}

INLINE void prefetch_constants(const uint8_t *record, const Constants constants) {
    for (int64_t i = 0; i < constants_bytes(constants); i += CACHE_LINE) prefetch(record + i, AHEAD);
}

INLINE int32_t four_values(const int8_t *values) {
    int32_t word;
    memcpy(&word, values, sizeof word);
    return word;
}

/* Adds the products of PART columns: lines of packed weights, and the values of `tokens` tokens. */
INLINE void part_dots(const uint8_t *lines, int64_t block_bytes, const int8_t *values, const int bits, const int blocks,
                      const int tokens, ints dots[TOKENS][MOST_VECTORS]) {
    const words low = (words){0} + 0x0f0f0f0f;
    UNROLL for (int step = 0; step < PART / 4; step += 8 / bits) {
        UNROLL for (int v = 0; v < blocks * VECTORS; v++) {
            const uint8_t *place = lines + v / VECTORS * block_bytes + step * bits / 8 * CACHE_LINE;
            if (v == 0 && blocks == 1) prefetch(place, AHEAD);
            place += v % VECTORS * LANES * 4;
            words word = load_words(place);
            words first = bits == 4 ? word & low : word, second = word >> 4 & low;
            UNROLL for (int t = 0; t < tokens; t++) {
                const int8_t *four = values + t * PART + step * 4;
                dots[t][v] = dot(dots[t][v], first, four_values(four), bits);
                if (bits == 4) dots[t][v] = dot(dots[t][v], second, four_values(four + 4), bits);
            }
        }
    }
}

/* Products with centred weights begin below zero by what they get from the middle q, which stands for zero. */
INLINE void start_dots(const int32_t *offsets, const int bits, const int blocks, const int tokens,
                       ints dots[TOKENS][MOST_VECTORS]) {
    UNROLL for (int t = 0; t < tokens; t++) {
        ints offset = (ints){0} + offsets[t];
        if (bits == 4) offset >>= 4; /* exact: 8 times the sum, not 128 times */
        UNROLL for (int v = 0; v < blocks * VECTORS; v++) dots[t][v] = offset;
    }
}

/* (tokens, vectors) values. Not to be inlined: what lives on where memcpy may be called gets no registers, not even in
 * the loops before. */
static __attribute__((noinline)) void store_rows(const Matrix *matrix, int64_t row, int64_t token, int64_t tokens,
                                                 const floats *values, int64_t vectors, const Output *output) {
    for (int64_t t = 0; t < tokens; t++) {
        float *out = output->out + (token + t) * output->stride;
        for (int v = 0; v < vectors && row + v * LANES < matrix->rows; v++) {
            int64_t place = row + v * LANES;
            floats bias = output->bias != NULL ? load_some(output->bias, place, matrix->rows) : (floats){0};
            store_some(out, place, matrix->rows, values[t * vectors + v] + bias);
        }
    }
}

/* `blocks` blocks of rows for `tokens` tokens from `token` on, which lie in one tile of the activations. */
INLINE void affine_tile(const Matrix *matrix, const Activations *x, int64_t block, int64_t token, const Output *output,
                        const int bits, const Constants constants, const int blocks, const int tokens) {
    int64_t place = token / x->width * x->parts * x->width + token % x->width; /* of the part and token in hand */
    const int64_t last = place + x->parts * x->width, group_places = matrix->group / PART * x->width;
    const uint8_t *lines = matrix->packed + block * matrix->block_bytes; /* one record ends where the next begins */
    floats sums[TOKENS][MOST_VECTORS] = {{{0}}};
    while (place < last) {
        const uint8_t *record = lines;
        prefetch_constants(record, constants);
        lines += constants_bytes(constants);
        UNROLL for (int group = 0; group < groups_in_record(constants); group++) {
            floats scales[MOST_VECTORS], biases[MOST_VECTORS];
            load_constants(record, matrix->block_bytes, group * BLOCK, constants, blocks, scales);
            if (constants != CENTRED) load_constants(record, matrix->block_bytes, BLOCK, constants, blocks, biases);
            for (int64_t end = place + group_places; place < end; place += x->width, lines += PART * BLOCK * bits / 8) {
                ints dots[TOKENS][MOST_VECTORS] = {{{0}}};
                if (constants == CENTRED) start_dots(x->offsets + place, bits, blocks, tokens, dots);
                part_dots(lines, matrix->block_bytes, x->values + place * PART, bits, blocks, tokens, dots);
                UNROLL for (int t = 0; t < tokens; t++) {
                    UNROLL for (int v = 0; v < blocks * VECTORS; v++) {
                        sums[t][v] += float_of_ints(dots[t][v]) * (scales[v] * x->scales[place + t]);
                        if (constants != CENTRED) sums[t][v] += biases[v] * x->sums[place + t];
                    }
                }
            }
        }
    }
    floats done[TOKENS * MOST_VECTORS];
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int v = 0; v < blocks * VECTORS; v++) done[t * blocks * VECTORS + v] = sums[t][v];
    store_rows(matrix, block * BLOCK, token, tokens, done, blocks * VECTORS, output);
}

INLINE void affine_block(const Matrix *matrix, const Activations *x, int64_t block, const Output *output,
                         const int bits, const Constants constants) {
    for (int64_t token = 0; token < x->tokens;) {
        int64_t left = x->tokens - token, count = left < TOKENS ? left : TOKENS;
        switch (count) {
#define TILE_OF(count) case count: affine_tile(matrix, x, block, token, output, bits, constants, 1, count); break;
            TILE_OF(1) TILE_OF(2)
#if TOKENS >= 4
            TILE_OF(3) TILE_OF(4)
#endif
#if TOKENS >= 8
            TILE_OF(5) TILE_OF(6) TILE_OF(7) TILE_OF(8)
#endif
#undef TILE_OF
        }
        token += count;
    }
}

#if PAIRED_TOKENS > 0
enum { PAIRED_FROM = 24 }; /* tokens; with fewer, waiting for two streams of weights costs as much as it gains */

/* Two blocks at once share what is loaded of the tokens, at the price of half as many of these. */
INLINE void affine_pair(const Matrix *matrix, const Activations *x, int64_t block, const Output *output,
                        const int bits, const Constants constants) {
    for (int64_t token = 0; token < x->tokens;) {
        int64_t left = x->tokens - token, count = left < PAIRED_TOKENS ? left : PAIRED_TOKENS;
        switch (count) {
#define TILE_OF(count) case count: affine_tile(matrix, x, block, token, output, bits, constants, 2, count); break;
            TILE_OF(1) TILE_OF(2) TILE_OF(3) TILE_OF(4)
#undef TILE_OF
        }
        token += count;
    }
}
#endif

/* Calls a function with the bits and constants of an affine matrix as its last arguments, for each a copy. */
#define BY_FORMAT(function, matrix, ...)                                                                               \
    switch (matrix->bits + matrix->constants) {                                                                        \
    case 4 + SINGLES: function(matrix, __VA_ARGS__, 4, SINGLES); break;                                                \
    case 4 + HALVES: function(matrix, __VA_ARGS__, 4, HALVES); break;                                                  \
    case 4 + CENTRED: function(matrix, __VA_ARGS__, 4, CENTRED); break;                                                \
    case 8 + SINGLES: function(matrix, __VA_ARGS__, 8, SINGLES); break;                                                \
    case 8 + HALVES: function(matrix, __VA_ARGS__, 8, HALVES); break;                                                  \
    case 8 + CENTRED: function(matrix, __VA_ARGS__, 8, CENTRED); break;                                                \
    }

INLINE void affine_range(const Matrix *matrix, const Activations *x, int64_t begin, int64_t end, const Output *output,
                         const int bits, const Constants constants) {
    int64_t block = begin;
#if PAIRED_TOKENS > 0
    if (x->tokens >= PAIRED_FROM)
        for (; block + 2 <= end; block += 2) affine_pair(matrix, x, block, output, bits, constants);
#endif
    for (; block < end; block++) affine_block(matrix, x, block, output, bits, constants);
}

static void affine_blocks(const Matrix *matrix, const Activations *x, int64_t begin, int64_t end,
                          const Output *output) {
    BY_FORMAT(affine_range, matrix, x, begin, end, output);
}

/* ---- linear: affine weights, activations as they are ----
 *
 * Each weight becomes scale * q + bias in fp32, as in an expanded matrix; what is saved is reading that. A lane has
 * several columns of a row, which are not shifted down: with the others masked away a q stands for itself times a power
 * of two, and has its scale divided by that, which is exact. Only the topmost is shifted, for lanes are signed.
 */

enum { STEP = 8 }; /* columns at once: a line of 4 bits, or two of 8; also how many sums are under way */

/* The lowest bit of a column in its lane. */
INLINE int place_of(int column, const int bits) { return bits == 8 ? column % 4 * 8 : column % 4 * 8 + column / 4 * 4; }

/* A scale for each of eight columns, and the bias, of a group of those in a record. */
INLINE floats exact_constants(const uint8_t *record, int64_t group, int64_t lane, const int bits,
                              const Constants constants, floats *scales) {
    floats scale = load_constant(record, group * BLOCK + lane, constants);
    UNROLL for (int c = 0; c < STEP; c++) {
        int place = place_of(c, bits);
        scales[c] = place + bits == 32 ? scale : scale * (1 / (float)(1u << place));
    }
    return constants == CENTRED ? scale * -(float)middle_of(bits) : load_constant(record, BLOCK + lane, constants);
}

/* One of the eight columns that begin in a line. */
INLINE floats exact_weights(const uint8_t *lines, int column, const int bits, const floats *scales, floats bias) {
    int place = place_of(column, bits);
    words word = load_words(lines + column * bits / 32 * CACHE_LINE);
    words q = place + bits == 32 ? word >> place : word & ((1u << bits) - 1) << place;
    return float_of_ints((ints)q) * scales[column] + bias;
}

/* What lies as far ahead of eight columns' lines. */
INLINE void prefetch_columns(const uint8_t *lines, const int bits) {
    prefetch(lines, AHEAD);
    if (bits == 8) prefetch(lines + CACHE_LINE, AHEAD);
}

/* LANES rows from `row` on for `tokens` tokens from `token` on. */
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

/* ---- linear: dense weights ---- */

enum {
    DENSE_ROWS = LANES == 16 ? 4 : 2, /* computed together if there are several tokens, which share what is loaded */
    DENSE_TOKENS = 4,
    DENSE_UNROLL = 4,
};

INLINE floats load_weights(const void *weights, int64_t place, const Kind kind) {
    if (kind == FLOAT32) return load((const float *)weights + place);
    halves value = load_halves((const uint16_t *)weights + place);
    if (kind == FLOAT16) return float_of_halves(value);
    return (floats)(words_of_halves(value) << 16);
}

INLINE float load_weight(const void *weights, int64_t place, const Kind kind) {
    if (kind == FLOAT32) return ((const float *)weights)[place];
    uint16_t value = ((const uint16_t *)weights)[place];
    return kind == FLOAT16 ? float_of_half(value) : float_of_bfloat(value);
}

/* `rows` rows times `tokens` tokens; columns in steps of `unroll` vectors, so that enough sums are under way. */
INLINE void dense_tile(const Matrix *matrix, const float *x, int64_t row, int64_t token, const Output *output,
                       const Kind kind, const int rows, const int tokens, const int unroll) {
    const int64_t columns = matrix->columns, size = kind == FLOAT32 ? 4 : 2;
    const uint8_t *weights = (const uint8_t *)matrix->dense + row * columns * size;
    /* Of several rows, the same columns of rows to come: what follows in memory is in use already. */
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
                /* One row at a time: a single stream is what the prefetcher likes best. */
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

/* ---- linear: coded weights ---- */

enum { RECORD_VECTORS = RECORD / LANES };

#if CODES
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

/* A record's weights, in the order of its columns. spelled: its upper bytes, or NULL. */
INLINE void decode_record(const Matrix *matrix, const uint8_t *codes, const uint8_t *rest, const uint8_t *spelled,
                          floats *weights, const int wide) {
    float columns[RECORD];
    (void)wide;
    decode_columns(matrix, codes, rest, spelled, columns);
    for (int v = 0; v < RECORD_VECTORS; v++) weights[v] = load(columns + v * LANES);
}
#endif

/* A row times `tokens` tokens. *next: how many of the listed records come before it, and then before the next row. */
INLINE void coded_tile(const Matrix *matrix, const float *x, int64_t row, int64_t token, const Output *output,
                       int64_t *next, const int wide, const int tokens, const int unroll) {
    const int64_t columns = matrix->columns, first = row * columns / RECORD;
    const uint8_t *codes = matrix->packed + first * CODE_BYTES, *rest = matrix->rest + first * matrix->rest_bytes;
    int64_t listed = *next, at = listed_record(matrix, listed);
    x += token * columns;
    floats sums[DENSE_TOKENS][DENSE_UNROLL] = {{{0}}};
    for (int64_t record = 0; record < columns / RECORD; record++) {
        const uint8_t *spelled = NULL;
        if (__builtin_expect(first + record == at, 0)) {
            spelled = matrix->spelled + listed * RECORD;
            at = listed_record(matrix, ++listed);
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

/* Sums are taken in the order of dense_rows. */
INLINE void coded_rows(const Matrix *matrix, const float *x, int64_t tokens, int64_t begin, int64_t end,
                       const Output *output, const int wide) {
    int64_t listed = matrix->spelled_from[begin / BLOCK];
    for (int64_t row = begin; row < end; row++) {
        int64_t behind = listed;
        for (int64_t token = 0; token < tokens;) {
            int64_t left = tokens - token, count = left < DENSE_TOKENS ? left : DENSE_TOKENS, next = listed;
            switch (count) {
            case 1: coded_tile(matrix, x, row, token, output, &next, wide, 1, 4); break;
            case 2: coded_tile(matrix, x, row, token, output, &next, wide, 2, 2); break;
            case 3: coded_tile(matrix, x, row, token, output, &next, wide, 3, 1); break;
            default: coded_tile(matrix, x, row, token, output, &next, wide, 4, 1); break;
            }
            token += count;
            behind = next;
        }
        listed = behind;
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

/* ---- linear: many tokens ----
 *
 * PANEL rows of CHUNK columns are made fp32 and turned over, a column's rows side by side. They stay in the first cache
 * while all tokens pass, a few at a time, whose sums are in registers. The sums of one chunk after another meet in the
 * output.
 */

enum {
    PANEL = 2 * LANES, /* rows */
    CHUNK = PANEL_FLOATS / PANEL, /* columns */
};

/* LANES vectors become their transpose: the two halves interleaved, as often as there are halves of halves. */
INLINE void transpose(floats *vectors) {
    UNROLL for (int round = LANES; round > 1; round /= 2) {
        floats from[LANES];
        UNROLL for (int i = 0; i < LANES; i++) from[i] = vectors[i];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            vectors[2 * i] = interleave_low(from[i], from[i + LANES / 2]);
            vectors[2 * i + 1] = interleave_high(from[i], from[i + LANES / 2]);
        }
    }
}

/* The first `count` of a vector; the others are zero. */
INLINE floats load_some_weights(const void *weights, int64_t place, int64_t count, const Kind kind) {
    if (count >= LANES) return load_weights(weights, place, kind);
    floats value = {0};
    for (int64_t i = 0; i < count; i++) value[i] = load_weight(weights, place + i, kind);
    return value;
}

/* Rows [row, end), at most PANEL, and columns [column, column + count); there are zeros for what is not there. */
INLINE void fill_panel(const Matrix *matrix, int64_t row, int64_t end, int64_t column, int64_t count, float *panel,
                       const Kind kind) {
    const int64_t size = kind == FLOAT32 ? 4 : 2;
    for (int64_t i = 0; i < count; i += LANES) {
        /* The next panel's: with few tokens, waiting for memory takes longer than they do. */
        for (int64_t r = row; r < end; r++) prefetch(matrix->dense, (r * matrix->columns + column + count + i) * size);
        for (int v = 0; v < PANEL; v += LANES) {
            floats block[LANES] = {{0}};
            int64_t rows = end - row - v, place = (row + v) * matrix->columns + column + i;
            if (rows >= LANES && count - i >= LANES) {
                UNROLL for (int r = 0; r < LANES; r++)
                    block[r] = load_weights(matrix->dense, place + r * matrix->columns, kind);
            } else {
                UNROLL for (int r = 0; r < LANES; r++)
                    if (r < rows)
                        block[r] = load_some_weights(matrix->dense, place + r * matrix->columns, count - i, kind);
            }
            transpose(block);
            UNROLL for (int c = 0; c < LANES; c++) store(panel + (i + c) * PANEL + v, block[c]);
        }
    }
}

/* The same of a coded matrix; columns are those of whole records. */
INLINE void fill_coded_panel(const Matrix *matrix, int64_t row, int64_t end, int64_t column, int64_t count,
                             float *panel, const int wide) {
    for (int64_t i = 0; i < count; i += RECORD) {
        for (int v = 0; v < PANEL; v += LANES) {
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
                for (int c = 0; c < LANES; c++) store(panel + (i + b * LANES + c) * PANEL + v, blocks[b][c]);
            }
        }
    }
}

/* The same of an affine matrix, whose rows lie side by side already; column and count are multiples of PART. */
INLINE void fill_affine_panel(const Matrix *matrix, int64_t row, int64_t end, int64_t column, int64_t count,
                              float *panel, const int bits, const Constants constants) {
    const int64_t span = groups_in_record(constants) * matrix->group; /* columns of a record */
    for (int v = 0; v < PANEL; v += LANES) {
        const uint8_t *block = matrix->packed + (row + v) / BLOCK * matrix->block_bytes;
        int64_t lane = (row + v) % BLOCK;
        for (int64_t i = 0; i < count; i += PART) {
            float *to = panel + i * PANEL + v;
            if (row + v >= end) {
                for (int64_t c = 0; c < PART; c++) store(to + c * PANEL, (floats){0});
                continue;
            }
            int64_t inside = (column + i) % span;
            const uint8_t *record = block + (column + i) / span * matrix->record_bytes;
            const uint8_t *lines = record + constants_bytes(constants) + inside * BLOCK * bits / 8 + lane * 4;
            floats scales[STEP];
            floats bias = exact_constants(record, inside / matrix->group, lane, bits, constants, scales);
            prefetch(record, AHEAD);
            for (int first = 0; first < PART; first += STEP, lines += STEP * BLOCK * bits / 8) {
                prefetch_columns(lines, bits);
                UNROLL for (int c = 0; c < STEP; c++)
                    store(to + (first + c) * PANEL, exact_weights(lines, c, bits, scales, bias));
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

/* What a panel's rows have for several tokens: at place + token * stride. */
typedef struct Rows {
    float *place;
    int64_t stride;
} Rows;

/* out = before + a panel of `count` columns times `tokens` tokens; x: the first one's at the panel's first column.
 * Nothing is called in here: all registers would be saved around it, and the sums live in memory. */
INLINE void panel_tile(const float *panel, const float *x, int64_t stride, int64_t count, Rows before, Rows out,
                       const int tokens) {
    floats sums[PANEL_TOKENS][2] = {{{0}}};
    for (int64_t column = 0; column < count; column++) {
        floats low = load(panel + column * PANEL), high = load(panel + column * PANEL + LANES);
        UNROLL for (int t = 0; t < tokens; t++) {
            sums[t][0] += low * x[t * stride + column];
            sums[t][1] += high * x[t * stride + column];
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) {
        const float *from = before.place + t * before.stride;
        store(out.place + t * out.stride, load(from) + sums[t][0]);
        store(out.place + t * out.stride + LANES, load(from + LANES) + sums[t][1]);
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

/* Adds a panel's products to the rows [row, end) of the output, at most PANEL of them; for the first columns there is
 * only the bias to add to. */
static void panel_rows(const float *panel, const float *x, int64_t stride, int64_t count, int64_t row, int64_t end,
                       int64_t token, int64_t tokens, int first, const Output *output) {
    static const float zeros[PANEL];
    const Rows nothing = {(float *)zeros, 0}, out = {output->out + token * output->stride + row, output->stride};
    Rows before = out;
    if (first) before = output->bias != NULL ? (Rows){(float *)output->bias + row, 0} : nothing;
    if (row + PANEL <= end) {
        panel_tokens(panel, x, stride, count, before, out, tokens);
        return;
    }
    float edge[PANEL_TOKENS * PANEL]; /* whole panels, of which some rows are copied */
    panel_tokens(panel, x, stride, count, nothing, (Rows){edge, PANEL}, tokens);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < end - row; i++)
            out.place[t * out.stride + i] = before.place[t * before.stride + i] + edge[t * PANEL + i];
}

/* Rows [begin, end) of all tokens. */
static void panels(const Matrix *matrix, const float *x, int64_t tokens, int64_t begin, int64_t end, float *panel,
                   const Output *output) {
    const int64_t columns = matrix->columns, chunks = (columns + CHUNK - 1) / CHUNK;
    const int64_t chunk = ((columns + chunks - 1) / chunks + RECORD - 1) / RECORD * RECORD; /* all about as wide */
    const int64_t tiles = (tokens + PANEL_TOKENS - 1) / PANEL_TOKENS, tile = (tokens + tiles - 1) / tiles;
    for (int64_t row = begin; row < end; row += PANEL)
        for (int64_t column = 0; column < columns; column += chunk) {
            int64_t count = columns - column < chunk ? columns - column : chunk;
            fill(matrix, row, end, column, count, panel);
            for (int64_t token = 0; token < tokens; token += tile) {
                int64_t some = tokens - token < tile ? tokens - token : tile;
                panel_rows(panel, x + token * columns + column, columns, count, row, end, token, some, column == 0,
                           output);
            }
        }
}

/* ---- attention of one token ----
 *
 * Of a range, all keys are read and then all values. What comes next is fetched meanwhile: LANES positions ahead, the
 * values behind the last key, and the next range's keys behind the last value.
 */

enum {
    HEADS = 4, /* that share what is loaded of values */
    COLUMNS = 4, /* vectors of a value that are summed in registers */
    KEYS = 4, /* that share what is loaded of queries */
    TURNS = LANES / KEYS,
};

/* Half as many sums of neighbours for each of two vectors, in turns. */
INLINE floats halved(floats a, floats b) { return interleave_low(a, b) + interleave_high(a, b); }
INLINE floats quartered(floats a, floats b, floats c, floats d) { return halved(halved(a, c), halved(b, d)); }

/* scores[head][position] = scale * q . k; keys: the first position's; values: those of the same positions. A turn has
 * every TURNS-th of LANES positions, so that their sums come out in order. */
INLINE void multiply_keys(const Attention *attention, const float *queries, const float *keys, const float *values,
                          int64_t positions, float scores[HEADS][RANGE], const int heads) {
    const int64_t head_dim = attention->head_dim, whole = head_dim / LANES * LANES;
    for (int64_t position = 0; position < positions; position += LANES) {
        const int64_t last = positions - position - 1;
        const float *rows[LANES], *next = last < LANES ? values : keys + (position + LANES) * head_dim;
        for (int r = 0; r < LANES; r++) rows[r] = keys + (position + (r < last ? r : last)) * head_dim;
        floats products[HEADS][TURNS];
        UNROLL for (int turn = 0; turn < TURNS; turn++) {
            floats sums[HEADS][KEYS] = {{{0}}};
            for (int64_t i = 0; i < whole; i += LANES) {
                UNROLL for (int k = 0; k < KEYS; k++) {
                    int r = k * TURNS + turn;
                    prefetch(next + r * head_dim + i, 0);
                    floats key = load(rows[r] + i);
                    UNROLL for (int h = 0; h < heads; h++) sums[h][k] += key * load(queries + h * head_dim + i);
                }
            }
            UNROLL for (int h = 0; h < heads; h++)
                products[h][turn] = quartered(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
        }
        UNROLL for (int h = 0; h < heads; h++) {
            floats all = products[h][0];
            if (TURNS == 2) all = halved(all, products[h][1 % TURNS]);
            if (TURNS == 4) all = quartered(all, products[h][1 % TURNS], products[h][2 % TURNS], products[h][3 % TURNS]);
            store(scores[h] + position, all);
            for (int64_t i = whole; i < head_dim; i++)
                for (int r = 0; r < LANES; r++) scores[h][position + r] += queries[h * head_dim + i] * rows[r][i];
            store(scores[h] + position, load(scores[h] + position) * attention->scale);
        }
    }
}

/* Whole vectors of scores as they count: capped, and behind the last position -infinity. The greatest of them. */
INLINE float bounded(float *scores, int64_t positions, float softcap) {
    if (softcap != 0)
        for (int64_t i = 0; i < positions; i += LANES)
            store(scores + i, hyperbolic_tangent(load(scores + i) / softcap) * softcap);
    for (int64_t i = positions; i % LANES != 0; i++) scores[i] = -INFINITY;
    floats most = splat(-INFINITY);
    for (int64_t i = 0; i < positions; i += LANES) most = greatest(load(scores + i), most);
    return greatest_lane(most);
}

/* Whole vectors of scores become e^(score - greatest); the sum of them. */
INLINE float exponentiate(float *scores, int64_t positions, float most) {
    floats total = {0};
    for (int64_t i = 0; i < positions; i += LANES) {
        floats weight = exponential(load(scores + i) - most);
        store(scores + i, weight);
        total += weight;
    }
    return sum(total);
}

/* out[head] (head_dim), `columns` vectors from `from` on = the weighted values; values: the first position's; next: the
 * keys that are read then. */
INLINE void weigh(const Attention *attention, const float *values, const float *next, int64_t positions,
                  float scores[HEADS][RANGE], int64_t from, float *out, int64_t stride, const int heads,
                  const int columns) {
    const int64_t head_dim = attention->head_dim;
    floats sums[HEADS][COLUMNS] = {{{0}}};
    for (int64_t position = 0; position < positions; position++, values += head_dim) {
        int64_t beyond = position + LANES - positions;
        const float *ahead = beyond < 0 ? values + LANES * head_dim : next + beyond * head_dim;
        UNROLL for (int c = 0; c < columns; c++) {
            int64_t place = from + c * LANES;
            prefetch(ahead + place, 0);
            floats value = columns == 1 ? load_some(values, place, head_dim) : load(values + place);
            UNROLL for (int h = 0; h < heads; h++) sums[h][c] += value * scores[h][position];
        }
    }
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int c = 0; c < columns; c++) {
            if (columns == 1)
                store_some(out + h * stride, from, head_dim, sums[h][c]);
            else
                store(out + h * stride + from + c * LANES, sums[h][c]);
        }
}

INLINE void attend_heads(const Attention *attention, const float *queries, const float *keys, const float *values,
                         int64_t positions, float *partial, int64_t stride, const int heads) {
    const int64_t head_dim = attention->head_dim;
    const float *next = keys + positions * head_dim;
    float scores[HEADS][RANGE];
    multiply_keys(attention, queries, keys, values, positions, scores, heads);
    for (int h = 0; h < heads; h++) {
        float most = bounded(scores[h], positions, attention->softcap);
        partial[h * stride + GREATEST] = most;
        partial[h * stride + SUM] = exponentiate(scores[h], positions, most);
    }
    int64_t from = 0;
    for (; from + COLUMNS * LANES <= head_dim; from += COLUMNS * LANES)
        weigh(attention, values, next, positions, scores, from, partial + WEIGHTED, stride, heads, COLUMNS);
    for (; from < head_dim; from += LANES)
        weigh(attention, values, next, positions, scores, from, partial + WEIGHTED, stride, heads, 1);
}

/* All heads that share kv_head over positions [begin, end). */
static void attend(const Attention *attention, int64_t kv_head, int64_t begin, int64_t end, float *partial,
                   int64_t stride) {
    int64_t group = attention->heads / attention->kv_heads, head_dim = attention->head_dim;
    int64_t place = kv_head * attention->head_stride + begin * head_dim;
    const float *keys = attention->keys + place, *values = attention->values + place;
    for (int64_t head = 0; head < group; head += HEADS) {
        const float *queries = attention->queries + (kv_head * group + head) * head_dim;
        float *out = partial + head * stride;
        switch (group - head) {
        case 1: attend_heads(attention, queries, keys, values, end - begin, out, stride, 1); break;
        case 2: attend_heads(attention, queries, keys, values, end - begin, out, stride, 2); break;
        case 3: attend_heads(attention, queries, keys, values, end - begin, out, stride, 3); break;
        default: attend_heads(attention, queries, keys, values, end - begin, out, stride, HEADS); break;
        }
    }
}

static void merge(const Attention *attention, int64_t head, float *partials, int64_t ranges) {
    int64_t head_dim = attention->head_dim, size = WEIGHTED + head_dim;
    float most = attention->sinks != NULL ? attention->sinks[head] : -INFINITY;
    for (int64_t range = 0; range < ranges; range++) most = fmaxf(most, partials[range * size + GREATEST]);
    float total = attention->sinks != NULL ? expf(attention->sinks[head] - most) : 0;
    for (int64_t range = 0; range < ranges; range++) {
        float *partial = partials + range * size;
        partial[GREATEST] = expf(partial[GREATEST] - most); /* its weight, from here on */
        total += partial[GREATEST] * partial[SUM];
    }
    for (int64_t i = 0; i < head_dim; i += LANES) {
        floats weighted = {0};
        for (int64_t range = 0; range < ranges; range++) {
            const float *partial = partials + range * size;
            weighted += partial[GREATEST] * load_some(partial + WEIGHTED, i, head_dim);
        }
        store_some(attention->out + head * head_dim, i, head_dim, weighted / total);
    }
}

/* ---- attention of many tokens ---- */

enum {
    ROWS = LANES == 16 ? 8 : 4, /* of a product that are summed in registers: as many as there are registers for */
};

/* c (ROWS, vectors * LANES) = a (ROWS, depth) @ b (depth, ...), added to what is there if `add`. One vector may be cut
 * off at `width`. No call may follow the sums in the same function, or they would not stay in registers. */
INLINE void product_tile(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t depth, float *c,
                         int64_t c_stride, int64_t width, const int vectors, const int add) {
    floats sums[ROWS][2];
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            sums[r][v] = !add ? (floats){0} : vectors == 2 ? load(c + r * c_stride + v * LANES)
                                                           : load_some(c + r * c_stride, 0, width);
    for (int64_t k = 0; k < depth; k++, b += b_stride) {
        floats values[2];
        UNROLL for (int v = 0; v < vectors; v++)
            values[v] = vectors == 2 ? load(b + v * LANES) : load_some(b, 0, width);
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int v = 0; v < vectors; v++) sums[r][v] += values[v] * a[r * a_stride + k];
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int v = 0; v < vectors; v++) {
            if (vectors == 2)
                store(c + r * c_stride + v * LANES, sums[r][v]);
            else
                store_some(c + r * c_stride, 0, width, sums[r][v]);
        }
}

/* The same for `rows` rows, a multiple of ROWS, and any width. */
INLINE void product(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t rows, int64_t depth,
                    int64_t width, float *c, int64_t c_stride, const int add) {
    for (int64_t row = 0; row < rows; row += ROWS) {
        int64_t from = 0;
        for (; from + 2 * LANES <= width; from += 2 * LANES)
            product_tile(a + row * a_stride, a_stride, b + from, b_stride, depth, c + row * c_stride + from, c_stride,
                         width - from, 2, add);
        for (; from < width; from += LANES)
            product_tile(a + row * a_stride, a_stride, b + from, b_stride, depth, c + row * c_stride + from, c_stride,
                         width - from, 1, add);
    }
}

/* One row's scores over a span become weights; what it had before is scaled to the new greatest score. It sees
 * positions [begin, end) of the span. */
INLINE void weights_of_row(const Passage *passage, float *scores, int64_t begin, int64_t end, float *record,
                           float *total, float *out) {
    for (int64_t i = 0; i < SPAN; i += LANES) {
        floats value = load(scores + i);
        if (passage->softcap != 0) value = hyperbolic_tangent(value / passage->softcap) * passage->softcap;
        store(scores + i, value);
    }
    for (int64_t i = 0; i < begin; i++) scores[i] = -INFINITY;
    for (int64_t i = end; i < SPAN; i++) scores[i] = -INFINITY;
    floats most = load(scores);
    for (int64_t i = LANES; i < SPAN; i += LANES) most = greatest(most, load(scores + i));
    float here = greatest_lane(most), now = here > *record ? here : *record;
    if (now == -INFINITY) { /* it sees nothing so far */
        memset(scores, 0, SPAN * sizeof(float));
        return;
    }
    if (now > *record) {
        float shrink = expf(*record - now);
        for (int64_t i = 0; i < passage->head_dim; i += LANES)
            store_some(out, i, passage->head_dim, load_some(out, i, passage->head_dim) * shrink);
        *total *= shrink;
        *record = now;
    }
    *total += exponentiate(scores, SPAN, now);
}

/* Tokens [begin, end) of one kv head, whose keys lie transposed; attention.c says how workspace is divided. */
static void attend_passage(const Passage *passage, int64_t kv_head, int64_t begin, int64_t end, const float *transposed,
                           float *workspace) {
    const int64_t head_dim = passage->head_dim, group = passage->heads / passage->kv_heads;
    const int64_t rows = (end - begin) * group, padded = (rows + ROWS - 1) / ROWS * ROWS;
    float *queries = workspace, *out = queries + padded * head_dim, *scores = out + padded * head_dim;
    float *greatest = scores + padded * SPAN, *totals = greatest + padded;
    memset(workspace, 0, (size_t)(2 * padded * head_dim) * sizeof(float));
    for (int64_t row = 0; row < padded; row++) {
        greatest[row] = -INFINITY;
        totals[row] = 0;
        if (row >= rows) continue;
        const float *query = passage->queries + (begin + row / group) * passage->query_stride +
                             (kv_head * group + row % group) * head_dim;
        for (int64_t i = 0; i < head_dim; i += LANES)
            store_some(queries + row * head_dim, i, head_dim, load_some(query, i, head_dim) * passage->scale);
    }
    int64_t oldest = passage->window != 0 ? passage->first + begin - passage->window + 1 : 0;
    int64_t newest = passage->first + end;
    for (int64_t from = oldest > 0 ? oldest / SPAN * SPAN : 0; from < newest; from += SPAN) {
        const float *keys = transposed + from * head_dim;
        const float *values = passage->values + kv_head * passage->head_stride + from * head_dim;
        int64_t present = newest - from < SPAN ? newest - from : SPAN;
        product(queries, head_dim, keys, SPAN, padded, head_dim, SPAN, scores, SPAN, 0);
        for (int64_t row = 0; row < rows; row++) {
            int64_t last = passage->first + begin + row / group - from + 1;
            int64_t first = passage->window != 0 ? last - passage->window : 0;
            weights_of_row(passage, scores + row * SPAN, first > 0 ? (first < SPAN ? first : SPAN) : 0,
                           last > 0 ? (last < SPAN ? last : SPAN) : 0, greatest + row, totals + row,
                           out + row * head_dim);
        }
        product(scores, SPAN, values, head_dim, padded, present, head_dim, out, head_dim, 1);
    }
    for (int64_t row = 0; row < rows; row++) {
        int64_t head = kv_head * group + row % group;
        float *to = passage->out + ((begin + row / group) * passage->heads + head) * head_dim;
        float total = totals[row], shrink = 1;
        if (passage->sinks != NULL) {
            float most = fmaxf(greatest[row], passage->sinks[head]);
            shrink = expf(greatest[row] - most);
            total = total * shrink + expf(passage->sinks[head] - most);
        }
        for (int64_t i = 0; i < head_dim; i += LANES)
            store_some(to, i, head_dim, load_some(out + row * head_dim, i, head_dim) * (shrink / total));
    }
}

/* ---- small operations ---- */

static void rms_norm(const float *x, const float *weight, float epsilon, int64_t size, float *out) {
    floats squares = {0};
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = load_some(x, i, size);
        squares += value * value;
    }
    float factor = 1 / sqrtf(sum(squares) / (float)size + epsilon);
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = load_some(x, i, size) * factor;
        store_some(out, i, size, weight != NULL ? value * load_some(weight, i, size) : value);
    }
}

static void layer_norm(const float *x, const float *weight, const float *bias, float epsilon, int64_t size,
                       float *out) {
    floats total = {0}, squares = {0};
    for (int64_t i = 0; i < size; i += LANES) total += load_some(x, i, size);
    float mean = sum(total) / (float)size;
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = load_some(x, i, size) - mean;
        squares += value * value;
    }
    int64_t beyond = (LANES - size % LANES) % LANES; /* lanes that held -mean instead of an element */
    float variance = fmaxf(0, sum(squares) - (float)beyond * mean * mean) / (float)size;
    float factor = 1 / sqrtf(variance + epsilon);
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = (load_some(x, i, size) - mean) * factor;
        if (weight != NULL) value *= load_some(weight, i, size);
        if (bias != NULL) value += load_some(bias, i, size);
        store_some(out, i, size, value);
    }
}

static void rope(float *head, const float *cosines, const float *sines, int64_t dim) {
    int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        floats first = load_some(head, i, half), second = load_some(head + half, i, half);
        floats turned = first * load_some(cosines, i, half) + second * load_some(sines, i, half);
        floats other = second * load_some(cosines + half, i, half) + first * load_some(sines + half, i, half);
        store_some(head, i, half, turned);
        store_some(head + half, i, half, other);
    }
}

/* x * (the share of a normal distribution below x); Abramowitz and Stegun 7.1.26 for erfc, within 1.5e-7. */
INLINE floats gelu(floats x) {
    floats z = greatest(x, -x) * 0.70710678f, t = 1 / (1 + 0.3275911f * z);
    floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    floats above = 0.5f * p * t * exponential(-z * z); /* the share above |x| */
    return x * choose(x > 0, 1 - above, above);
}

INLINE floats gelu_tanh(floats x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

INLINE floats activation(const int kind, floats gate) {
    switch (kind) {
    case SILU: return gate * sigmoid(gate);
    case GELU: return gelu(gate);
    case GELU_TANH: return gelu_tanh(gate);
    default: return choose(gate < 0, (floats){0}, gate);
    }
}

/* gpt-oss's: both bounded at 7, a steeper sigmoid, and 1 added to up. */
INLINE floats clamped_swiglu(floats gate, floats up) {
    gate = least(gate, splat(7));
    up = least(greatest(up, splat(-7)), splat(7));
    return gate * sigmoid(1.702f * gate) * (up + 1);
}

INLINE void activate_kind(const int kind, const float *gate, const float *up, int64_t size, float *out) {
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = load_some(gate, i, size), factor = up != NULL ? load_some(up, i, size) : splat(1);
        value = kind == CLAMPED_SWIGLU ? clamped_swiglu(value, factor) : activation(kind, value) * factor;
        store_some(out, i, size, value);
    }
}

static void activate(int kind, const float *gate, const float *up, int64_t size, float *out) {
    switch (kind) {
    case SILU: activate_kind(SILU, gate, up, size, out); break;
    case GELU: activate_kind(GELU, gate, up, size, out); break;
    case GELU_TANH: activate_kind(GELU_TANH, gate, up, size, out); break;
    case RELU: activate_kind(RELU, gate, up, size, out); break;
    case CLAMPED_SWIGLU: activate_kind(CLAMPED_SWIGLU, gate, up, size, out); break;
    }
}

static void exponentials(const float *x, int64_t size, float *out) {
    for (int64_t i = 0; i < size; i += LANES) store_some(out, i, size, exponential(load_some(x, i, size)));
}

static float greatest_of(const float *x, int64_t size) {
    floats most = splat(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) most = greatest(load(x + i), most);
    float found = greatest_lane(most);
    for (; i < size; i++) found = x[i] > found ? x[i] : found;
    return found;
}

#define LEVEL(name)                                                                                                   \
    {name,  quantize,       encode,   dense_blocks, affine_blocks, exact_blocks, panels,       attend,                \
     merge, attend_passage, rms_norm, layer_norm,   rope,          activate,     exponentials, greatest_of}
