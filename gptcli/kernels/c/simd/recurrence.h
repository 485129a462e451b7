/* One token of a recurrent state. */
#ifndef GPTCLI_SIMD_RECURRENCE_H
#define GPTCLI_SIMD_RECURRENCE_H

#include "../kernels.h"
#include "vectors.h"

INLINE float dot_of(const float *a, const float *b, int64_t size) {
    floats total = {0};
    for (int64_t i = 0; i < size; i += LANES) total += load_some(a, i, size) * load_some(b, i, size);
    return sum(total);
}

static void recur(const Recurrence *token, const float *before, float *after, float *out) {
    const int64_t size = token->size;
    for (int64_t row = 0; row < token->rows; row++, before += size, after += size) {
        float value = token->values[row];
        if (token->corrected) value -= token->decay * dot_of(before, token->keys, size);
        value *= token->rate;
        floats read = {0};
        for (int64_t i = 0; i < size; i += LANES) {
            floats state = load_some(before, i, size) * token->decay + load_some(token->keys, i, size) * value;
            store_some(after, i, size, state);
            read += state * load_some(token->queries, i, size);
        }
        out[row] = sum(read);
    }
}

#endif
