/* Operations on single vectors: norms, rotary embeddings, activation functions, e^x, the greatest value. */
#pragma once

#include "../kernels.h"
#include "vectors.h"

static void rms_norm(const float *x, const float *weight, float epsilon, int64_t size, float *out) {
    floats squares = {0};
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = load_some(x, i, size);
        squares += value * value;
    }
    float factor = 1 / sqrtf(sum(squares) / (float)size + epsilon);
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = load_some(x, i, size) * factor;
        store_some(out, i, size, weight != NULL ? value * load_some(weight, i, size) : value);
    }
}

static void layer_norm(const float *x, const float *weight, const float *bias, float epsilon, int64_t size,
                       float *out) {
    floats total = {0}, squares = {0};
    for (int64_t i = 0; i < size; i += LANES) total += load_some(x, i, size);
    float mean = sum(total) / (float)size;
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = load_some(x, i, size) - mean;
        squares += value * value;
    }
    int64_t unused = (LANES - size % LANES) % LANES; /* lanes with -mean instead of an element */
    float variance = fmaxf(0, sum(squares) - (float)unused * mean * mean) / (float)size;
    float factor = 1 / sqrtf(variance + epsilon);
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = (load_some(x, i, size) - mean) * factor;
        if (weight != NULL) value *= load_some(weight, i, size);
        if (bias != NULL) value += load_some(bias, i, size);
        store_some(out, i, size, value);
    }
}

static void rope(float *head, const float *cosines, const float *sines, int64_t dim) {
    int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        floats first = load_some(head, i, half), second = load_some(head + half, i, half);
        floats turned = first * load_some(cosines, i, half) + second * load_some(sines, i, half);
        floats other = second * load_some(cosines + half, i, half) + first * load_some(sines + half, i, half);
        store_some(head, i, half, turned);
        store_some(head + half, i, half, other);
    }
}

/* x times the normal distribution's probability below x; erfc by Abramowitz and Stegun 7.1.26, within 1.5e-7. */
INLINE floats gelu(floats x) {
    floats z = greatest(x, -x) * 0.70710678f, t = 1 / (1 + 0.3275911f * z);
    floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    floats above = 0.5f * p * t * exponential(-z * z); /* the probability above |x| */
    return x * choose(x > 0, 1 - above, above);
}

INLINE floats gelu_tanh(floats x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

INLINE floats activation(const int kind, floats gate) {
    switch (kind) {
    case SILU: return gate * sigmoid(gate);
    case GELU: return gelu(gate);
    case GELU_TANH: return gelu_tanh(gate);
    case LOGISTIC: return sigmoid(gate);
    case IDENTITY: return gate;
    case TANH: return hyperbolic_tangent(gate);
    case RELU_SQUARED: return choose(gate < 0, (floats){0}, gate * gate);
    default: return choose(gate < 0, (floats){0}, gate);
    }
}

/* The activation of gpt-oss: both bounded at 7, a steeper sigmoid, and 1 added to up. */
INLINE floats clamped_swiglu(floats gate, floats up) {
    gate = least(splat(7), gate); /* in this order NaN stays */
    up = least(splat(7), greatest(splat(-7), up));
    return gate * sigmoid(1.702f * gate) * (up + 1);
}

INLINE void activate_kind(const int kind, const float *gate, const float *up, int64_t size, float *out) {
    for (int64_t i = 0; i < size; i += LANES) {
        floats value = load_some(gate, i, size), factor = up != NULL ? load_some(up, i, size) : splat(1);
        value = kind == CLAMPED_SWIGLU ? clamped_swiglu(value, factor) : activation(kind, value) * factor;
        store_some(out, i, size, value);
    }
}

static void activate(int kind, const float *gate, const float *up, int64_t size, float *out) {
    switch (kind) {
    case SILU: activate_kind(SILU, gate, up, size, out); break;
    case GELU: activate_kind(GELU, gate, up, size, out); break;
    case GELU_TANH: activate_kind(GELU_TANH, gate, up, size, out); break;
    case RELU: activate_kind(RELU, gate, up, size, out); break;
    case RELU_SQUARED: activate_kind(RELU_SQUARED, gate, up, size, out); break;
    case LOGISTIC: activate_kind(LOGISTIC, gate, up, size, out); break;
    case IDENTITY: activate_kind(IDENTITY, gate, up, size, out); break;
    case TANH: activate_kind(TANH, gate, up, size, out); break;
    case CLAMPED_SWIGLU: activate_kind(CLAMPED_SWIGLU, gate, up, size, out); break;
    }
}

static void exponentials(const float *x, int64_t size, float *out) {
    for (int64_t i = 0; i < size; i += LANES) store_some(out, i, size, exponential(load_some(x, i, size)));
}

/* e^x of x up to 88; of x below -87, e^-87. */
INLINE floats exponential_of_normal(floats x) {
    x = greatest(x, splat(-87));
    const ints n = nearest(x * 1.44269504f);
    return exponential_of_rest(x, float_of_ints(n)) * (floats)((n + 127) << 23);
}

/* See Level. Sums stay far below infinity when `most` is a little behind, so it is rarely changed. Once there is one, they
 * are at least 1. */
static int add_powers(const float *logits, int64_t count, int64_t present, float floor, float *most, float *sums) {
    enum { VECTORS_OF_ROWS = SCORED_ROWS / LANES, VECTORS_OF_SUMS = BLOCK / LANES };
    const float slack = 40, bar = floor < *most + slack ? floor : *most + slack;
    floats values[VECTORS_OF_ROWS], poison = {0};
    ints above = {0};
    for (int v = 0; v < VECTORS_OF_ROWS; v++) {
        values[v] = load(logits + v * LANES);
        if ((v + 1) * LANES > count) {
            for (int64_t i = 0; i < LANES; i++) {
                if (v * LANES + i < present) poison[i] += values[v][i] * 0;
                if (v * LANES + i >= count) values[v][i] = -INFINITY;
            }
        } else {
            poison += values[v] * 0;
        }
        above |= values[v] >= splat(bar);
    }
    const int listed = largest(-above) > 0;
    if (listed) {
        floats greatest_values = values[0];
        for (int v = 1; v < VECTORS_OF_ROWS; v++) greatest_values = greatest(greatest_values, values[v]);
        const float now = greatest_lane(greatest_values);
        if (now > *most + slack) {
            const float shrink = expf(*most - now);
            for (int64_t i = 0; i < BLOCK; i++) sums[i] *= shrink;
            *most = now;
        }
    }
    if (*most == -INFINITY) { /* nothing counts yet */
        store(sums, load(sums) + poison);
        return 0;
    }
    floats added[VECTORS_OF_SUMS] = {poison};
    for (int v = 0; v < VECTORS_OF_ROWS; v++) added[v % VECTORS_OF_SUMS] += exponential_of_normal(values[v] - *most);
    for (int v = 0; v < VECTORS_OF_SUMS; v++) store(sums + v * LANES, load(sums + v * LANES) + added[v]);
    return listed;
}

static float greatest_of(const float *x, int64_t size) {
    floats most = splat(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) most = greatest(load(x + i), most);
    float found = greatest_lane(most);
    for (; i < size; i++) found = x[i] > found ? x[i] : found;
    return found;
}
