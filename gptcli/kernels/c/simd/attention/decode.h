/* Attention of one token.
 *
 * Each range's keys are read first, then its values. Meanwhile those of later positions are prefetched.
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
    NEXT = 64, /* positions between what is read and what is prefetched */
};

/* Half as many partial sums of each: a[i] + a[i + LANES / 2] and b[i] + b[i + LANES / 2], alternately. */
INLINE floats halved(floats a, floats b) { return interleave_low(a, b) + interleave_high(a, b); }
INLINE floats quartered(floats a, floats b, floats c, floats d) { return halved(halved(a, c), halved(b, d)); }

/* Numbers of keys and values from `from` on; those in 8 bits without their scale. */
INLINE floats load_cached(const uint8_t *from, const CacheKind kind) {
    switch (kind) {
    case CACHE_FP16: return float_of_halves(load_halves((const uint16_t *)from));
    case CACHE_INT8: return floats_of_bytes((const int8_t *)from);
    default: return load((const float *)from);
    }
}

/* Keys and values from some position on, and the scales of those in 8 bits. */
typedef struct {
    const uint8_t *keys, *values;
    const float *key_scales, *value_scales;
    int64_t present; /* positions, also of other tasks */
} Cached;

/* Bytes to what is fetched while a position is read: nothing past the last one, for its pages may not be there. */
INLINE int64_t bytes_ahead(const Cached *from, int64_t position, int64_t size) {
    return position + NEXT < from->present ? NEXT * size : 0;
}

/* scores[head][position] = scale * q . k. A turn computes every TURNS-th of LANES positions, so that the sums come out in
 * order. */
INLINE void multiply_keys(const Attention *attention, const float *queries, const Cached *from, int64_t positions,
                          float scores[HEADS][RANGE], const CacheKind kind, const int heads) {
    const int64_t head_dim = attention->head_dim, whole = head_dim / LANES * LANES;
    const int64_t number = number_bytes(kind), size = head_dim * number;
    for (int64_t position = 0; position < positions; position += LANES) {
        const int64_t last = positions - position - 1;
        const uint8_t *rows[LANES];
        const int64_t ahead = bytes_ahead(from, position, size);
        for (int r = 0; r < LANES; r++) rows[r] = from->keys + (position + (r < last ? r : last)) * size;
        floats products[HEADS][TURNS];
        UNROLL for (int turn = 0; turn < TURNS; turn++) {
            floats sums[HEADS][KEYS] = {{{0}}};
            for (int64_t i = 0; i < whole; i += LANES) {
                UNROLL for (int k = 0; k < KEYS; k++) {
                    int r = k * TURNS + turn;
                    prefetch(rows[r] + i * number, ahead);
                    floats key = load_cached(rows[r] + i * number, kind);
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
            all = load(scores[h] + position) * attention->scale;
            store(scores[h] + position, kind == CACHE_INT8 ? all * load_some(from->key_scales, position, positions) : all);
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

/* Writes `columns` vectors of out[head] (head_dim), from `channel` on: the weighted sum of values. */
INLINE void weigh(const Attention *attention, const Cached *from, int64_t positions, float scores[HEADS][RANGE],
                  int64_t channel, float *out, int64_t stride, const CacheKind kind, const int heads,
                  const int columns) {
    const int64_t head_dim = attention->head_dim, number = number_bytes(kind), size = head_dim * number;
    floats sums[HEADS][COLUMNS] = {{{0}}};
    const uint8_t *values = from->values;
    for (int64_t position = 0; position < positions; position++, values += size) {
        const int64_t ahead = bytes_ahead(from, position, size);
        UNROLL for (int c = 0; c < columns; c++) {
            int64_t column = channel + c * LANES;
            prefetch(values + column * number, ahead);
            floats value = columns == 1 && kind == CACHE_FP32 ? load_some((const float *)values, column, head_dim)
                                                              : load_cached(values + column * number, kind);
            UNROLL for (int h = 0; h < heads; h++) sums[h][c] += value * scores[h][position];
        }
    }
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int c = 0; c < columns; c++) {
            if (columns == 1)
                store_some(out + h * stride, channel, head_dim, sums[h][c]);
            else
                store(out + h * stride + channel + c * LANES, sums[h][c]);
        }
}

/* slopes: of these heads, or NULL; first: what the first position counts as for them. */
INLINE void attend_heads(const Attention *attention, const float *queries, Cached from, int64_t positions,
                         const float *slopes, int64_t first, float *partial, int64_t stride, const CacheKind kind,
                         const int heads) {
    const int64_t head_dim = attention->head_dim;
    float scores[HEADS][RANGE];
    multiply_keys(attention, queries, &from, positions, scores, kind, heads);
    for (int h = 0; h < heads; h++) {
        if (slopes != NULL) add_alibi(scores[h], positions, slopes[h], first, attention->rounded);
        float most = bounded(scores[h], positions, attention->softcap);
        partial[h * stride + GREATEST] = most;
        partial[h * stride + SUM] = exponentiate(scores[h], positions, most);
        for (int64_t i = 0; kind == CACHE_INT8 && i < positions; i += LANES)
            store(scores[h] + i, load(scores[h] + i) * load_some(from.value_scales, i, positions));
    }
    int64_t channel = 0;
    for (; channel + COLUMNS * LANES <= head_dim; channel += COLUMNS * LANES)
        weigh(attention, &from, positions, scores, channel, partial + WEIGHTED, stride, kind, heads, COLUMNS);
    for (; channel < head_dim; channel += LANES)
        weigh(attention, &from, positions, scores, channel, partial + WEIGHTED, stride, kind, heads, 1);
}

/* All heads that share kv_head. first: as above. */
INLINE void attend_group(const Attention *attention, int64_t kv_head, Cached from, int64_t positions, int64_t first,
                         float *partial, int64_t stride, const CacheKind kind) {
    const int64_t group = attention->heads / attention->kv_heads;
    for (int64_t head = 0; head < group; head += HEADS) {
        const float *queries = attention->queries + (kv_head * group + head) * attention->head_dim;
        const float *slopes = attention->slopes != NULL ? attention->slopes + kv_head * group + head : NULL;
        float *out = partial + head * stride;
        switch (group - head) {
        case 1: attend_heads(attention, queries, from, positions, slopes, first, out, stride, kind, 1); break;
        case 2: attend_heads(attention, queries, from, positions, slopes, first, out, stride, kind, 2); break;
        case 3: attend_heads(attention, queries, from, positions, slopes, first, out, stride, kind, 3); break;
        default: attend_heads(attention, queries, from, positions, slopes, first, out, stride, kind, HEADS); break;
        }
    }
}

/* The same over positions [begin, end). workspace: 2 * RANGE * head_dim floats, for keys and values that are neither in
 * fp32 nor in whole vectors. */
static void attend(const Attention *attention, int64_t kv_head, int64_t begin, int64_t end, float *partial,
                   int64_t stride, float *workspace) {
    const CacheKind kind = (CacheKind)attention->kind;
    const int64_t head_dim = attention->head_dim, room = attention->room, positions = end - begin;
    const uint8_t *keys = attention->keys + kv_head * head_bytes(kind, head_dim, room);
    const uint8_t *values = attention->values + kv_head * head_bytes(kind, head_dim, room);
    const int64_t newest = attention->start + attention->length - 1, before = begin * head_dim * number_bytes(kind);
    const int64_t first = attention->rounded != 0 ? begin : begin - newest; /* ALiBi counts from there */
    Cached from = {keys + before, values + before, NULL, NULL, newest + 1 - begin};
    if (kind == CACHE_FP32) {
        attend_group(attention, kv_head, from, positions, first, partial, stride, CACHE_FP32);
    } else if (head_dim % LANES != 0) {
        from.keys = (const uint8_t *)expand(kind, keys, head_dim, room, begin, end, workspace);
        from.values = from.keys;
        from.present = positions;
        if (values != keys)
            from.values = (const uint8_t *)expand(kind, values, head_dim, room, begin, end, workspace + RANGE * head_dim);
        attend_group(attention, kv_head, from, positions, first, partial, stride, CACHE_FP32);
    } else if (kind == CACHE_FP16) {
        attend_group(attention, kv_head, from, positions, first, partial, stride, CACHE_FP16);
    } else {
        from.key_scales = (const float *)(keys + room * head_dim) + begin;
        from.value_scales = (const float *)(values + room * head_dim) + begin;
        attend_group(attention, kv_head, from, positions, first, partial, stride, CACHE_INT8);
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
