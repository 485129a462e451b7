/* Attention of many tokens where vectors multiply pairs of 16 bits at twice the rate of fp32, but have no tiles.
 *
 * Queries and keys are rounded to 16 bits with a scale each, so that a score loses some 2^-15 of the two lengths'
 * product. Weights and values are rounded to bf16. A span has, in this order:
 *   keys     (depth / 2, SPAN) pairs of channels, int16
 *   scales   (SPAN) of the keys, fp32
 *   values   (SPAN / 2, depth) pairs of positions, bf16
 * depth: head_dim, rounded up to 32; channels past head_dim are zero.
 */
#include "../../kernels.h"

#if GPTCLI_X86 && GPTCLI_BF16

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma," \
                                                   "f16c"))),                                                           \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")
#pragma GCC target("prefer-vector-width=512")
#endif

#include "../avx512_vectors.h"
#include "../vectors.h"

#include "../bf16_pairs.h"
#include "prefill_softmax.h"

enum {
    ROWS = 8,            /* queries whose sums fit into registers, two vectors each */
    PAIRS = SPAN / 2,    /* of positions */
    MOST_WORD = 32767,
    MOST_LENGTH = 46000, /* below the root of 2^31, so that no sum of products overflows */
};

/* The scale of a vector's numbers in 16 bits; NaN if one is not finite. depth: of whole vectors, zeros past the end. */
INLINE float scale_of(const floats *vector, int64_t vectors) {
    floats most = {0}, squares = {0}, poison = {0};
    for (int64_t i = 0; i < vectors; i++) {
        most = (floats)_mm512_max_ps((__m512)most, _mm512_abs_ps((__m512)vector[i]));
        poison += vector[i] * 0;
    }
    const float magnitude = _mm512_reduce_max_ps((__m512)most);
    if (magnitude < 1e-30f) return sum(poison);
    for (int64_t i = 0; i < vectors; i++) squares += (vector[i] / magnitude) * (vector[i] / magnitude);
    const float steps = fminf(MOST_WORD, MOST_LENGTH / sqrtf(sum(squares)));
    return magnitude / steps + sum(poison);
}

/* 16 numbers as int16. */
INLINE __m256i words_of(floats value, float inverse) { return _mm512_cvtepi32_epi16((__m512i)nearest(value * inverse)); }

/* A vector of head_dim numbers times `factor` to int16, (depth); returns the scale. */
INLINE float round_vector(const float *from, float factor, int64_t head_dim, int64_t depth, int16_t *to) {
    floats vector[MOST_DEPTH / LANES];
    const int64_t vectors = depth / LANES;
    for (int64_t i = 0; i < vectors; i++) vector[i] = load_channels(from, i * LANES, head_dim) * factor;
    const float scale = scale_of(vector, vectors), inverse = scale > 0 ? 1 / scale : 0;
    for (int64_t i = 0; i < vectors; i++)
        _mm256_storeu_si256((__m256i *)(to + i * LANES), words_of(vector[i], inverse));
    return scale;
}

void rounded_span(const float *keys, const float *values, int64_t present, int64_t head_dim, float *to) {
    const int64_t depth = depth_of(head_dim);
    int32_t *pairs = (int32_t *)to;
    float *scales = to + depth / 2 * SPAN;
    for (int64_t position = 0; position < SPAN; position += LANES) {
        int16_t rounded[LANES][MOST_DEPTH];
        for (int64_t i = 0; i < LANES; i++) {
            if (position + i < present)
                scales[position + i] = round_vector(keys + (position + i) * head_dim, 1, head_dim, depth, rounded[i]);
            else
                scales[position + i] = 0, memset(rounded[i], 0, (size_t)depth * sizeof(int16_t));
        }
        for (int64_t channel = 0; channel < depth; channel += SEGMENT) {
            floats block[LANES];
            UNROLL for (int i = 0; i < LANES; i++) memcpy(&block[i], rounded[i] + channel, sizeof block[i]);
            transpose(block);
            for (int i = 0; i < LANES; i++)
                memcpy(pairs + (channel / 2 + i) * SPAN + position, &block[i], sizeof block[i]);
        }
    }
    int32_t *to_values = (int32_t *)(scales + SPAN);
    for (int64_t pair = 0; pair < PAIRS; pair++)
        for (int64_t channel = 0; channel < depth; channel += LANES, to_values += LANES) {
            const float *row = values + 2 * pair * head_dim;
            floats first = 2 * pair < present ? load_channels(row, channel, head_dim) : (floats){0};
            floats second = 2 * pair + 1 < present ? load_channels(row + head_dim, channel, head_dim) : (floats){0};
            _mm512_storeu_si512(to_values, interleaved(rounded_pair(first, second)));
        }
}

/* Scores of ROWS queries (ROWS, depth / 2) over the first `seen` positions of a span; of further ones, anything. */
INLINE void scores_of_rows(const int32_t *queries, const float *query_scales, const int32_t *keys, const float *scales,
                           int64_t depth, int64_t seen, float *scores) {
    for (int64_t position = 0; position < seen; position += 2 * LANES) {
        ints sums[ROWS][2] = {{{0}}}; /* __m512i would be moved from register to register */
        const int32_t *from = keys + position;
        for (int64_t pair = 0; pair < depth / 2; pair++, from += SPAN) {
            const __m512i low = _mm512_loadu_si512(from), high = _mm512_loadu_si512(from + LANES);
            UNROLL for (int r = 0; r < ROWS; r++) {
                const __m512i query = _mm512_set1_epi32(queries[r * (depth / 2) + pair]);
                sums[r][0] = (ints)_mm512_dpwssd_epi32((__m512i)sums[r][0], query, low);
                sums[r][1] = (ints)_mm512_dpwssd_epi32((__m512i)sums[r][1], query, high);
            }
        }
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int v = 0; v < 2; v++)
                store(scores + r * SPAN + position + v * LANES,
                      float_of_ints(sums[r][v]) * (load(scales + position + v * LANES) * query_scales[r]));
    }
}

/* Adds the first `seen` values of a span, weighted, to the results of ROWS queries, (ROWS, depth). */
INLINE void add_values(const int32_t *weights, const int32_t *values, int64_t depth, int64_t seen, float *out) {
    for (int64_t channel = 0; channel < depth; channel += 2 * LANES) {
        __m512 sums[ROWS][2];
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int v = 0; v < 2; v++) sums[r][v] = _mm512_loadu_ps(out + r * depth + channel + v * LANES);
        const int32_t *from = values + channel;
        for (int64_t pair = 0; pair < (seen + 1) / 2; pair++, from += depth) {
            const __m512bh low = (__m512bh)_mm512_loadu_si512(from), high = (__m512bh)_mm512_loadu_si512(from + LANES);
            UNROLL for (int r = 0; r < ROWS; r++) {
                const __m512bh weight = (__m512bh)_mm512_set1_epi32(weights[r * PAIRS + pair]);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], weight, low);
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], weight, high);
            }
        }
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int v = 0; v < 2; v++) _mm512_storeu_ps(out + r * depth + channel + v * LANES, sums[r][v]);
    }
}

/* Rounds a row's weights over a span to bf16, and adds those to the total: what they multiply must add up to one. */
INLINE void round_weights(const floats *values, floats *total, int32_t *weights) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    UNROLL for (int v = 0; v < SPAN_VECTORS; v += 2) {
        const __m512i both = rounded_pair(values[v], values[v + 1]);
        _mm512_storeu_si512(weights + v * LANES / 2, both);
        *total = (floats)_mm512_dpbf16_ps((__m512)*total, (__m512bh)both, ones);
    }
}

void rounded_attend(const Prefill *prefill, int64_t kv_head, int64_t begin, int64_t end, const float *spans,
                    float *workspace) {
    const int64_t head_dim = prefill->head_dim, depth = depth_of(head_dim), group = prefill->heads / prefill->kv_heads;
    const int64_t rows = (end - begin) * group, padded = (rows + ROWS - 1) / ROWS * ROWS;
    float *out = workspace, *totals = out + padded * depth, *greatest_scores = totals + padded * LANES;
    float *query_scales = greatest_scores + padded, *scores = query_scales + padded;
    int32_t *weights = (int32_t *)(scores + ROWS * SPAN), *queries = weights + ROWS * PAIRS;
    memset(workspace, 0, (size_t)(padded * (depth + LANES)) * sizeof(float)); /* results and totals */
    memset(queries, 0, (size_t)(padded * depth / 2) * sizeof(int32_t));
    memset(weights, 0, ROWS * PAIRS * sizeof(int32_t)); /* of rows that are only padding */
    for (int64_t row = 0; row < padded; row++) {
        greatest_scores[row] = -INFINITY;
        query_scales[row] = 0;
        if (row >= rows) continue;
        for (int64_t i = 0; i < head_dim; i += LANES)
            __builtin_prefetch(result_of_row(prefill, kv_head, begin, row) + i, 1, 2);
        query_scales[row] = round_vector(query_of_row(prefill, kv_head, begin, row), prefill->scale, head_dim, depth,
                                         (int16_t *)(queries + row * depth / 2));
    }
    const int64_t span_bytes = (SPAN * depth + SPAN) * (int64_t)sizeof(float);
    for (int64_t from = first_span(prefill, begin); from < prefill->first + end; from += SPAN) {
        const float *span = spans + from / SPAN * 2 * SPAN * depth;
        const int32_t *keys = (const int32_t *)span;
        const int whole = from + SPAN <= prefill->first + begin + 1 && first_seen(prefill, end - 1) <= from;
        const float *scales = span + depth / 2 * SPAN;
        for (int64_t row = 0; row < rows; row += ROWS) {
            fetch_part(span + 2 * SPAN * depth, span_bytes, row / ROWS, padded / ROWS); /* of the next one */
            const int64_t last_row = smaller(row + ROWS, rows) - 1;
            const int64_t seen = within_span(prefill->first + begin + last_row / group - from + 1);
            if (seen == 0) continue;
            scores_of_rows(queries + row * depth / 2, query_scales + row, keys, scales, depth, seen, scores);
            for (int64_t r = 0; r < ROWS && row + r < rows; r++) {
                int64_t first = 0, last = SPAN;
                floats values[SPAN_VECTORS], total = load(totals + (row + r) * LANES);
                if (!whole) seen_in_span(prefill, begin + (row + r) / group, from, &first, &last);
                add_alibi_of_row(prefill, kv_head, row + r, from, scores + r * SPAN);
                weights_over_span(prefill, scores + r * SPAN, first, last, greatest_scores + row + r, &total,
                                  out + (row + r) * depth, depth, values);
                round_weights(values, &total, weights + r * PAIRS);
                store(totals + (row + r) * LANES, total);
            }
            add_values(weights, (const int32_t *)(scales + SPAN), depth, seen, out + row * depth);
        }
    }
    for (int64_t row = 0; row < rows; row++)
        store_result(prefill, kv_head, begin, row, greatest_scores[row], sum(load(totals + row * LANES)),
                     out + row * depth);
}

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
