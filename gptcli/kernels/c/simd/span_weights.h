/* What attention in vectors of 512 bits shares: weights of a span's positions. */
#ifndef GPTCLI_SIMD_SPAN_WEIGHTS_H
#define GPTCLI_SIMD_SPAN_WEIGHTS_H

#include "passage_rows.h"

enum { SPAN_VECTORS = SPAN / LANES };

static int64_t depth_of(int64_t head_dim) { return (head_dim + SEGMENT - 1) / SEGMENT * SEGMENT; }

INLINE floats load_channels(const float *row, int64_t channel, int64_t head_dim) {
    return channel < head_dim ? load_some(row, channel, head_dim) : (floats){0};
}

/* e^x of no positive x, as `exponential`. */
INLINE floats power_of_e(floats x) {
    x = greatest(splat(-104), x); /* where zero begins */
    floats n = (floats)_mm512_roundscale_ps((__m512)(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return (floats)_mm512_scalef_ps((__m512)exponential_of_rest(x, n), (__m512)n);
}

/* A row's weights over a span from its scores; rescales its earlier results and total to the new greatest score. The
 * row sees positions [first, last) of the span. */
INLINE void weights_over_span(const Passage *passage, const float *scores, int64_t first, int64_t last, float *most,
                              floats *total, float *out, int64_t depth, floats *values) {
    uint64_t seen = last == 0 ? 0 : ~(uint64_t)0 >> (SPAN - last);
    seen = first == SPAN ? 0 : seen >> first << first;
    floats greatest_values = splat(-INFINITY);
    UNROLL for (int v = 0; v < SPAN_VECTORS; v++) {
        values[v] = load(scores + v * LANES);
        if (passage->softcap != 0) values[v] = hyperbolic_tangent(values[v] / passage->softcap) * passage->softcap;
        __mmask16 mask = (__mmask16)(seen >> v * LANES);
        values[v] = (floats)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), mask, (__m512)values[v]);
        greatest_values = (floats)_mm512_max_ps((__m512)greatest_values, (__m512)values[v]);
    }
    const float here = _mm512_reduce_max_ps((__m512)greatest_values);
    if (here > *most) {
        const float shrink = expf(*most - here);
        for (int64_t i = 0; i < depth; i += LANES) store(out + i, load(out + i) * shrink);
        *total *= shrink;
        *most = here;
    }
    UNROLL for (int v = 0; v < SPAN_VECTORS; v++)
        values[v] = seen == 0 ? (floats){0} : power_of_e(values[v] - *most);
}

#endif
