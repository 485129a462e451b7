/* ALiBi: adds to a head's scores a slope times the key's position. */
#pragma once

#include "../../conversions.h"
#include "../vectors.h"

INLINE float rounded_to_bfloat(float value) { return float_of_bfloat(bfloat_of_float(value)); }

/* Adds the slope times each position to the scores of `count` positions from `first` on; see Attention's `rounded`. */
INLINE void add_alibi(float *scores, int64_t count, float slope, int64_t first, float rounded) {
    for (int64_t i = 0; i < count; i++) {
        float position = (float)(first + i);
        scores[i] += rounded != 0 ? rounded_to_bfloat(slope * rounded_to_bfloat(position)) * rounded : slope * position;
    }
}
