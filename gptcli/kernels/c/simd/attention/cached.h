/* Keys and values as a cache stores them: see CacheKind. */
#pragma once

#include "../../kernels.h"
#include "../vectors.h"

typedef int8_t octets __attribute__((vector_size(LANES)));

INLINE int64_t lanes_left(int64_t index, int64_t size) { return size - index < LANES ? size - index : LANES; }

INLINE void cache_halves(const float *x, int64_t size, uint8_t *out) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        halves rounded = halves_of_floats(load(x + i));
        memcpy(out + 2 * i, &rounded, sizeof rounded);
    }
    if (i == size) return;
    halves rounded = halves_of_floats(load_some(x, i, size));
    memcpy(out + 2 * i, &rounded, 2 * (size_t)(size - i));
}

/* Returns the scale. */
INLINE float cache_bytes(const float *x, int64_t size, uint8_t *out) {
    floats most = {0}, poison = {0};
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = load_some(x, i, size);
        most = greatest(greatest(value, -value), most);
        poison += value * 0; /* NaN once a number is not finite, which no comparison shows */
    }
    float scale = greatest_lane(most) / 127 + sum(poison), inverse = scale > 1e-30f ? 1 / scale : 0;
    for (int64_t i = 0; i < size; i += LANES) {
        octets rounded = __builtin_convertvector(nearest(load_some(x, i, size) * inverse), octets);
        memcpy(out + i, &rounded, (size_t)lanes_left(i, size));
    }
    return scale;
}

/* Stores a key or value at a position of a head, which begins at `head`. */
static void cache(CacheKind kind, const float *x, int64_t head_dim, int64_t room, int64_t position, uint8_t *head) {
    uint8_t *out = head + position * head_dim * number_bytes(kind);
    float scale;
    switch (kind) {
    case CACHE_FP32: memcpy(out, x, (size_t)head_dim * sizeof(float)); break;
    case CACHE_FP16: cache_halves(x, head_dim, out); break;
    case CACHE_INT8:
        scale = cache_bytes(x, head_dim, out);
        memcpy(head + room * head_dim + position * (int64_t)sizeof scale, &scale, sizeof scale);
        break;
    }
}

INLINE void expand_halves(const uint8_t *vector, int64_t size, float *out) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        halves half;
        prefetch(vector + 2 * i, AHEAD);
        memcpy(&half, vector + 2 * i, sizeof half);
        store(out + i, float_of_halves(half));
    }
    halves half = {0};
    memcpy(&half, vector + 2 * i, 2 * (size_t)(size - i));
    if (i < size) store_some(out, i, size, float_of_halves(half));
}

/* A plain loop, for compilers turn vectors of bytes into floats one by one. */
INLINE void expand_bytes(const int8_t *vector, float scale, int64_t size, float *restrict out) {
    prefetch(vector, AHEAD);
    for (int64_t i = 0; i < size; i++) out[i] = (float)vector[i] * scale;
}

/* Writes the keys or values of positions [begin, end) of a head in fp32, (end - begin, head_dim), and returns them. */
static const float *expand(CacheKind kind, const uint8_t *head, int64_t head_dim, int64_t room, int64_t begin,
                           int64_t end, float *out) {
    for (int64_t position = begin; position < end; position++, out += head_dim) {
        const uint8_t *vector = head + position * head_dim * number_bytes(kind);
        float scale;
        switch (kind) {
        case CACHE_FP32: memcpy(out, vector, (size_t)head_dim * sizeof(float)); break;
        case CACHE_FP16: expand_halves(vector, head_dim, out); break;
        case CACHE_INT8:
            memcpy(&scale, head + room * head_dim + position * (int64_t)sizeof scale, sizeof scale);
            expand_bytes((const int8_t *)vector, scale, head_dim, out);
            break;
        }
    }
    return out - (end - begin) * head_dim;
}
