/* What the three ways to compute the attention of many tokens share. A row is a query: a head of a token. */
#pragma once

#include "alibi.h"
#include "../vectors.h"

/* The first position that a token sees; it may be negative. */
INLINE int64_t first_seen(const Prefill *prefill, int64_t token) {
    int64_t position = prefill->first + token;
    if (prefill->window == 0) return 0;
    if (prefill->chunked) return position - (prefill->dropped + position) % prefill->window;
    return position - prefill->window + 1;
}

/* The first span that any of the tokens from `begin` on sees, as a position. */
INLINE int64_t first_span(const Prefill *prefill, int64_t begin) {
    int64_t oldest = first_seen(prefill, begin);
    return oldest > 0 ? oldest / SPAN * SPAN : 0;
}

INLINE int64_t within_span(int64_t index) { return index < 0 ? 0 : index < SPAN ? index : SPAN; }

/* The positions [*first, *last) of the span at `from` that a token sees. */
INLINE void seen_in_span(const Prefill *prefill, int64_t token, int64_t from, int64_t *first, int64_t *last) {
    *first = within_span(first_seen(prefill, token) - from);
    *last = within_span(prefill->first + token - from + 1);
}

INLINE const float *query_of_row(const Prefill *prefill, int64_t kv_head, int64_t begin, int64_t row) {
    int64_t group = prefill->heads / prefill->kv_heads;
    return prefill->queries + (begin + row / group) * prefill->query_stride +
           (kv_head * group + row % group) * prefill->head_dim;
}

/* Where a row's result goes. */
INLINE float *result_of_row(const Prefill *prefill, int64_t kv_head, int64_t begin, int64_t row) {
    int64_t group = prefill->heads / prefill->kv_heads;
    return prefill->out + ((begin + row / group) * prefill->heads + kv_head * group + row % group) * prefill->head_dim;
}

/* Adds what scores over the span at `from` gain with the position, counted from the newest one unless it is rounded. */
INLINE void add_alibi_of_row(const Prefill *prefill, int64_t kv_head, int64_t row, int64_t from, float *scores) {
    if (prefill->slopes == NULL) return;
    int64_t group = prefill->heads / prefill->kv_heads;
    if (prefill->rounded == 0) from -= prefill->first + prefill->tokens - 1;
    add_alibi(scores, SPAN, prefill->slopes[kv_head * group + row % group], from, prefill->rounded);
}

/* Writes a row's result, which is divided by its total weight. */
INLINE void store_result(const Prefill *prefill, int64_t kv_head, int64_t begin, int64_t row, float most, float total,
                         const float *out) {
    float *to = result_of_row(prefill, kv_head, begin, row), shrink = 1;
    if (prefill->sinks != NULL) {
        int64_t group = prefill->heads / prefill->kv_heads;
        float sink = prefill->sinks[kv_head * group + row % group], with_sink = fmaxf(most, sink);
        shrink = expf(most - with_sink);
        total = total * shrink + expf(sink - with_sink);
    }
    for (int64_t i = 0; i < prefill->head_dim; i += LANES)
        store_some(to, i, prefill->head_dim, load_some(out, i, prefill->head_dim) * (shrink / total));
}
