/* One token of a recurrent state. */
#pragma once

#include "../kernels.h"
#include "vectors.h"

enum { STATE_ROWS = 4 }; /* that share the loads of keys and queries */

/* `rows` rows of a state from one on, whose values and results these are. */
INLINE void recur_rows(Recurrence token, const float *before, float *after, const float *values, float *out,
                       const int rows) {
    const int64_t size = token.size, whole = size / LANES * LANES;
    floats sums[STATE_ROWS] = {{0}};
    float written[STATE_ROWS], rest[STATE_ROWS] = {0};
    for (int r = 0; r < rows; r++) written[r] = values[r];
    if (token.corrected) {
        for (int64_t i = 0; i < whole; i += LANES) {
            floats key = load(token.keys + i);
            UNROLL for (int r = 0; r < rows; r++) sums[r] += load(before + r * size + i) * key;
        }
        for (int r = 0; r < rows; r++) {
            float stored = sum(sums[r]);
            for (int64_t i = whole; i < size; i++) stored += before[r * size + i] * token.keys[i];
            written[r] -= token.decay * stored;
            sums[r] = splat(0);
        }
    }
    for (int r = 0; r < rows; r++) written[r] *= token.rate;
    for (int64_t i = 0; i < whole; i += LANES) {
        floats key = load(token.keys + i), query = load(token.queries + i);
        UNROLL for (int r = 0; r < rows; r++) {
            floats state = load(before + r * size + i) * token.decay + key * written[r];
            store(after + r * size + i, state);
            sums[r] += state * query;
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int64_t i = whole; i < size; i++) {
            after[r * size + i] = before[r * size + i] * token.decay + token.keys[i] * written[r];
            rest[r] += after[r * size + i] * token.queries[i];
        }
        out[r] = sum(sums[r]) + rest[r];
    }
}

static void recur(const Recurrence *token, const float *before, float *after, float *out) {
    const Recurrence own = *token; /* a copy, which no store can change */
    int64_t row = 0;
    for (; row + STATE_ROWS <= own.rows; row += STATE_ROWS)
        recur_rows(own, before + row * own.size, after + row * own.size, own.values + row, out + row, STATE_ROWS);
    for (; row < own.rows; row++)
        recur_rows(own, before + row * own.size, after + row * own.size, own.values + row, out + row, 1);
}
