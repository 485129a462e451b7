/* Conversions of fp16 and bf16 to fp32, one number at a time. */
#ifndef GPTCLI_NUMBERS_H
#define GPTCLI_NUMBERS_H

#include <stdint.h>
#include <string.h>

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13); /* infinity or NaN */
    /* Read as a float, the exponent is 112 too small. The product is exact, for subnormals too. */
    return float_of_bits(sign | 0x3f800000) * (float_of_bits(rest << 13) * 0x1p112f);
}

static inline float float_of_bfloat(uint16_t bfloat) { return float_of_bits((uint32_t)bfloat << 16); }

#endif
