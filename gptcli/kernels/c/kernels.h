/* What the C files share, and the library's interface: bindings.py declares the EXPORT functions again for ctypes.
 *
 *   program.c           a decoder's step as a list of operations
 *   mixture.c           mixtures of experts
 *   latent_attention.c  products of each head by itself, and latent attention of many tokens
 *   recurrence.c        convolutions and states that follow a text
 *   attention.c         attention over a cache of keys and values
 *   score.c             log-probabilities of tokens, without keeping logits
 *   linear.c            out = x @ W.T + bias on all threads
 *   sample.c            draws a token from logits, checks that they are finite, sums up their exponentials
 *   weights/            matrices: dense ones read in place, affine ones repacked, coded ones in fewer bytes
 *   dispatch.c          chooses the instruction set; norms, rotary embeddings and activation functions
 *   simd/               the inner loops, written once in its headers and compiled once per instruction set
 *   thread_pool.c       the threads
 *
 * No file calls one before it in this list.
 * Sizes and strides count elements unless they are called bytes. Functions that return int return 0, or -1 if there is
 * not enough memory.
 */
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "packed weights are read as little-endian words"
#endif

#if defined(__x86_64__)
#define GPTCLI_X86 1
#else
#define GPTCLI_X86 0
#endif

#define EXPORT __attribute__((visibility("default")))

enum {
    BLOCK = 16,      /* rows of a matrix that are computed together; packed weights interleave them */
    SEGMENT = 32,    /* columns whose quantized activations share a scale */
    SUPER_BLOCK = 256, /* columns that share the factors of nested constants */
    MOST_TERMS = 3,  /* of 8 bits, in which an activation is written */
    SHORT_TERMS = 2, /* the same, rounded to 16 bits */
    DIGITS = 4,      /* MOST_TERMS in digits of 8, 4, 8 and 4 bits */
    SHORT_DIGITS = 5, /* rounded to 12 bits, in digits of 8 and 4 bits */
    IN_BF16 = 6,     /* rounded to bf16 */
    MOST_PAIRED = 5,  /* bits of weights that meet these: so many fit into a table of 32 */
    TILE = 8,        /* tokens that are computed together */
    CACHE_LINE = 64, /* bytes */
    L1_FLOATS = 1 << 13,    /* fp32 weights that stay in the L1 cache while many tokens are multiplied with them */
    PANEL_FLOATS = 1 << 14, /* those that are read from the L2 cache as fast as pairs of bf16 are multiplied */
    RANGE = 256,     /* positions of one attention task, for one token, at most */
    SPAN = 64,       /* positions that many tokens attend to at once */
    RECORD = 64,     /* columns of a row that are coded together */
    CODE_BYTES = RECORD / 2,
    BF16_TOKENS = 32, /* tokens that are multiplied at once in bf16 */
    SCORED_ROWS = 4 * BLOCK, /* of a head, whose logits are summed at once */
    MOST_THREADS = 256,
    MOST_DEPTH = 1024, /* the most channels of a head that attention rounds to 16 bits */
};

static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/* ---- weights/matrix.c ---- */

typedef enum { FLOAT32, FLOAT16, BFLOAT16, AFFINE, CODED } Kind;

/* How the scales and biases of affine weights are stored. */
typedef enum {
    SINGLES, /* scales and biases in fp32 */
    HALVES,  /* scales and biases in fp16 */
    CENTRED, /* scales in fp16; the q of `middle_of` stands for zero */
    NESTED,  /* a factor and a bias factor in fp16 for SUPER_BLOCK columns, times scales and biases of 8 bits */
    NESTED_CENTRED, /* a factor in fp16 for SUPER_BLOCK columns, times signed scales of 8 bits; groups of 16 columns */
    LOOKED_UP,      /* scales in fp16; a q is an index in `codes` */
    LOOKED_UP_WIDE, /* scales in bf16; a q is an index in `codes` */
} Constants;

/* How a matrix multiplies more than a few tokens. A few are multiplied in fp32, unless it is INT8_PRODUCTS or a Product
 * `rounds`. */
typedef enum {
    FP32_PRODUCTS,
    BF16_PRODUCTS, /* rounds weights and activations to bf16, sums in fp32; as FP32_PRODUCTS at a level without them */
    INT8_PRODUCTS, /* activations are rounded to 8 bits */
    ROUNDED_PRODUCTS, /* attention may round queries and keys to 16 bits, weights and values to bf16; for logits, tokens may
                         be rounded to 16 bits or fewer */
} Arithmetic;

struct Chunk;

/* Weights of (rows, columns).
 *
 * Dense weights stay where Python has them, row by row.
 *
 * Affine weights (weight = scale * q + bias; `group` columns of a row share a scale and a bias) are copied. Each block
 * of 16 rows has a record for each group:
 *   16 scales, 16 biases                 fp16 or fp32
 *   group / 4 lines of 64 bytes          8 bits: four columns of row 0, the same four columns of row 1, ...
 *   group / 8 lines of 64 bytes          4 bits: as above in the low nibbles, the next four columns in the high ones
 * So one line feeds one vector instruction, and decoding reads memory as a single stream. Rows past the last are zero.
 * In 5 and 6 bits, every 32 columns have four lines as in 4 bits, then one or two with the upper bits: column 4 * s + j
 * of a row has its bit in bit 8 * j + s of the row's word, or its two bits in bits 8 * j + 2 * (s % 4) of word s / 4.
 * CENTRED and LOOKED_UP weights store no biases: a record has the scales of two groups instead, then the lines of both.
 * A record of nested weights has SUPER_BLOCK columns: 16 factors and 16 bias factors in fp16, then 16 scales and 16
 * biases of each group, a byte each, then all lines. Its biases are subtracted. Centred, it has no biases.
 *
 * Coded weights are bf16 or fp32, copied in 12 or 28 bits each. Every 64 columns of a row are a record, which is split
 * over two streams, both in row order:
 *   packed   32 bytes                    4 bits a column: the index in `tops` of the weight's upper byte; the second
 *                                        half of a record is in the high nibbles
 *   rest     64 bytes                    the next byte of each weight
 *            64 words of 16 bits         fp32 only: the two lower bytes
 * weights/coded_layout.h says in which order the columns of a record are stored. A record with an upper byte that is not in
 * `tops` also has all its upper bytes in `spelled`.
 */
typedef struct Matrix {
    Kind kind;
    int bits; /* affine: 4, 5, 6 or 8 */
    Constants constants;
    Arithmetic arithmetic;
    int64_t rows, columns, group;
    int64_t record_bytes; /* affine */
    int64_t block_bytes;
    const void *dense;
    uint8_t *packed;
    uint8_t codes[16];  /* looked up: the numbers that q stand for, plus 128 */
    int64_t rest_bytes; /* coded: bytes of a record in `rest` */
    int64_t listed;     /* coded: records whose upper bytes are spelled out */
    uint8_t tops[16];
    /* After `packed` in memory, in this order: */
    uint8_t *rest;
    uint8_t *spelled;          /* (listed, RECORD) upper bytes */
    uint32_t *spelled_records; /* (listed) record numbers, ascending */
    uint32_t *spelled_from;    /* (blocks + 1) how many of `spelled_records` are before each block */
    struct Chunk *chunk;       /* owns `packed` */
} Matrix;

/* The q that stands for zero in centred weights. */
static inline int middle_of(int bits) { return 1 << (bits - 1); }

/* Of an affine record. */
static inline int is_nested(Constants constants) { return constants == NESTED || constants == NESTED_CENTRED; }
static inline int is_looked_up(Constants constants) { return constants == LOOKED_UP || constants == LOOKED_UP_WIDE; }
static inline int has_biases(Constants constants) { return constants <= HALVES || constants == NESTED; }

/* Columns of a half segment: the least group. */
enum { HALF_SEGMENT = SEGMENT / 2 };

static inline int64_t constants_bytes(Constants constants) {
    if (is_nested(constants)) return CACHE_LINE + SUPER_BLOCK / HALF_SEGMENT * BLOCK;
    return 2 * BLOCK * (constants == SINGLES ? 4 : 2);
}

static inline int64_t groups_in_record(Constants constants) {
    if (is_nested(constants)) return SUPER_BLOCK / (constants == NESTED ? SEGMENT : HALF_SEGMENT);
    return has_biases(constants) ? 1 : 2;
}

static inline int64_t blocks_of(const Matrix *matrix) { return (matrix->rows + BLOCK - 1) / BLOCK; }

/* A matrix of fp32, fp16 or bf16 weights, which are read in place and must outlive it. NULL: no memory. */
EXPORT Matrix *gptcli_matrix_dense(int kind, const void *weights, int64_t rows, int64_t columns);

/* A packed copy of MLX's affine layout: q of (rows, columns * bits / 8) bytes, the lower column in the low nibble;
 * scales and biases of (rows, columns / group), of a Kind. NULL: no memory, or an unsupported shape. */
EXPORT Matrix *gptcli_matrix_affine(const uint8_t *q, const void *scales, const void *biases, int kind,
                                    int64_t rows, int64_t columns, int bits, int64_t group);

/* The same from q of (rows, columns) bytes, in 5 or 6 bits, or in 4 bits with nested or looked up constants (a
 * Constants). factors: (rows, columns / 256) in fp16 if nested, else scales of (rows, columns / 32) in fp16 or bf16;
 * bias_factors: of the same shape, for NESTED and HALVES. scales and biases, if nested: (rows, groups). codes: 16, plus
 * 128 each, if looked up. NULL: no memory, or an unsupported shape. */
EXPORT Matrix *gptcli_matrix_quants(const uint8_t *q, const uint16_t *factors, const uint16_t *bias_factors,
                                    const uint8_t *scales, const uint8_t *biases, const uint8_t *codes, int64_t rows,
                                    int64_t columns, int bits, int constants);

/* Sets the arithmetic, and returns what it is in effect at the level in use: INT8_PRODUCTS are for affine weights,
 * BF16_PRODUCTS for those and for weights in bf16. */
EXPORT int gptcli_matrix_set_arithmetic(Matrix *matrix, int arithmetic);

EXPORT void gptcli_matrix_free(Matrix *matrix);

/* The address of the weights as the kernels read them; *bytes: their size. */
EXPORT const void *gptcli_matrix_data(const Matrix *matrix, int64_t *bytes);

/* A copy of a Matrix with its weights at `data`, which are read in place, 64-byte aligned, and must outlive it. NULL:
 * no memory. */
EXPORT Matrix *gptcli_matrix_restored(const Matrix *fields, const void *data);

/* Row `row` in fp32, (columns): an embedding. */
EXPORT void gptcli_matrix_row(const Matrix *matrix, int64_t row, float *out);

/* ---- weights/coded.c ---- */

/* A coded copy of fp32 or bf16 weights. NULL: no memory, or it would gain nothing: upper bytes are spread too wide,
 * columns are not whole records, or the instruction set in use decodes no faster than it reads. */
EXPORT Matrix *gptcli_matrix_coded(int kind, const void *weights, int64_t rows, int64_t columns);

/* ---- weights/huge_pages.c ---- */

/* A Matrix with these fields, for gptcli_matrix_free. NULL: no memory. */
Matrix *matrix_new(Matrix fields);

/* 64-byte aligned memory, released with its owner's last user. NULL: no memory. */
uint8_t *chunk_memory(int64_t bytes, struct Chunk **owner);
void chunk_release(struct Chunk *owner);

/* ---- linear.c ---- */

/* Activations as integers: value = round(x / scale), one scale per SEGMENT columns. One term holds 8 bits. Three terms,
 * the greatest first, hold 24: no fewer than fp32, so products with them are those of fp32. They lie in tiles of `width`
 * tokens, where the tokens of a segment are side by side: values (tiles, segments, width, terms, SEGMENT), scales and
 * sums (tiles, segments, width), offsets (tiles, segments, width, terms, 2). DIGITS are the same 24 bits for tiles and
 * weights of 4 bits, without offsets: see simd/products/affine_amx_dots.c. IN_BF16 has no integers, but bf16, as
 * simd/products/affine_bf16_dots.h takes it, and `sums` of these. */
static inline int64_t value_bytes(int64_t terms) { return terms > DIGITS ? 2 : terms; } /* of a column */

typedef struct Activations {
    int8_t *values;
    float *scales;
    float *sums;      /* scale * the sum of the segment's values: the factor of a group's bias */
    int32_t *offsets; /* -128 * the sum of a half segment's term: where dot products with centred 8-bit weights start */
    int64_t tokens, segments, width, terms;
} Activations;

/* Activations of `terms` terms in a workspace of activations_bytes, 64-byte aligned, and one token of x, (columns). */
int64_t activations_bytes(int64_t tokens, int64_t columns, int64_t terms);
Activations activations_in(void *workspace, int64_t tokens, int64_t columns, int64_t terms);
void quantize_token(const Activations *to, const float *x, int64_t token);

/* Where results go: out[token * stride + row], plus bias[row] unless bias is NULL. */
typedef struct Output {
    float *out;
    int64_t stride;
    const float *bias;
} Output;

/* out (tokens, rows) = x (tokens, columns) @ W.T + bias for some tokens. */
typedef struct Product {
    const Matrix *matrix;
    const float *x;
    const int32_t *from; /* (tokens) the row of each in x; NULL if they lie side by side */
    int64_t tokens;
    const float *bias; /* (rows) or NULL */
    float *out;
    int64_t stride; /* from a token's results to the next one's */
    int rounds;     /* whether affine weights may take activations of fewer bits than fp32 has */
} Product;

/* One or more products on all threads, as if they were of one matrix. */
int linear_products(const Product *products, int64_t count);

/* The same for matrices whose rows follow each other: out (tokens, all rows), bias (all rows) or NULL. */
int linear_joined(const Matrix *const *matrices, int64_t count, const float *x, int64_t tokens, int rounds,
                  const float *bias, float *out);

/* out (tokens, rows) = x (tokens, columns) @ W.T + bias, on all threads. bias: (rows) or NULL. */
EXPORT int gptcli_linear(const Matrix *matrix, const float *x, int64_t tokens, int rounds, const float *bias,
                         float *out);

/* ---- score.c ---- */

/* The log-probability of each token's target among the first `scored` rows of logits x @ W.T + bias; not finite if any
 * logit is not. out: (tokens). The logits are never in memory together. arithmetic: unless it is FP32_PRODUCTS, those that
 * hardly count may be rounded. */
EXPORT int gptcli_linear_scores(const Matrix *matrix, const float *x, int64_t tokens, const float *bias,
                                const int64_t *targets, int64_t scored, int arithmetic, double *out);

/* ---- attention.c ---- */

/* How keys and values are stored. In 8 bits, a vector's numbers are multiples of a scale in fp32. */
typedef enum { CACHE_FP32, CACHE_FP16, CACHE_INT8 } CacheKind;

static inline int64_t number_bytes(CacheKind kind) { return kind == CACHE_FP32 ? 4 : kind == CACHE_FP16 ? 2 : 1; }

/* Bytes of a head's keys or values at `room` positions: vectors of head_dim numbers side by side, then their scales. */
static inline int64_t head_bytes(CacheKind kind, int64_t head_dim, int64_t room) {
    return room * (number_bytes(kind) * head_dim + (kind == CACHE_INT8 ? (int64_t)sizeof(float) : 0));
}

/* The attention of one token: queries (heads, head_dim) over positions [start, start + length) of a cache. Consecutive
 * heads / kv_heads queries share a kv head. The heads' keys, and their values, have `room` positions each. */
typedef struct Attention {
    const float *queries;
    const uint8_t *keys, *values;
    const float *sinks;  /* (heads) logits without a value, or NULL */
    const float *slopes; /* (heads) what a score gains from one position to the next (ALiBi), or NULL */
    float *out;          /* (heads, head_dim) */
    int64_t kind, heads, kv_heads, head_dim, room, start, length;
    float scale;
    float softcap; /* scores become softcap * tanh(score / softcap); 0: none */
    float rounded; /* 0, or a factor of ALiBi's gains, which are first rounded to bf16 */
} Attention;

/* A head's result over one RANGE, unnormalized: the greatest score, the sum of exp(score - greatest), and the values
 * weighted with these, (head_dim). */
enum { GREATEST, SUM, WEIGHTED };

/* The attention of `count` tokens, of one or more texts, on all threads. They differ in addresses, start and length. */
EXPORT int gptcli_attention(const Attention *tokens, int64_t count);

/* The attention of several tokens of one text, at positions `first` on. Each sees the `window` positions up to its own,
 * or all of them if that is 0. If `chunked`, the text is cut every `window` positions, after `dropped` ones that are no
 * longer cached, and a token sees its piece. A token's queries: (heads, head_dim) at queries + token * query_stride. */
typedef struct Prefill {
    const float *queries, *sinks, *slopes; /* as above, and so on */
    const uint8_t *keys, *values;
    float *out; /* (tokens, heads, head_dim) */
    int64_t tokens, first, window, chunked, dropped, kind, heads, kv_heads, head_dim, room, query_stride;
    float scale, softcap, rounded;
    int64_t arithmetic; /* FP32_PRODUCTS or ROUNDED_PRODUCTS */
} Prefill;

/* On all threads; exported for tests. */
EXPORT int gptcli_attend_prefill(const Prefill *prefill);

/* ---- dispatch.c: n rows of `size`, on the calling thread; out may be x; exported for tests ---- */

typedef enum { SILU, GELU, GELU_TANH, RELU, CLAMPED_SWIGLU, RELU_SQUARED, LOGISTIC, IDENTITY, TANH } Activation;

/* x / sqrt(mean(x^2) + epsilon) * weight; weight (size) or NULL. */
EXPORT void gptcli_rms_norm(const float *x, const float *weight, float epsilon, int64_t n, int64_t size, float *out);

/* (x - mean) / sqrt(variance + epsilon) * weight + bias; weight and bias (size) or NULL. */
EXPORT void gptcli_layer_norm(const float *x, const float *weight, const float *bias, float epsilon, int64_t n,
                              int64_t size, float *out);

/* Rotates the channel pairs (i, i + dim / 2) of n heads in place; channels past dim stay. cos and sin: (dim), the first
 * half of sin negated, as model/rope.py makes them. */
EXPORT void gptcli_rope(float *heads, const float *cosines, const float *sines, int64_t n, int64_t head_dim,
                        int64_t dim);

/* out = activation(gate) * up, elementwise; up may be NULL except for CLAMPED_SWIGLU. */
EXPORT void gptcli_activate(int activation, const float *gate, const float *up, int64_t size, float *out);

/* e^x, elementwise. */
EXPORT void gptcli_exp(const float *x, int64_t size, float *out);

/* ---- what program.c runs ---- */

/* The operations of a step, as runtime/lowering/ makes them of a decoder. Buffers have a row for each token. */
typedef enum {
    EMBED,      /* out (size) = the token's row of matrix, or its first one if it has none, * factor, plus its
                   position's row of weight if given */
    RMS_NORM,   /* `rows` vectors of `size` in a row of `stride`, weights `weight_step` apart; factor is epsilon */
    LAYER_NORM, /* as RMS_NORM, with a bias beside the weight */
    LINEAR,     /* out = in @ matrix.T + bias, of `rows` matrices whose rows follow each other; out NULL: the logits,
                   of one matrix */
    CHOOSE,     /* choices: `rows` of the experts whose logits are `in` (size), which become scores; out (size): ranks.
                   weight (size): added to the ranks; bias (size): multiplies the shares; both may be NULL */
    EXPERTS,    /* out: in @ matrix.T + bias for each choice, by expert; in: by token if `table`, else by expert */
    MIX,        /* out (size) = the sum of the token's choices in `in`, times their shares */
    GATE,       /* out (size) *= the logistic function of in (1) */
    ROTATE,     /* `rows` heads of `size` channels in a row of `stride`, by rotation number `table` */
    ATTEND,     /* in: queries, keys, values in a row of `stride`, or only queries if there are `keys`, which are the
                   values, too; out (heads * size); sinks: weight; slopes: bias; rows[table] */
    ACTIVATE,   /* `rows` times: out (size) = activation `table` of in, times what follows if stride is 2 * size */
    ADD,        /* out (size) += in * factor, or replaced by it if `table` */
    BY_HEAD,    /* `heads` times: out = in @ matrix.T, then `copied` numbers that follow in `in`; heads are `size` apart in
                   a row of `stride`, and `out_step` in a row of `out_stride`; skips texts of EXPAND */
    EXPAND,     /* out (heads, values): attention of texts with at least `expands_from` tokens, by keys and values of each
                   head, made from the latents that the ATTEND `borrows` stored. in: queries of `size` in a row of
                   `stride`; matrices: `heads` for keys, whose last channels follow the latents, then `heads` for values */
    SHARE,      /* out (size) of each choice *= its share, which becomes 1 */
    CONVOLVE,   /* out (size) = the sum of each channel's newest `rows` values in a row of `stride`, times weight (rows,
                   size), plus bias; the state has the last rows - 1 */
    RECUR,      /* out (heads * rows): what heads read of their states. in: values (heads * rows), keys and queries
                   (kv_heads * size), in rows of `stride`; steps in rows of `out_stride`, after all heads' rates if
                   `corrected`; weight (2 * heads): the decays, then biases of steps; bias (heads): the share of values to
                   add, or NULL */
    XIELU,      /* out (size) = xIELU of in, with weight (4) */
    CUT_OFF,    /* out (size) in a row of `stride`: less its mean and `factor` standard deviations, at least 0 */
    MULTIPLY,   /* out (size) in a row of `out_stride` *= activation `table` of in, in a row of `stride`, or of weight */
    SCALE,      /* out (size) in a row of `stride` *= factor */
    SCALE_BY_POSITION, /* the same by 1 + factor * log(1 + floor((position + table) / rows)) */
    CLAMP,      /* out (size): at most factor, at least -factor */
    ADD_SHARE,  /* out (size) += in * (factor + steps (1) in a row of `stride`), or replaced by it if `table` */
    MATCH_RMS,  /* out (size) *= rms(in) / rms(out), whose mean square counts as at least `factor` */
    NARROW,     /* moves the rows of the wanted tokens in out (size) together; what follows computes these alone */
} Code;

/* How a mixture makes scores of its router's logits; see model/mlp.py. */
typedef enum { SOFTMAX_ROUTER, SIGMOID_ROUTER, SPARSE_MIXER } Router;

enum { MOST_GROUPS = 64 }; /* of experts, and of the best of a group */

/* An expert that a token chose. A row of choices has `rows` of them, the greatest share first. */
typedef struct Choice {
    float share;
    int32_t expert;
    int32_t slot; /* its row where all tokens' choices are sorted by expert, then by token */
} Choice;

typedef struct Op {
    int64_t code;
    const Matrix *const *matrices; /* one; `rows` of LINEAR, `heads` of BY_HEAD, twice those of EXPAND, `size` of EXPERTS */
    const float *in;
    float *out;
    Choice *choices;
    const float *keys, *queries, *steps;
    const float *weight, *bias;
    int64_t rows, size, stride, weight_step, table, heads, kv_heads, window;
    int64_t cache_kind; /* a CacheKind */
    int64_t keys_at;    /* bytes of a position in earlier blocks with the same window */
    int64_t arithmetic, chunked; /* of ATTEND: see Prefill; of a LINEAR for logits: how they are summed up */
    int64_t borrows; /* 1 + the number of the ATTEND whose keys and values it reads; 0: it stores its own */
    int64_t out_stride, out_step, copied;
    int64_t expands_from; /* the fewest tokens of a text in a step that make it one of EXPAND's; 0: none is */
    int64_t router, groups, top_groups, group_best, renormalize; /* of CHOOSE: see model/config.py's MoeConfig */
    int64_t state_at; /* bytes of a text's states before those of this operation */
    int64_t corrected, tiled; /* of RECUR */
    int64_t narrow; /* whether it computes the wanted tokens alone: of ATTEND, in place; of others, as NARROW left them */
    float factor, softcap, rounded, least_sum, added_to_sum, jitter, least, most;
} Op;

/* cos and sin of a text's tokens in a step, (tokens, dim). */
typedef struct Rotation {
    const float *cosines, *sines;
    int64_t dim;
} Rotation;

/* A text's keys and values in all blocks of one window, for `room` positions. Each block has, in this order, the keys of
 * each kv head, (kv_heads, room), and its values alike. */
typedef struct Row {
    uint8_t *memory;
    int64_t room;
    int64_t cached; /* positions in it before this step */
} Row;

/* A text's states of all operations that keep one: before this step, and where those after it go. */
typedef struct State {
    const uint8_t *before;
    uint8_t *after;
} State;

/* What changes from step to step: consecutive tokens of each of one or more texts. */
typedef struct Frame {
    int64_t tokens, texts, ropes, windows;
    int64_t wanted;           /* number of tokens whose logits are computed */
    const int64_t *ids;       /* (tokens), text by text */
    const int64_t *starts;    /* (texts + 1) the index of each text's first token, and `tokens` */
    const int64_t *positions; /* (texts) where each first token is in its text */
    const Rotation *rotations; /* (texts, ropes) */
    const Row *rows;           /* (texts, windows) */
    const State *states;       /* (texts) */
    const int64_t *wanted_tokens; /* (wanted) their indices, ascending */
    float *logits;                /* (wanted, vocabulary) */
    const int64_t *targets; /* (wanted) or NULL: instead of logits, the log-probabilities of these tokens are computed */
    int64_t scored;         /* rows of the head that have a probability */
    double *scores;         /* (wanted), not finite where a logit is not */
} Frame;

/* The text of a token, by halves. */
static inline int64_t text_of(const Frame *frame, int64_t token) {
    int64_t text = 0, past = frame->texts;
    while (past - text > 1) {
        int64_t middle = (text + past) / 2;
        if (frame->starts[middle] <= token)
            text = middle;
        else
            past = middle;
    }
    return text;
}

/* Whether a matrix may be multiplied with rounded tokens. Those of one text keep all bits, so that drafts change nothing. */
static inline int may_round(const Matrix *matrix, const Frame *frame) {
    return matrix->arithmetic != FP32_PRODUCTS && frame->texts > 1;
}

/* Whether a text is one of EXPAND's. */
static inline int is_expanded(const Op *op, const Frame *frame, int64_t text) {
    return op->expands_from > 0 && frame->starts[text + 1] - frame->starts[text] >= op->expands_from;
}

/* An operation that computes each token by itself, for tokens [begin, end). */
typedef void TokenOp(const Op *op, const Frame *frame, int64_t begin, int64_t end);

/* ---- mixture.c ---- */

TokenOp choose_experts, share_choices, mix_experts;
int sort_choices(const Op *op, const Frame *frame); /* sets each choice's slot */
int multiply_experts(const Op *op, const Frame *frame);

/* ---- latent_attention.c ---- */

int multiply_heads(const Op *op, const Frame *frame);

/* EXPAND of one text. row: its latents of all blocks; latents: those of this block. */
int attend_expanded(const Op *op, const Frame *frame, int64_t text, const Row *row, const uint8_t *latents);

/* ---- recurrence.c ---- */

TokenOp convolve;
void keep_tails(const Op *op, const Frame *frame); /* after `convolve` */
void recur_heads(const Op *op, const Frame *frame);

/* ---- program.c ---- */

/* INTERFACE is a checksum of the functions, structs and enums that Python knows; a test says what it must be. Python has
 * it, too, and refuses a library that was compiled from another header. */
enum { INTERFACE = 0xd8ef8b35 };
EXPORT int64_t gptcli_interface(void);

/* Bytes of a struct: 0 Op, 1 Rotation, 2 Row, 3 Frame, 4 Draw, 5 Matrix, 6 Attention, 7 Prefill. */
EXPORT int64_t gptcli_struct_bytes(int number);

/* Runs operations of a step, at least one, until the pause is due. Returns how many ran: the caller goes on with the rest.
 * -1: no memory, or no such operation. */
EXPORT int64_t gptcli_run(const Op *ops, int64_t count, const Frame *frame, int64_t pause_nanoseconds);

/* ---- sample.c ---- */

/* A token to be drawn: the settings of settings.py's SamplingConfig but typical_p. Neutral values turn filters off. */
typedef struct Draw {
    float *logits; /* unchanged after the draw */
    int64_t vocabulary;
    const uint32_t *allowed; /* a bit a token, lowest first, set if it may be drawn; NULL: all may */
    const int64_t *banned; /* tokens that must not be drawn */
    int64_t banned_count;
    const int64_t *biased; /* tokens, and what is added to each one's logit */
    const float *biases;
    int64_t biased_count;
    const int64_t *recent; /* tokens that penalties are for */
    int64_t recent_count;
    int64_t greedy, top_k;
    double top_p, min_p;
    float repeat, presence, frequency, temperature;
    double uniform; /* at random, from 0 to below 1 */
} Draw;

/* Draws a token; -1: no memory, -2: no token is left that may be drawn. The logits must be finite. */
EXPORT int64_t gptcli_draw(const Draw *draw);

/* Whether none of the values is infinite or not a number; 1 or 0. */
EXPORT int gptcli_all_finite(const float *values, int64_t size);

/* The logarithm of each row's sum of e^logit, for rows of `size` logits that lie `stride` apart. */
EXPORT void gptcli_log_sums(const float *logits, int64_t rows, int64_t size, int64_t stride, double *out);

/* ---- dispatch.c: instruction sets ---- */

/* A head's state (rows, size), and what a token does to it: it decays by a factor, gains the outer product of values and
 * keys times `rate`, and is read with queries. If `corrected`, what keys read of the decayed state is first subtracted
 * from the values. */
typedef struct Recurrence {
    int64_t rows, size, corrected;
    float decay, rate;
    const float *values;         /* (rows) */
    const float *keys, *queries; /* (size) */
} Recurrence;

/* What simd/ implements for each instruction set; pointers as above. */
typedef struct Level {
    const char *name;
    int64_t few; /* tokens for which affine_blocks with three terms are faster than panels */
    int64_t few_rounded; /* the same of activations that may be rounded */
    int64_t digits_from; /* tokens from which weights of 4 bits take DIGITS; 0: never */
    void (*quantize)(const float *x, int64_t segments, int64_t width, int64_t terms, int8_t *values, float *scales,
                     float *sums, int32_t *offsets);
    /* Codes records [begin, end) and lists those with upper bytes that are not in `tops`; `listed` are listed so far.
     * While the matrix has no memory, only counts them. Returns how many are listed then. NULL: decoding would be no
     * faster than reading. */
    int64_t (*encode)(Matrix *, const uint8_t *weights, int64_t begin, int64_t end, int64_t listed);
    /* Blocks [begin, end) of rows for all tokens: dense and coded weights, affine weights. */
    void (*dense_blocks)(const Matrix *, const float *x, int64_t tokens, int64_t begin, int64_t end, const Output *);
    void (*affine_blocks)(const Matrix *, const Activations *, int64_t begin, int64_t end, const Output *);
    /* Rows [begin, end) of any matrix; panel: PANEL_FLOATS of the calling thread, 64-byte aligned. */
    void (*panels)(const Matrix *, const float *x, int64_t tokens, int64_t begin, int64_t end, float *panel,
                   const Output *);
    /* Stores a key or a value at a position of a head, whose first one is at `head`. */
    void (*cache)(CacheKind, const float *x, int64_t head_dim, int64_t room, int64_t position, uint8_t *head);
    /* The keys or values of positions [begin, end) of a head, (end - begin, head_dim); returns out. */
    const float *(*expand)(CacheKind, const uint8_t *head, int64_t head_dim, int64_t room, int64_t begin, int64_t end,
                           float *out);
    /* One range of all heads that share kv_head; the heads' results are `stride` apart. workspace: 2 * RANGE * head_dim
     * floats. */
    void (*attend)(const Attention *, int64_t kv_head, int64_t begin, int64_t end, float *partial, int64_t stride,
                   float *workspace);
    /* A head's output from the results of all its ranges, side by side, which are overwritten. */
    void (*merge)(const Attention *, int64_t head, float *partials, int64_t ranges);
    void (*attend_prefill)(const Prefill *, int64_t kv_head, int64_t begin, int64_t end, const float *transposed,
                           float *workspace);
    void (*rms_norm)(const float *x, const float *weight, float epsilon, int64_t size, float *out);
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float epsilon, int64_t size,
                       float *out);
    void (*rope)(float *head, const float *cosines, const float *sines, int64_t dim);
    void (*activate)(int activation, const float *gate, const float *up, int64_t size, float *out);
    /* after: the state after a token, may be `before`; out: (rows) what it reads. */
    void (*recur)(const Recurrence *, const float *before, float *after, float *out);
    void (*exp)(const float *x, int64_t size, float *out);
    float (*greatest)(const float *x, int64_t size); /* -infinity of none; NaNs are not allowed */
    /* Adds e^(logit - most) of `count` logits to BLOCK sums, and NaN if one of `present` logits is not finite; most may
     * become greater, and the sums are then scaled. Returns 0 if none of the `count` is at least `floor`. Both counts are
     * at most SCORED_ROWS, and so many floats are read. */
    int (*add_powers)(const float *logits, int64_t count, int64_t present, float floor, float *most, float *sums);
    /* As panels, in bf16, and the rounding of a token for it; NULL: the processor has no such products. See
     * simd/products/bf16_panels.h for the layout of x. */
    void (*bf16_panels)(const Matrix *, const uint16_t *x, int64_t tokens, int64_t begin, int64_t end, float *panel,
                        const Output *);
    void (*round_token)(const float *x, int64_t columns, int64_t token, uint16_t *out);
    /* As attend_prefill, for ROUNDED_PRODUCTS, and what makes a span's keys and values ready for it; NULL: fp32 is as
     * fast. See simd/attention/prefill_amx.c and simd/attention/prefill_rounded.c for the layouts. */
    void (*attend_split)(const Prefill *, int64_t kv_head, int64_t begin, int64_t end, const float *spans,
                         float *workspace);
    void (*split_span)(const float *keys, const float *values, int64_t present, int64_t head_dim, float *to);
    int64_t split_queries; /* of a task of these, which share what is loaded of keys and values */
    int64_t split_depth;   /* the most numbers of a head that they multiply */
    int has_pairs;         /* whether affine_blocks takes IN_BF16 */
} Level;

extern const Level portable_level;
#if GPTCLI_X86
extern const Level avx2_level, avx512_level;

/* What levels above avx512 have, where the compiler knows their instructions. */
#if __has_include(<amxbf16intrin.h>)
#define GPTCLI_BF16 1
void avx512_bf16_panels(const Matrix *, const uint16_t *x, int64_t tokens, int64_t begin, int64_t end, float *panel,
                        const Output *);
void amx_panels(const Matrix *, const uint16_t *x, int64_t tokens, int64_t begin, int64_t end, float *panel,
                const Output *);
void amx_affine_blocks(const Matrix *, const Activations *, int64_t begin, int64_t end, const Output *);
void amx_quantize(const float *x, int64_t segments, int64_t width, int64_t terms, int8_t *values, float *scales,
                  float *sums, int32_t *offsets);
enum { AMX_FEWEST = 4 }; /* tokens that are worth tiles of integers; fewer wait for memory */
void avx512_bf16_blocks(const Matrix *, const Activations *, int64_t begin, int64_t end, const Output *);
void avx512_bf16_quantize(const float *x, int64_t segments, int64_t width, int64_t terms, int8_t *values, float *scales,
                          float *sums, int32_t *offsets);
void avx512_bf16_round(const float *x, int64_t columns, int64_t token, uint16_t *out);
enum { AMX_QUERIES = 192, ROUNDED_QUERIES = 48 }; /* tiles wait for the third cache with fewer */
void rounded_attend(const Prefill *, int64_t kv_head, int64_t begin, int64_t end, const float *spans, float *workspace);
void rounded_span(const float *keys, const float *values, int64_t present, int64_t head_dim, float *to);
void amx_attend_prefill(const Prefill *, int64_t kv_head, int64_t begin, int64_t end, const float *spans,
                        float *workspace);
void amx_split_span(const float *keys, const float *values, int64_t present, int64_t head_dim, float *to);
#endif
#endif

/* The level in use: the best one of this processor until another is set. */
const Level *level(void);

/* Whether the processor and the system support "portable", "avx2", "avx512", "avx512_bf16" or "amx"; 1 or 0. */
EXPORT int gptcli_has_level(const char *name);

/* Uses a level from now on; -1 if it is not supported. Must not be called while other threads compute. */
EXPORT int gptcli_set_level(const char *name);
EXPORT const char *gptcli_level(void);

/* ---- weights/checksum.c ---- */

/* Adds `bytes` of data, a multiple of 64, to a checksum of eight numbers, which are 0 at first. */
EXPORT void gptcli_checksum(const void *data, int64_t bytes, uint64_t *lanes);

/* Reads `bytes`, a multiple of 64, from an open file and adds them to a checksum; -1 if it is too short or fails. */
EXPORT int gptcli_read(int file, void *data, int64_t bytes, uint64_t *lanes);

/* ---- thread_pool.c: tasks must not call what itself runs on all threads ---- */

/* A thread's share of some work; the calling thread is number 0. */
typedef void Task(void *argument, int thread, int threads);

/* How many threads share the work, the caller's included; 1 at first. */
EXPORT int gptcli_set_threads(int threads);
EXPORT int gptcli_threads(void);

/* Between these two, one caller owns the threads and the workspace. */
void pool_lock(void);
void pool_unlock(void);

/* Runs task on thread 0 and on the workers that arrive before it is done. Tasks take their work from a shared counter,
 * so nobody waits for a thread whose core is busy elsewhere. The pool is locked. */
void pool_share(Task *task, void *argument);

/* Splits [0, count) among the tasks of the next pool_share: a range for each thread, ending at a multiple of `even`.
 * The pool is locked. */
void pool_deal(int64_t count, int64_t step, int64_t even);

/* Takes at most `step` from the thread's own range, then from what is left of the others'; 0 when nothing is left. So a
 * thread reads one stream, which is being prefetched already, and a slow thread still gets help. */
int pool_take(int thread, int64_t *begin, int64_t *end);

/* At least this many bytes, 64-byte aligned, valid until the pool is unlocked; NULL: no memory. The pool is locked. */
void *pool_workspace(int64_t bytes);

/* Of a clock that only goes forward. */
int64_t nanoseconds(void);
