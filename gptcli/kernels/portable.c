/* The kernels for any processor: vectors of 128 bits, which compilers turn into SSE2, NEON or plain instructions. */
#include "kernels.h"

#include <math.h>
#include <string.h>

enum { LANES = 4 };
#define TOKENS 2

typedef float floats __attribute__((vector_size(16)));
typedef int32_t ints __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(16)));
typedef uint16_t halves __attribute__((vector_size(8)));

static inline words words_of_halves(halves value) { return __builtin_convertvector(value, words); }

/* As float_of_half, four at once. */
static inline floats float_of_halves(halves value) {
    words wide = words_of_halves(value), sign = (wide & 0x8000) << 16, rest = wide & 0x7fff;
    words finite = (words)((floats)(rest << 13) * 0x1p112f);
    words special = (words)(rest >= 0x7c00) & 0x7f800000; /* finite has its mantissa right already */
    return (floats)(sign | finite | special);
}

static inline ints nearest(floats value) {
    ints rounded;
    for (int i = 0; i < LANES; i++) rounded[i] = (int32_t)lrintf(value[i]);
    return rounded;
}

static inline float sum(floats value) { return (value[0] + value[2]) + (value[1] + value[3]); }

static inline __attribute__((always_inline)) ints dot(ints total, words weights, int32_t values, const int bits) {
    int8_t x[4];
    (void)bits;
    memcpy(x, &values, sizeof x);
    ints w = (ints)weights;
    return total + (w & 255) * x[0] + (w >> 8 & 255) * x[1] + (w >> 16 & 255) * x[2] + (w >> 24 & 255) * x[3];
}

#include "level.h"

const Level portable_level = LEVEL("portable");
