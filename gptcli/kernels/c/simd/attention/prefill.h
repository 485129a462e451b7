/* Attention of many tokens of one text. */
#pragma once

#include "decode.h"
#include "prefill_rows.h"

enum { ROWS = LANES == 16 ? 8 : 4 }; /* of a product whose sums fit into registers */

/* c (ROWS, vectors * LANES) = a (ROWS, depth) @ b (depth, ...), plus the old c if `add`. A single vector may be cut off
 * at `width`. Nothing may be called while there are sums: a call would spill them to memory. */
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

/* Replaces a row's scores over a span by weights, and rescales its earlier results to the new largest score. The row
 * sees positions [begin, end) of the span. */
INLINE void weights_of_row(const Prefill *prefill, float *scores, int64_t begin, int64_t end, float *largest_score,
                           float *total, float *out) {
    for (int64_t i = 0; i < SPAN; i += LANES) {
        floats value = load(scores + i);
        if (prefill->softcap != 0) value = hyperbolic_tangent(value / prefill->softcap) * prefill->softcap;
        store(scores + i, value);
    }
    for (int64_t i = 0; i < begin; i++) scores[i] = -INFINITY;
    for (int64_t i = end; i < SPAN; i++) scores[i] = -INFINITY;
    floats most = load(scores);
    for (int64_t i = LANES; i < SPAN; i += LANES) most = greatest(most, load(scores + i));
    float here = greatest_lane(most), now = here > *largest_score ? here : *largest_score;
    if (now == -INFINITY && begin >= end) { /* the row has seen nothing yet; what it sees may be no number */
        memset(scores, 0, SPAN * sizeof(float));
        return;
    }
    if (now > *largest_score) {
        float shrink = expf(*largest_score - now);
        for (int64_t i = 0; i < prefill->head_dim; i += LANES)
            store_some(out, i, prefill->head_dim, load_some(out, i, prefill->head_dim) * shrink);
        *total *= shrink;
        *largest_score = now;
    }
    *total += exponentiate(scores, SPAN, now);
}

/* Tokens [begin, end) of one kv head. transposed: its keys, (spans, head_dim, SPAN); workspace: see attention.c. */
static void attend_prefill(const Prefill *prefill, int64_t kv_head, int64_t begin, int64_t end, const float *transposed,
                           float *workspace) {
    const int64_t head_dim = prefill->head_dim, group = prefill->heads / prefill->kv_heads;
    const int64_t rows = (end - begin) * group, padded = (rows + ROWS - 1) / ROWS * ROWS;
    float *queries = workspace, *out = queries + padded * head_dim, *scores = out + padded * head_dim;
    float *greatest = scores + padded * SPAN, *totals = greatest + padded, *expanded = totals + padded;
    const CacheKind kind = (CacheKind)prefill->kind;
    const uint8_t *cached = prefill->values + kv_head * head_bytes(kind, head_dim, prefill->room);
    memset(workspace, 0, (size_t)(2 * padded * head_dim) * sizeof(float));
    for (int64_t row = 0; row < padded; row++) {
        greatest[row] = -INFINITY;
        totals[row] = 0;
        if (row >= rows) continue;
        const float *query = query_of_row(prefill, kv_head, begin, row);
        for (int64_t i = 0; i < head_dim; i += LANES)
            store_some(queries + row * head_dim, i, head_dim, load_some(query, i, head_dim) * prefill->scale);
    }
    const int64_t newest = prefill->first + end;
    for (int64_t from = first_span(prefill, begin); from < newest; from += SPAN) {
        const float *keys = transposed + from * head_dim;
        const float *values = kind == CACHE_FP32 ? (const float *)cached + from * head_dim : expanded;
        int64_t present = newest - from < SPAN ? newest - from : SPAN;
        if (values == expanded) expand(kind, cached, head_dim, prefill->room, from, from + present, expanded);
        product(queries, head_dim, keys, SPAN, padded, head_dim, round_up(present, 2 * LANES), scores, SPAN, 0);
        for (int64_t row = 0; row < rows; row++) {
            int64_t first, last;
            seen_in_span(prefill, begin + row / group, from, &first, &last);
            add_alibi_of_row(prefill, kv_head, row, from, scores + row * SPAN);
            weights_of_row(prefill, scores + row * SPAN, first, last, greatest + row, totals + row,
                           out + row * head_dim);
        }
        product(scores, SPAN, values, head_dim, padded, present, head_dim, out, head_dim, 1);
    }
    for (int64_t row = 0; row < rows; row++)
        store_result(prefill, kv_head, begin, row, greatest[row], totals[row], out + row * head_dim);
}
