/* What both ways to compute the attention of many tokens share. A row is a query: a head of a token. */
#ifndef GPTCLI_SIMD_PASSAGE_ROWS_H
#define GPTCLI_SIMD_PASSAGE_ROWS_H

#include "distances.h"
#include "vectors.h"

/* The first position that a token sees; it may be negative. */
INLINE int64_t first_seen(const Passage *passage, int64_t token) {
    int64_t position = passage->first + token;
    if (passage->window == 0) return 0;
    if (passage->chunked) return position - (passage->dropped + position) % passage->window;
    return position - passage->window + 1;
}

/* The first span that any of the tokens from `begin` on sees, as a position. */
INLINE int64_t first_span(const Passage *passage, int64_t begin) {
    int64_t oldest = first_seen(passage, begin);
    return oldest > 0 ? oldest / SPAN * SPAN : 0;
}

INLINE int64_t within_span(int64_t index) { return index < 0 ? 0 : index < SPAN ? index : SPAN; }

/* The positions [*first, *last) of the span at `from` that a token sees. */
INLINE void seen_in_span(const Passage *passage, int64_t token, int64_t from, int64_t *first, int64_t *last) {
    *first = within_span(first_seen(passage, token) - from);
    *last = within_span(passage->first + token - from + 1);
}

INLINE const float *query_of_row(const Passage *passage, int64_t kv_head, int64_t begin, int64_t row) {
    int64_t group = passage->heads / passage->kv_heads;
    return passage->queries + (begin + row / group) * passage->query_stride +
           (kv_head * group + row % group) * passage->head_dim;
}

/* Adds what scores over the span at `from` gain with the position, counted from the newest one unless it is rounded. */
INLINE void add_distances_of_row(const Passage *passage, int64_t kv_head, int64_t row, int64_t from, float *scores) {
    if (passage->slopes == NULL) return;
    int64_t group = passage->heads / passage->kv_heads;
    if (passage->rounded == 0) from -= passage->first + passage->tokens - 1;
    add_distances(scores, SPAN, passage->slopes[kv_head * group + row % group], from, passage->rounded);
}

/* Writes a row's result, which is divided by its total weight. */
INLINE void store_result(const Passage *passage, int64_t kv_head, int64_t begin, int64_t row, float most, float total,
                         const float *out) {
    int64_t group = passage->heads / passage->kv_heads, head = kv_head * group + row % group;
    float *to = passage->out + ((begin + row / group) * passage->heads + head) * passage->head_dim, shrink = 1;
    if (passage->sinks != NULL) {
        float with_sink = fmaxf(most, passage->sinks[head]);
        shrink = expf(most - with_sink);
        total = total * shrink + expf(passage->sinks[head] - with_sink);
    }
    for (int64_t i = 0; i < passage->head_dim; i += LANES)
        store_some(to, i, passage->head_dim, load_some(out, i, passage->head_dim) * (shrink / total));
}

#endif
