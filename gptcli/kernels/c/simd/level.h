/* The inner loops, written once for vectors of LANES floats. avx512.c, avx2.c and portable.c include this, each with
 * its compiler target, after defining:
 *
 *   LANES               4, 8 or 16
 *   TILE_TOKENS         tokens of a register tile with affine weights, a divisor of TILE
 *   PAIRED_TOKENS       tokens of a register tile with two blocks of rows: 4, or 0 where registers do not suffice
 *   FEW                 tokens for which products in integers are faster than panels (see Level)
 *   PANEL_TOKENS        tokens of a register tile with a panel: 12, 6 or 4
 *   floats, ints, words vectors of LANES float, int32_t, uint32_t
 *   halves              a vector of LANES uint16_t
 *   float_of_halves     halves in fp16 to floats
 *   halves_of_floats    the reverse, to the nearest
 *   floats_of_bytes     LANES signed bytes in memory to floats
 *   words_of_halves     halves to words
 *   interleave_low      a[0], b[0], a[1], b[1], ... of the first halves of two floats
 *   interleave_high     the same of the second halves
 *   nearest             floats to ints, ties to even
 *   sum, largest        of a vector's lanes: floats, and ints that are not negative
 *   look_up             each byte of words replaced by that at its index, below 16, in a table
 *   dot                 ints + the products of four u8 (a word) and four s8 (an int32_t), in each lane, exact
 *   HAS_CODES           1 if there are an encode_record and a decode_record (see products/coded_dots.h), else 0
 *   HAS_MASKS           1 if there are own least, greatest, load_some and store_some (see vectors.h), else 0
 *
 * A function with constant arguments is inlined once for each combination of them, so that its inner loops unroll and
 * its arrays become registers.
 */
#include "attention/cached.h"
#include "attention/decode.h"
#include "attention/prefill.h"
#include "products/affine_dots.h"
#include "products/coded_dots.h"
#include "products/dense_dots.h"
#include "products/fp32_panels.h"
#include "products/quantize_activations.h"
#include "recurrence.h"
#include "vector_ops.h"

static void affine_blocks(const Matrix *matrix, const Activations *x, int64_t begin, int64_t end,
                          const Output *output) {
    BY_FORMAT(affine_range, matrix, x, begin, end, output);
}

#define LEVEL(name)                                                                                                   \
    {name,     FEW,      FEW,      0,        quantize,       encode,         dense_blocks, affine_blocks, panels,               \
     cache,    expand,   attend,   merge,          attend_prefill, rms_norm,    layer_norm,                           \
     rope,     activate, recur,        exponentials,  greatest_of,   add_powers, NULL, NULL, NULL, NULL, 0, 0, 0}
