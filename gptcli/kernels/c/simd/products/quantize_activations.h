/* Writes activations as integers, in one to three terms of 8 bits. */
#pragma once

#include "../../kernels.h"
#include "../vectors.h"

typedef int8_t bytes __attribute__((vector_size(LANES)));

/* The lowest eight bits, signed. */
INLINE ints lowest_term(ints value) { return value << 24 >> 24; }

/* One token: x (segments * SEGMENT). Consecutive segments of the outputs are `width` apart; see Activations. */
INLINE void quantize_terms(const float *x, int64_t segments, int64_t width, int8_t *values, float *scales, float *sums,
                           int32_t *offsets, const int terms) {
    const float steps = 127 << 8 * (terms - 1); /* that the greatest magnitude is away from zero */
    for (int64_t segment = 0; segment < segments; segment++, x += SEGMENT) {
        /* Magnitudes compare alike as integers, and a NaN is then the greatest, so it is not lost. */
        ints most = {0};
        for (int i = 0; i < SEGMENT; i += LANES) {
            ints bits = (ints)load(x + i) & 0x7fffffff;
            most = (ints)choose(bits > most, (floats)bits, (floats)most);
        }
        int32_t bits = largest(most);
        float magnitude;
        memcpy(&magnitude, &bits, sizeof bits);
        float inverse = magnitude < 1e-30f ? 0 : steps / magnitude; /* steps / a subnormal would be infinite */
        int8_t *to = values + segment * width * terms * SEGMENT;
        words totals[MOST_TERMS][2] = {{{0}}}; /* unsigned: a rounded NaN may overflow; its scale is NaN anyway */
        for (int i = 0; i < SEGMENT; i += LANES) {
            ints rest = nearest(load(x + i) * inverse);
            UNROLL for (int term = terms - 1; term >= 0; term--) {
                ints value = term == 0 ? rest : lowest_term(rest);
                rest = (ints)((words)rest - (words)value) >> 8;
                totals[term][i / HALF_SEGMENT] += (words)value;
                bytes narrow = __builtin_convertvector(value, bytes);
                memcpy(to + term * SEGMENT + i, &narrow, sizeof narrow);
            }
        }
        float all = 0;
        UNROLL for (int term = 0; term < terms; term++) {
            float both = 0;
            UNROLL for (int half = 0; half < 2; half++) {
                float total = sum(float_of_ints((ints)totals[term][half])); /* exact: below 2^24 */
                both += total;
                offsets[(segment * width * terms + term) * 2 + half] =
                    magnitude < INFINITY ? -middle_of(8) * (int32_t)total : 0;
            }
            all = all * 256 + both;
        }
        scales[segment * width] = magnitude / steps;
        sums[segment * width] = magnitude / steps * all;
    }
}

static void quantize(const float *x, int64_t segments, int64_t width, int64_t terms, int8_t *values, float *scales,
                     float *sums, int32_t *offsets) {
    if (terms == 1)
        quantize_terms(x, segments, width, values, scales, sums, offsets, 1);
#if TILE_TOKENS >= 8
    else if (terms == SHORT_TERMS)
        quantize_terms(x, segments, width, values, scales, sums, offsets, SHORT_TERMS);
#endif
    else
        quantize_terms(x, segments, width, values, scales, sums, offsets, MOST_TERMS);
}
