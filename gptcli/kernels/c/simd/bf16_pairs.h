/* Pairs of bf16, for products that take two numbers at a time. */
#pragma once

#include "vectors.h"

/* Two vectors of fp32 to bf16, ties to even: first the numbers of `low`. */
INLINE __m512i rounded_pair(floats low, floats high) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }

/* The numbers of a pair's two vectors side by side. */
INLINE __m512i interleaved(__m512i pair) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, pair);
}
