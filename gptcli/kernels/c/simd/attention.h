/* Attention of one token.
 *
 * Each range's keys are read first, then its values. Meanwhile the next data are prefetched, LANES positions ahead: the
 * values after the last key, and the next range's keys after the last value.
 */
#ifndef GPTCLI_SIMD_ATTENTION_H
#define GPTCLI_SIMD_ATTENTION_H

#include "../kernels.h"
#include "cached.h"
#include "distances.h"
#include "vectors.h"

enum {
    HEADS = 4,   /* that share the loads of values */
    COLUMNS = 4, /* vectors of a value that are summed in registers */
    KEYS = 4,    /* that share the loads of queries */
    TURNS = LANES / KEYS,
};

/* Half as many partial sums of each: a[i] + a[i + LANES / 2] and b[i] + b[i + LANES / 2], alternately. */
INLINE floats halved(floats a, floats b) { return interleave_low(a, b) + interleave_high(a, b); }
INLINE floats quartered(floats a, floats b, floats c, floats d) { return halved(halved(a, c), halved(b, d)); }

/* scores[head][position] = scale * q . k; keys and values: of the first position. A turn computes every TURNS-th of
 * LANES positions, so that the sums come out in order. */
INLINE void multiply_keys(const Attention *attention, const float *queries, const float *keys, const float *values,
                          int64_t positions, float scores[HEADS][RANGE], const int heads) {
    const int64_t head_dim = attention->head_dim, whole = head_dim / LANES * LANES;
    for (int64_t position = 0; position < positions; position += LANES) {
        const int64_t last = positions - position - 1;
        const float *rows[LANES], *next = last < LANES ? values : keys + (position + LANES) * head_dim;
        for (int r = 0; r < LANES; r++) rows[r] = keys + (position + (r < last ? r : last)) * head_dim;
        floats products[HEADS][TURNS];
        UNROLL for (int turn = 0; turn < TURNS; turn++) {
            floats sums[HEADS][KEYS] = {{{0}}};
            for (int64_t i = 0; i < whole; i += LANES) {
                UNROLL for (int k = 0; k < KEYS; k++) {
                    int r = k * TURNS + turn;
                    prefetch(next + r * head_dim + i, 0);
                    floats key = load(rows[r] + i);
                    UNROLL for (int h = 0; h < heads; h++) sums[h][k] += key * load(queries + h * head_dim + i);
                }
            }
            UNROLL for (int h = 0; h < heads; h++)
                products[h][turn] = quartered(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
        }
        UNROLL for (int h = 0; h < heads; h++) {
            floats all = products[h][0];
            if (TURNS == 2) all = halved(all, products[h][1 % TURNS]);
            if (TURNS == 4)
                all = quartered(all, products[h][1 % TURNS], products[h][2 % TURNS], products[h][3 % TURNS]);
            store(scores[h] + position, all);
            for (int64_t i = whole; i < head_dim; i++)
                for (int r = 0; r < LANES; r++) scores[h][position + r] += queries[h * head_dim + i] * rows[r][i];
            store(scores[h] + position, load(scores[h] + position) * attention->scale);
        }
    }
}

/* Caps whole vectors of scores, and makes those past the last position -infinity; returns the greatest score. */
INLINE float bounded(float *scores, int64_t positions, float softcap) {
    if (softcap != 0)
        for (int64_t i = 0; i < positions; i += LANES)
            store(scores + i, hyperbolic_tangent(load(scores + i) / softcap) * softcap);
    for (int64_t i = positions; i % LANES != 0; i++) scores[i] = -INFINITY;
    floats most = splat(-INFINITY);
    for (int64_t i = 0; i < positions; i += LANES) most = greatest(load(scores + i), most);
    return greatest_lane(most);
}

/* Replaces whole vectors of scores by e^(score - most); returns their sum. */
INLINE float exponentiate(float *scores, int64_t positions, float most) {
    floats total = {0};
    for (int64_t i = 0; i < positions; i += LANES) {
        floats weight = exponential(load(scores + i) - most);
        store(scores + i, weight);
        total += weight;
    }
    return sum(total);
}

/* Writes `columns` vectors of out[head] (head_dim), from `from` on: the weighted sum of values. values: of the first
 * position; next: the keys that will be read next. */
INLINE void weigh(const Attention *attention, const float *values, const float *next, int64_t positions,
                  float scores[HEADS][RANGE], int64_t from, float *out, int64_t stride, const int heads,
                  const int columns) {
    const int64_t head_dim = attention->head_dim;
    floats sums[HEADS][COLUMNS] = {{{0}}};
    for (int64_t position = 0; position < positions; position++, values += head_dim) {
        int64_t past = position + LANES - positions;
        const float *ahead = past < 0 ? values + LANES * head_dim : next + past * head_dim;
        UNROLL for (int c = 0; c < columns; c++) {
            int64_t column = from + c * LANES;
            prefetch(ahead + column, 0);
            floats value = columns == 1 ? load_some(values, column, head_dim) : load(values + column);
            UNROLL for (int h = 0; h < heads; h++) sums[h][c] += value * scores[h][position];
        }
    }
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int c = 0; c < columns; c++) {
            if (columns == 1)
                store_some(out + h * stride, from, head_dim, sums[h][c]);
            else
                store(out + h * stride + from + c * LANES, sums[h][c]);
        }
}

/* slopes: of these heads, or NULL; first: what the first position counts as for them. */
INLINE void attend_heads(const Attention *attention, const float *queries, const float *keys, const float *values,
                         int64_t positions, const float *slopes, int64_t first, float *partial, int64_t stride,
                         const int heads) {
    const int64_t head_dim = attention->head_dim;
    const float *next = keys + positions * head_dim;
    float scores[HEADS][RANGE];
    multiply_keys(attention, queries, keys, values, positions, scores, heads);
    for (int h = 0; h < heads; h++) {
        if (slopes != NULL) add_distances(scores[h], positions, slopes[h], first, attention->rounded);
        float most = bounded(scores[h], positions, attention->softcap);
        partial[h * stride + GREATEST] = most;
        partial[h * stride + SUM] = exponentiate(scores[h], positions, most);
    }
    int64_t from = 0;
    for (; from + COLUMNS * LANES <= head_dim; from += COLUMNS * LANES)
        weigh(attention, values, next, positions, scores, from, partial + WEIGHTED, stride, heads, COLUMNS);
    for (; from < head_dim; from += LANES)
        weigh(attention, values, next, positions, scores, from, partial + WEIGHTED, stride, heads, 1);
}

/* All heads that share kv_head over positions [begin, end). workspace: 2 * RANGE * head_dim floats, for keys and values
 * that are not stored in fp32. */
static void attend(const Attention *attention, int64_t kv_head, int64_t begin, int64_t end, float *partial,
                   int64_t stride, float *workspace) {
    const CacheKind kind = (CacheKind)attention->kind;
    int64_t group = attention->heads / attention->kv_heads, head_dim = attention->head_dim, room = attention->room;
    int64_t first = kv_head * head_bytes(kind, head_dim, room);
    const float *keys = (const float *)(attention->keys + first) + begin * head_dim;
    const float *values = (const float *)(attention->values + first) + begin * head_dim;
    if (kind != CACHE_FP32) {
        keys = expand(kind, attention->keys + first, head_dim, room, begin, end, workspace);
        values = attention->values == attention->keys
                     ? keys
                     : expand(kind, attention->values + first, head_dim, room, begin, end, workspace + RANGE * head_dim);
    }
    const int64_t newest = attention->start + attention->length - 1;
    const int64_t from = attention->rounded != 0 ? begin : begin - newest; /* ALiBi counts from there */
    for (int64_t head = 0; head < group; head += HEADS) {
        const float *queries = attention->queries + (kv_head * group + head) * head_dim;
        const float *slopes = attention->slopes != NULL ? attention->slopes + kv_head * group + head : NULL;
        float *out = partial + head * stride;
        switch (group - head) {
        case 1:
            attend_heads(attention, queries, keys, values, end - begin, slopes, from, out, stride, 1);
            break;
        case 2:
            attend_heads(attention, queries, keys, values, end - begin, slopes, from, out, stride, 2);
            break;
        case 3:
            attend_heads(attention, queries, keys, values, end - begin, slopes, from, out, stride, 3);
            break;
        default:
            attend_heads(attention, queries, keys, values, end - begin, slopes, from, out, stride, HEADS);
            break;
        }
    }
}

static void merge(const Attention *attention, int64_t head, float *partials, int64_t ranges) {
    int64_t head_dim = attention->head_dim, size = WEIGHTED + head_dim;
    float most = attention->sinks != NULL ? attention->sinks[head] : -INFINITY;
    for (int64_t range = 0; range < ranges; range++) most = fmaxf(most, partials[range * size + GREATEST]);
    float total = attention->sinks != NULL ? expf(attention->sinks[head] - most) : 0;
    for (int64_t range = 0; range < ranges; range++) {
        float *partial = partials + range * size;
        partial[GREATEST] = expf(partial[GREATEST] - most); /* from here on the weight of the range */
        total += partial[GREATEST] * partial[SUM];
    }
    for (int64_t i = 0; i < head_dim; i += LANES) {
        floats weighted = {0};
        for (int64_t range = 0; range < ranges; range++) {
            const float *partial = partials + range * size;
            weighted += partial[GREATEST] * load_some(partial + WEIGHTED, i, head_dim);
        }
        store_some(attention->out + head * head_dim, i, head_dim, weighted / total);
    }
}

#endif
