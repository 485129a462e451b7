/* Attention of many tokens in tiles of bf16. Each number is a sum of two, so products lose 2^-16, not 2^-8.
 *
 * A pair of tiles holds 16 lines of 32 numbers rounded to bf16, then what rounding left of them, also in bf16:
 *   queries   (rows / 16, depth / 32) pairs: a line is a row
 *   weights   (rows / 16, 2) pairs, of the span's positions: a line is a row
 *   keys      (4, depth / 32) pairs for each span: a line has two channels of 16 positions, side by side
 *   values    (depth / 16, 2) pairs for each span: a line has two positions of 16 channels, side by side
 * depth: head_dim, rounded up to 32; channels past head_dim are zero.
 */
#include "../../kernels.h"

#if GPTCLI_X86 && GPTCLI_BF16

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile," \
                                                   "amx-bf16,avx2,fma,f16c"))),                                        \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c")
#pragma GCC target("prefer-vector-width=512")
#endif

#include "../avx512_vectors.h"
#include "../vectors.h"

#include "../amx_tiles.h"
#include "../bf16_pairs.h"
#include "prefill_softmax.h"

enum {
    PAIR = 2 * TILE_NUMBERS,
    SPAN_TILES = SPAN / TILE_LINES,
    SPAN_STEPS = SPAN / SEGMENT,
};

/* 32 numbers in bf16, and what is left of them. */
INLINE void split(floats low, floats high, __m512i *upper, __m512i *rest) {
    *upper = rounded_pair(low, high);
    low -= (floats)(words_of_halves((halves)_mm512_castsi512_si256(*upper)) << 16);
    high -= (floats)(words_of_halves((halves)_mm512_extracti64x4_epi64(*upper, 1)) << 16);
    *rest = rounded_pair(low, high);
}

static void split_keys(const float *keys, int64_t present, int64_t head_dim, int64_t depth, uint16_t *to) {
    for (int64_t tile = 0; tile < SPAN_TILES; tile++)
        for (int64_t channel = 0; channel < depth; channel += SEGMENT, to += PAIR) {
            floats upper[LANES] = {{0}}, rest[LANES] = {{0}};
            for (int64_t r = 0; r < LANES && tile * TILE_LINES + r < present; r++) {
                const float *row = keys + (tile * TILE_LINES + r) * head_dim;
                split(load_channels(row, channel, head_dim), load_channels(row, channel + LANES, head_dim),
                      (__m512i *)&upper[r], (__m512i *)&rest[r]);
            }
            transpose(upper);
            transpose(rest);
            for (int i = 0; i < LANES; i++) {
                _mm512_storeu_si512(to + i * SEGMENT, (__m512i)upper[i]);
                _mm512_storeu_si512(to + TILE_NUMBERS + i * SEGMENT, (__m512i)rest[i]);
            }
        }
}

static void split_values(const float *values, int64_t present, int64_t head_dim, int64_t depth, uint16_t *to) {
    for (int64_t channel = 0; channel < depth; channel += LANES)
        for (int64_t step = 0; step < SPAN_STEPS; step++, to += PAIR)
            for (int64_t i = 0; i < TILE_LINES; i++) {
                const int64_t position = step * SEGMENT + 2 * i;
                const float *row = values + position * head_dim;
                floats first = position < present ? load_channels(row, channel, head_dim) : (floats){0};
                floats second =
                    position + 1 < present ? load_channels(row + head_dim, channel, head_dim) : (floats){0};
                __m512i upper, rest;
                split(first, second, &upper, &rest);
                _mm512_storeu_si512(to + i * SEGMENT, interleaved(upper));
                _mm512_storeu_si512(to + TILE_NUMBERS + i * SEGMENT, interleaved(rest));
            }
}

void amx_split_span(const float *keys, const float *values, int64_t present, int64_t head_dim, float *to) {
    const int64_t depth = depth_of(head_dim);
    split_keys(keys, present, head_dim, depth, (uint16_t *)to);
    split_values(values, present, head_dim, depth, (uint16_t *)(to + SPAN * depth));
}

/* Adds the products of tiles 4 and 5 with tiles 6 and 7 to tiles 0 to 3. */
INLINE void multiply_tiles(void) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

/* c (32, 32) = the products of `steps` pairs of tiles, plus the old c if `add`. a_next and b_next: numbers between the
 * two pairs of a step. */
INLINE void square(const uint16_t *a, int64_t a_next, const uint16_t *b, int64_t b_next, int64_t steps, float *c,
                   int64_t c_stride, const int add) {
    const int64_t bytes = c_stride * (int64_t)sizeof(float);
    float *below = c + TILE_LINES * c_stride;
    if (add) {
        _tile_loadd(0, c, bytes);
        _tile_loadd(1, c + LANES, bytes);
        _tile_loadd(2, below, bytes);
        _tile_loadd(3, below + LANES, bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; step++, a += PAIR, b += PAIR) {
        _tile_loadd(4, a, CACHE_LINE);
        _tile_loadd(5, a + a_next, CACHE_LINE);
        _tile_loadd(6, b + TILE_NUMBERS, CACHE_LINE);
        _tile_loadd(7, b + b_next + TILE_NUMBERS, CACHE_LINE);
        multiply_tiles();
        _tile_loadd(6, b, CACHE_LINE);
        _tile_loadd(7, b + b_next, CACHE_LINE);
        multiply_tiles();
        _tile_loadd(4, a + TILE_NUMBERS, CACHE_LINE);
        _tile_loadd(5, a + a_next + TILE_NUMBERS, CACHE_LINE);
        multiply_tiles();
    }
    _tile_stored(0, c, bytes);
    _tile_stored(1, c + LANES, bytes);
    _tile_stored(2, below, bytes);
    _tile_stored(3, below + LANES, bytes);
}

/* c (rows, 16 * b_tiles) = a @ b, plus the old c if `add`; steps: pairs in a row of tiles of a, and in a tile of b. */
INLINE void product(const uint16_t *a, const uint16_t *b, int64_t rows, int64_t b_tiles, int64_t steps, float *c,
                    const int add) {
    const int64_t width = b_tiles * LANES, next = steps * PAIR;
    for (int64_t tile = 0; tile < b_tiles; tile += 2)
        for (int64_t row = 0; row < rows; row += 2 * TILE_LINES)
            square(a + row / TILE_LINES * next, next, b + tile * next, next, steps, c + row * width + tile * LANES,
                   width, add);
}

/* Replaces a row's scores over a span by weights; see `weights_over_span`. */
INLINE void weigh_row(const Prefill *prefill, const float *scores, int64_t first, int64_t last, float *most,
                      floats *total, float *out, int64_t depth, uint16_t *weights) {
    floats values[SPAN_VECTORS];
    weights_over_span(prefill, scores, first, last, most, total, out, depth, values);
    UNROLL for (int v = 0; v < SPAN_VECTORS; v++) *total += values[v];
    UNROLL for (int step = 0; step < SPAN_STEPS; step++, weights += PAIR) {
        __m512i upper, rest;
        split(values[2 * step], values[2 * step + 1], &upper, &rest);
        _mm512_storeu_si512(weights, upper);
        _mm512_storeu_si512(weights + TILE_NUMBERS, rest);
    }
}

static void split_queries(const Prefill *prefill, int64_t kv_head, int64_t begin, int64_t rows, int64_t depth,
                          uint16_t *queries) {
    const int64_t head_dim = prefill->head_dim;
    for (int64_t row = 0; row < rows; row++) {
        const float *query = query_of_row(prefill, kv_head, begin, row);
        uint16_t *line = queries + row / TILE_LINES * depth / SEGMENT * PAIR + row % TILE_LINES * SEGMENT;
        for (int64_t i = 0; i < depth; i += SEGMENT, line += PAIR) {
            __m512i upper, rest;
            split(load_channels(query, i, head_dim) * prefill->scale,
                  load_channels(query, i + LANES, head_dim) * prefill->scale, &upper, &rest);
            _mm512_storeu_si512(line, upper);
            _mm512_storeu_si512(line + TILE_NUMBERS, rest);
        }
    }
}

void amx_attend_prefill(const Prefill *prefill, int64_t kv_head, int64_t begin, int64_t end, const float *spans,
                        float *workspace) {
    const int64_t depth = depth_of(prefill->head_dim), group = prefill->heads / prefill->kv_heads, rows = (end - begin) * group;
    const int64_t padded = (rows + 2 * TILE_LINES - 1) / (2 * TILE_LINES) * 2 * TILE_LINES;
    float *out = workspace, *totals = out + padded * depth, *scores = totals + padded * LANES;
    float *greatest_scores = scores + padded * SPAN;
    uint16_t *queries = (uint16_t *)(greatest_scores + padded), *weights = queries + 2 * padded * depth;
    memset(workspace, 0, (size_t)(padded * (depth + LANES)) * sizeof(float)); /* results and totals */
    memset(queries, 0, (size_t)(2 * padded * (depth + SPAN)) * sizeof(uint16_t)); /* rows that are only padding, too */
    for (int64_t row = 0; row < rows; row++) greatest_scores[row] = -INFINITY;
    split_queries(prefill, kv_head, begin, rows, depth, queries);
    configure_tiles();
    for (int64_t from = first_span(prefill, begin); from < prefill->first + end; from += SPAN) {
        const uint16_t *keys = (const uint16_t *)(spans + from / SPAN * 2 * SPAN * depth), *values = keys + 2 * SPAN * depth;
        product(queries, keys, padded, SPAN_TILES, depth / SEGMENT, scores, 0);
        for (int64_t row = 0; row < rows; row++) {
            int64_t first, last;
            seen_in_span(prefill, begin + row / group, from, &first, &last);
            add_alibi_of_row(prefill, kv_head, row, from, scores + row * SPAN);
            floats total = load(totals + row * LANES);
            weigh_row(prefill, scores + row * SPAN, first, last, greatest_scores + row, &total, out + row * depth,
                      depth, weights + row / TILE_LINES * SPAN_STEPS * PAIR + row % TILE_LINES * SEGMENT);
            store(totals + row * LANES, total);
        }
        product(weights, values, padded, depth / LANES, SPAN_STEPS, out, 1);
    }
    _tile_release();
    for (int64_t row = 0; row < rows; row++)
        store_result(prefill, kv_head, begin, row, greatest_scores[row], sum(load(totals + row * LANES)),
                     out + row * depth);
}

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
