/* Attention of one token.
 *
 * Each range's keys are read first, then its values. Meanwhile the next data are prefetched, LANES positions ahead: the
 * values after the last key, and the next range's keys after the last value.
 */
#pragma once

#include "../../kernels.h"
#include "cached.h"
#include "alibi.h"
#include "../vectors.h"

enum {
    HEADS = 4,   /* that share the loads of values */
    COLUMNS = 4, /* vectors of a value that are summed in registers */
    KEYS = 4,    /* that share the loads of queries */
    TURNS = LANES / KEYS,
};

/* Half as many partial sums of each: a[i] + a[i + LANES / 2] and b[i] + b[i + LANES / 2], alternately. */
INLINE floats halved(floats a, floats b) { return interleave_low(a, b) + interleave_high(a, b); }
INLINE floats quartered(floats a, floats b, floats c, floats d) { return halved(halved(a, c), halved(b, d)); }

/* Numbers of keys and values from `from` on: in fp16 if `half`, else in fp32. */
INLINE floats load_cached(const uint8_t *from, const int half) {
    return half ? float_of_halves(load_halves((const uint16_t *)from)) : load((const float *)from);
}

/* scores[head][position] = scale * q . k; keys and values: of the first position, in fp16 if `half`. A turn computes every
 * TURNS-th of LANES positions, so that the sums come out in order. */
INLINE void multiply_keys(const Attention *attention, const float *queries, const uint8_t *keys, const uint8_t *values,
                          int64_t positions, float scores[HEADS][RANGE], const int half, const int heads) {
    const int64_t head_dim = attention->head_dim, whole = head_dim / LANES * LANES;
    const int64_t number = half ? 2 : 4, size = head_dim * number; /* bytes */
    for (int64_t position = 0; position < positions; position += LANES) {
        const int64_t last = positions - position - 1;
        const uint8_t *rows[LANES], *next = last < LANES ? values : keys + (position + LANES) * size;
        for (int r = 0; r < LANES; r++) rows[r] = keys + (position + (r < last ? r : last)) * size;
        floats products[HEADS][TURNS];
        UNROLL for (int turn = 0; turn < TURNS; turn++) {
            floats sums[HEADS][KEYS] = {{{0}}};
            for (int64_t i = 0; i < whole; i += LANES) {
                UNROLL for (int k = 0; k < KEYS; k++) {
                    int r = k * TURNS + turn;
                    prefetch(next + r * size + i * number, 0);
                    floats key = load_cached(rows[r] + i * number, half);
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
                for (int r = 0; r < LANES; r++) scores[h][position + r] += queries[h * head_dim + i] * ((const float *)rows[r])[i];
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
INLINE void weigh(const Attention *attention, const uint8_t *values, const uint8_t *next, int64_t positions,
                  float scores[HEADS][RANGE], int64_t from, float *out, int64_t stride, const int half, const int heads,
                  const int columns) {
    const int64_t head_dim = attention->head_dim, number = half ? 2 : 4, size = head_dim * number; /* bytes */
    floats sums[HEADS][COLUMNS] = {{{0}}};
    for (int64_t position = 0; position < positions; position++, values += size) {
        int64_t past = position + LANES - positions;
        const uint8_t *ahead = past < 0 ? values + LANES * size : next + past * size;
        UNROLL for (int c = 0; c < columns; c++) {
            int64_t column = from + c * LANES;
            prefetch(ahead + column * number, 0);
            floats value = columns == 1 && !half ? load_some((const float *)values, column, head_dim)
                                                 : load_cached(values + column * number, half);
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
INLINE void attend_heads(const Attention *attention, const float *queries, const uint8_t *keys, const uint8_t *values,
                         int64_t positions, const float *slopes, int64_t first, float *partial, int64_t stride,
                         const int half, const int heads) {
    const int64_t head_dim = attention->head_dim;
    const uint8_t *next = keys + positions * head_dim * (half ? 2 : 4);
    float scores[HEADS][RANGE];
    multiply_keys(attention, queries, keys, values, positions, scores, half, heads);
    for (int h = 0; h < heads; h++) {
        if (slopes != NULL) add_alibi(scores[h], positions, slopes[h], first, attention->rounded);
        float most = bounded(scores[h], positions, attention->softcap);
        partial[h * stride + GREATEST] = most;
        partial[h * stride + SUM] = exponentiate(scores[h], positions, most);
    }
    int64_t from = 0;
    for (; from + COLUMNS * LANES <= head_dim; from += COLUMNS * LANES)
        weigh(attention, values, next, positions, scores, from, partial + WEIGHTED, stride, half, heads, COLUMNS);
    for (; from < head_dim; from += LANES)
        weigh(attention, values, next, positions, scores, from, partial + WEIGHTED, stride, half, heads, 1);
}

/* All heads that share kv_head. keys and values: of the first position; first: as above. */
INLINE void attend_group(const Attention *attention, int64_t kv_head, const uint8_t *keys, const uint8_t *values,
                         int64_t positions, int64_t first, float *partial, int64_t stride, const int half) {
    const int64_t group = attention->heads / attention->kv_heads;
    for (int64_t head = 0; head < group; head += HEADS) {
        const float *queries = attention->queries + (kv_head * group + head) * attention->head_dim;
        const float *slopes = attention->slopes != NULL ? attention->slopes + kv_head * group + head : NULL;
        float *out = partial + head * stride;
        switch (group - head) {
        case 1: attend_heads(attention, queries, keys, values, positions, slopes, first, out, stride, half, 1); break;
        case 2: attend_heads(attention, queries, keys, values, positions, slopes, first, out, stride, half, 2); break;
        case 3: attend_heads(attention, queries, keys, values, positions, slopes, first, out, stride, half, 3); break;
        default: attend_heads(attention, queries, keys, values, positions, slopes, first, out, stride, half, HEADS); break;
        }
    }
}

/* The same over positions [begin, end). workspace: 2 * RANGE * head_dim floats, for keys and values that are neither in
 * fp32 nor in whole vectors of fp16. */
static void attend(const Attention *attention, int64_t kv_head, int64_t begin, int64_t end, float *partial,
                   int64_t stride, float *workspace) {
    const CacheKind kind = (CacheKind)attention->kind;
    const int64_t head_dim = attention->head_dim, room = attention->room;
    const uint8_t *keys = attention->keys + kv_head * head_bytes(kind, head_dim, room);
    const uint8_t *values = attention->values + kv_head * head_bytes(kind, head_dim, room);
    const int64_t newest = attention->start + attention->length - 1, before = begin * head_dim * number_bytes(kind);
    const int64_t from = attention->rounded != 0 ? begin : begin - newest; /* ALiBi counts from there */
    if (kind == CACHE_FP16 && head_dim % LANES == 0) {
        attend_group(attention, kv_head, keys + before, values + before, end - begin, from, partial, stride, 1);
        return;
    }
    const int alike = values == keys;
    keys = kind == CACHE_FP32 ? keys + before
                              : (const uint8_t *)expand(kind, keys, head_dim, room, begin, end, workspace);
    workspace += RANGE * head_dim;
    values = kind == CACHE_FP32 ? values + before
             : alike            ? keys
                                : (const uint8_t *)expand(kind, values, head_dim, room, begin, end, workspace);
    attend_group(attention, kv_head, keys, values, end - begin, from, partial, stride, 0);
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
