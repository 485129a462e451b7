/* Keys and values as a cache stores them: see CacheKind. */
#ifndef GPTCLI_SIMD_CACHED_H
#define GPTCLI_SIMD_CACHED_H

#include "../kernels.h"
#include "../numbers.h"
#include "vectors.h"

typedef int8_t octets __attribute__((vector_size(LANES)));

INLINE int64_t number_bytes(const CacheKind kind) { return kind == CACHE_FP32 ? 4 : kind == CACHE_FP16 ? 2 : 1; }

/* What the numbers of a key or value are multiplied with. */
INLINE float scale_of(const CacheKind kind, const uint8_t *cached, int64_t size) {
    float scale = 1;
    if (kind == CACHE_INT8) memcpy(&scale, cached + size, sizeof scale);
    return scale;
}

/* LANES numbers from `index` on, before they are scaled; zeros past `size`. */
INLINE floats cached_some(const CacheKind kind, const uint8_t *cached, int64_t index, int64_t size) {
    int64_t count = size - index < LANES ? size - index : LANES;
    size_t bytes = (size_t)(count * number_bytes(kind));
    const uint8_t *from = cached + index * number_bytes(kind);
    floats single = {0};
    halves half = {0};
    octets byte = {0};
    if (kind == CACHE_FP32) {
        memcpy(&single, from, bytes);
        return single;
    }
    if (kind == CACHE_FP16) {
        memcpy(&half, from, bytes);
        return float_of_halves(half);
    }
    memcpy(&byte, from, bytes);
    return __builtin_convertvector(byte, floats);
}

/* The same where all LANES are below `size`. */
INLINE floats cached_numbers(const CacheKind kind, const uint8_t *cached, int64_t index) {
    return cached_some(kind, cached, index, index + LANES);
}

INLINE float cached_number(const CacheKind kind, const uint8_t *cached, int64_t index) {
    float single;
    uint16_t half;
    switch (kind) {
    case CACHE_FP32: memcpy(&single, cached + 4 * index, 4); return single;
    case CACHE_FP16: memcpy(&half, cached + 2 * index, 2); return float_of_half(half);
    default: return (float)(int8_t)cached[index];
    }
}

INLINE void cache_halves(const float *x, int64_t size, uint8_t *out) {
    for (int64_t i = 0; i < size; i += LANES) {
        halves rounded = halves_of_floats(load_some(x, i, size));
        memcpy(out + 2 * i, &rounded, 2 * (size_t)(size - i < LANES ? size - i : LANES));
    }
}

INLINE void cache_bytes(const float *x, int64_t size, uint8_t *out) {
    floats most = {0};
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = load_some(x, i, size);
        most = greatest(greatest(value, -value), most);
    }
    float scale = greatest_lane(most) / 127, inverse = scale > 1e-30f ? 1 / scale : 0;
    for (int64_t i = 0; i < size; i += LANES) {
        octets rounded = __builtin_convertvector(nearest(load_some(x, i, size) * inverse), octets);
        memcpy(out + i, &rounded, (size_t)(size - i < LANES ? size - i : LANES));
    }
    memcpy(out + size, &scale, sizeof scale);
}

static void cache(CacheKind kind, const float *x, int64_t size, uint8_t *out) {
    switch (kind) {
    case CACHE_FP32: memcpy(out, x, (size_t)size * sizeof(float)); break;
    case CACHE_FP16: cache_halves(x, size, out); break;
    case CACHE_INT8: cache_bytes(x, size, out); break;
    }
}

INLINE void expand_as(const CacheKind kind, const uint8_t *cached, int64_t size, float *out) {
    float scale = scale_of(kind, cached, size);
    for (int64_t i = 0; i < size; i += LANES) store_some(out, i, size, cached_some(kind, cached, i, size) * scale);
}

static void expand(CacheKind kind, const uint8_t *cached, int64_t size, float *out) {
    switch (kind) {
    case CACHE_FP32: expand_as(CACHE_FP32, cached, size, out); break;
    case CACHE_FP16: expand_as(CACHE_FP16, cached, size, out); break;
    case CACHE_INT8: expand_as(CACHE_INT8, cached, size, out); break;
    }
}

#endif
