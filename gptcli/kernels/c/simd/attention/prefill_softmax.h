/* What attention in vectors of 512 bits shares: weights of a span's positions. */
#pragma once

#include "prefill_rows.h"

enum { SPAN_VECTORS = SPAN / LANES };

#define LOG2_OF_E 1.44269504f

static int64_t depth_of(int64_t head_dim) { return (head_dim + SEGMENT - 1) / SEGMENT * SEGMENT; }

INLINE floats load_channels(const float *row, int64_t channel, int64_t head_dim) {
    return channel < head_dim ? load_some(row, channel, head_dim) : (floats){0};
}

/* 2^x, to 2^-18 of itself: more than bf16 and sums of two of them keep. A polynomial in what x is above an integer. */
INLINE floats power_of_two(floats x) {
    const floats rest = (floats)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    floats p = rest * 0.0135341678f + 0.0520114601f;
    p = p * rest + 0.241442755f;
    p = p * rest + 0.693003833f;
    p = p * rest + 1.00000262f;
    return (floats)_mm512_scalef_ps((__m512)p, (__m512)x);
}

/* A row's weights over a span from its scores; rescales its earlier results and total to the new greatest score. The
 * row sees positions [first, last) of the span. */
INLINE void weights_over_span(const Prefill *prefill, const float *scores, int64_t first, int64_t last, float *most,
                              floats *total, float *out, int64_t depth, floats *values) {
    uint64_t seen = last == 0 ? 0 : ~(uint64_t)0 >> (SPAN - last);
    seen = first == SPAN ? 0 : seen >> first << first;
    floats greatest_values = splat(-INFINITY);
    UNROLL for (int v = 0; v < SPAN_VECTORS; v++) {
        values[v] = load(scores + v * LANES);
        if (prefill->softcap != 0) values[v] = hyperbolic_tangent(values[v] / prefill->softcap) * prefill->softcap;
    }
    if (~seen != 0) {
        UNROLL for (int v = 0; v < SPAN_VECTORS; v++) {
            const __mmask16 mask = (__mmask16)(seen >> v * LANES);
            values[v] = (floats)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), mask, (__m512)values[v]);
        }
    }
    UNROLL for (int v = 0; v < SPAN_VECTORS; v++)
        greatest_values = (floats)_mm512_max_ps((__m512)greatest_values, (__m512)values[v]);
    const float here = _mm512_reduce_max_ps((__m512)greatest_values);
    if (here > *most) {
        const float shrink = expf(*most - here);
        for (int64_t i = 0; i < depth; i += LANES) store(out + i, load(out + i) * shrink);
        *total *= shrink;
        *most = here;
    }
    UNROLL for (int v = 0; v < SPAN_VECTORS; v++)
        values[v] = seen == 0 ? (floats){0} : power_of_two(values[v] * LOG2_OF_E - *most * LOG2_OF_E);
}
