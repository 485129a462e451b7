/* Quantizes activations to 8 bits. */
#ifndef GPTCLI_SIMD_QUANTIZE_H
#define GPTCLI_SIMD_QUANTIZE_H

#include "../kernels.h"
#include "vectors.h"

typedef int8_t bytes __attribute__((vector_size(LANES)));

/* One token: x (segments * SEGMENT). Consecutive segments of the outputs are `width` apart; see Activations. */
static void quantize(const float *x, int64_t segments, int64_t width, int8_t *values, float *scales, float *sums,
                     int32_t *offsets) {
    for (int64_t segment = 0; segment < segments; segment++, x += SEGMENT, values += width * SEGMENT) {
        /* Magnitudes compare alike as integers, and a NaN is then the greatest, so it is not lost. */
        ints most = {0};
        for (int i = 0; i < SEGMENT; i += LANES) {
            ints bits = (ints)load(x + i) & 0x7fffffff;
            most = (ints)choose(bits > most, (floats)bits, (floats)most);
        }
        int32_t bits = largest(most);
        float magnitude;
        memcpy(&magnitude, &bits, sizeof bits);
        float inverse = magnitude < 1e-30f ? 0 : 127 / magnitude; /* 127 / a subnormal would be infinite */
        words total = {0}; /* unsigned: a rounded NaN may overflow; its scale is NaN anyway */
        for (int i = 0; i < SEGMENT; i += LANES) {
            ints rounded = nearest(load(x + i) * inverse);
            total += (words)rounded;
            bytes narrow = __builtin_convertvector(rounded, bytes);
            memcpy(values + i, &narrow, sizeof narrow);
        }
        scales[segment * width] = magnitude / 127;
        float all = sum(float_of_ints((ints)total)); /* exact: below 2^24 */
        sums[segment * width] = magnitude / 127 * all;
        offsets[segment * width] = magnitude < INFINITY ? -middle_of(8) * (int32_t)all : 0;
    }
}

#endif
