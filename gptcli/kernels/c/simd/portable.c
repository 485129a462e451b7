/* The inner loops for any processor: vectors of 128 bits, which become SSE2, NEON or plain instructions. */
#include "../kernels.h"
#include "../conversions.h"

#include <math.h>
#include <string.h>

enum { LANES = 4 };
#define TILE_TOKENS 2
#define PAIRED_TOKENS 0
#define HAS_CODES 0
#define HAS_MASKS 0
#define FEW 1
#define PANEL_TOKENS 4

typedef float floats __attribute__((vector_size(16)));
typedef int32_t ints __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(16)));
typedef int16_t shorts __attribute__((vector_size(16)));
typedef uint16_t halves __attribute__((vector_size(8)));

static inline words words_of_halves(halves value) { return __builtin_convertvector(value, words); }

/* As float_of_half, four at once. */
static inline floats float_of_halves(halves value) {
    words wide = words_of_halves(value), sign = (wide & 0x8000) << 16, rest = wide & 0x7fff;
    words finite = (words)((floats)(rest << 13) * 0x1p112f);
    words special = (words)(rest >= 0x7c00) & 0x7f800000; /* finite has its mantissa right already */
    return (floats)(sign | finite | special);
}

static inline halves halves_of_floats(floats value) {
    halves rounded;
    for (int i = 0; i < LANES; i++) rounded[i] = half_of_float(value[i]);
    return rounded;
}

static inline floats floats_of_bytes(const int8_t *from) { return (floats){from[0], from[1], from[2], from[3]}; }

static inline floats interleave_low(floats a, floats b) { return (floats){a[0], b[0], a[1], b[1]}; }
static inline floats interleave_high(floats a, floats b) { return (floats){a[2], b[2], a[3], b[3]}; }

static inline ints nearest(floats value) {
    ints rounded;
    for (int i = 0; i < LANES; i++) rounded[i] = (int32_t)lrintf(value[i]);
    return rounded;
}

static inline float sum(floats value) { return (value[0] + value[2]) + (value[1] + value[3]); }

static inline int32_t largest(ints value) {
    int32_t most = value[0];
    for (int i = 1; i < LANES; i++) most = value[i] > most ? value[i] : most;
    return most;
}

static inline words look_up(const uint8_t *table, words indices) {
    uint8_t bytes[sizeof indices];
    memcpy(bytes, &indices, sizeof indices);
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = table[bytes[i]];
    memcpy(&indices, bytes, sizeof indices);
    return indices;
}

/* The two 16-bit halves of each lane, added. */
static inline ints paired(shorts products) { return ((ints)products << 16 >> 16) + ((ints)products >> 16); }

/* In 16 bits, because SSE2 cannot multiply 32: one product fits (255 * 127), and so do two of up to 6 bits. */
static inline __attribute__((always_inline)) ints dot(ints total, words weights, int32_t values, const int bits) {
    shorts w = (shorts)weights, x = (shorts)((ints){0} + values);
    shorts even = (w & 255) * (x << 8 >> 8), odd = (w >> 8 & 255) * (x >> 8);
    return bits < 8 ? total + paired(even + odd) : total + paired(even) + paired(odd);
}

#include "level.h"

const Level portable_level = LEVEL("portable");
