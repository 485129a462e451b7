/* Products in bf16 for the levels above AVX-512: AVX512-BF16 (Intel Cooper Lake, AMD Zen 4) and AMX (Intel from
 * Sapphire Rapids on). */
#include "../kernels.h"

#if GPTCLI_X86 && GPTCLI_BF16

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile," \
                                                   "amx-bf16,avx2,fma,f16c"))),                                        \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c")
#pragma GCC target("prefer-vector-width=512")
#endif

#include "avx512_vectors.h"
#include "vectors.h"

#include "products/bf16_panels.h"
#include "products/affine_bf16_dots.h"

enum { PAIR_TOKENS = 8 }; /* multiplied at once by vectors */

static void multiply_vectors(const uint16_t *x, int64_t next, const uint16_t *panel, int64_t steps, int64_t tokens,
                             Square before, Square out) {
    for (int64_t token = 0; token < BF16_TOKENS && token < tokens; token += PAIR_TOKENS) {
        const uint16_t *lines = x + token / TILE_LINES * next + token % TILE_LINES * SEGMENT;
        __m512 sums[PAIR_TOKENS][2];
        UNROLL for (int t = 0; t < PAIR_TOKENS; t++)
            UNROLL for (int v = 0; v < 2; v++)
                sums[t][v] = _mm512_loadu_ps(before.first + (token + t) * before.stride + v * LANES);
        fetch_outputs(out.first + (token + PAIR_TOKENS) * out.stride, out.stride, PAIR_TOKENS);
        for (int64_t step = 0; step < steps; step++)
            for (int64_t pair = 0; pair < TILE_LINES; pair++) {
                const uint16_t *weights = panel + step * 2 * TILE_NUMBERS + pair * SEGMENT;
                __m512i low = _mm512_loadu_si512(weights), high = _mm512_loadu_si512(weights + TILE_NUMBERS);
                UNROLL for (int t = 0; t < PAIR_TOKENS; t++) {
                    int32_t both;
                    memcpy(&both, lines + step * TILE_NUMBERS + t * SEGMENT + pair * 2, sizeof both);
                    __m512bh values = (__m512bh)_mm512_set1_epi32(both);
                    sums[t][0] = _mm512_dpbf16_ps(sums[t][0], values, (__m512bh)low);
                    sums[t][1] = _mm512_dpbf16_ps(sums[t][1], values, (__m512bh)high);
                }
            }
        UNROLL for (int t = 0; t < PAIR_TOKENS; t++)
            UNROLL for (int v = 0; v < 2; v++)
                _mm512_storeu_ps(out.first + (token + t) * out.stride + v * LANES, sums[t][v]);
    }
}

void avx512_bf16_panels(const Matrix *matrix, const uint16_t *x, int64_t tokens, int64_t begin, int64_t end,
                        float *panel, const Output *output) {
    bf16_panels(matrix, x, tokens, begin, end, (uint16_t *)panel, PANEL_FLOATS, output, multiply_vectors);
}

void avx512_bf16_blocks(const Matrix *matrix, const Activations *x, int64_t begin, int64_t end, const Output *output) {
    if (x->terms == IN_BF16)
        BY_FORMAT(pairs_range, matrix, x, begin, end, output)
    else
        avx512_level.affine_blocks(matrix, x, begin, end, output);
}

void avx512_bf16_quantize(const float *x, int64_t segments, int64_t width, int64_t terms, int8_t *values, float *scales,
                          float *sums, int32_t *offsets) {
    if (terms == IN_BF16)
        round_to_pairs(x, segments, width, values, sums);
    else
        avx512_level.quantize(x, segments, width, terms, values, scales, sums, offsets);
}

/* Tile registers: 0 to 3 sums (token tile, block of rows), 4 and 5 tokens, 6 and 7 weights. */
static void multiply_tiles(const uint16_t *x, int64_t next, const uint16_t *panel, int64_t steps, int64_t tokens,
                           Square before, Square out) {
    const int64_t from = before.stride * (int64_t)sizeof(float), to = out.stride * (int64_t)sizeof(float);
    const int both = tokens > TILE_LINES;
    _tile_loadd(0, before.first, from);
    _tile_loadd(1, before.first + LANES, from);
    if (both) _tile_loadd(2, before.first + TILE_LINES * before.stride, from);
    if (both) _tile_loadd(3, before.first + TILE_LINES * before.stride + LANES, from);
    for (int64_t step = 0; step < steps; step++, x += TILE_NUMBERS, panel += 2 * TILE_NUMBERS) {
        _tile_loadd(4, x, CACHE_LINE);
        _tile_loadd(6, panel, CACHE_LINE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, panel + TILE_NUMBERS, CACHE_LINE);
        _tile_dpbf16ps(1, 4, 7);
        if (!both) continue;
        _tile_loadd(5, x + next, CACHE_LINE);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out.first, to);
    _tile_stored(1, out.first + LANES, to);
    if (!both) return;
    _tile_stored(2, out.first + TILE_LINES * out.stride, to);
    _tile_stored(3, out.first + TILE_LINES * out.stride + LANES, to);
}

void amx_panels(const Matrix *matrix, const uint16_t *x, int64_t tokens, int64_t begin, int64_t end, float *panel,
                const Output *output) {
    configure_tiles();
    bf16_panels(matrix, x, tokens, begin, end, (uint16_t *)panel, L1_FLOATS, output, multiply_tiles);
    _tile_release();
}

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
