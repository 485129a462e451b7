/* What the files of the kernels share: the records, the thread pool, and the functions that each instruction set has.
 *
 *   matrix.c     weights: read in place, or repacked into memory of our own
 *   coded.c      dense weights in fewer bytes, bit for bit
 *   linear.c     out = x @ W.T + bias, spread over the threads
 *   attention.c  one token's attention over a cache of keys and values
 *   program.c    a whole step of a decoder as a list of these
 *   sample.c     the token to be drawn from logits
 *   small.c      norms, rotary embeddings, activations; the choice of an instruction set
 *   pool.c       the threads
 *   level.h      all that computes, written once for vectors of any width; avx512.c, avx2.c and portable.c compile it
 *
 * Sizes and strides count elements unless they are called bytes. Functions that return int return 0 or -1 (no memory).
 * Functions marked EXPORT are the library's face; functions.py declares them again for ctypes.
 */
#ifndef GPTCLI_KERNELS_H
#define GPTCLI_KERNELS_H

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
    BLOCK = 16,       /* rows of a matrix that are computed together; packed weights interleave them */
    PART = 32,        /* columns whose activations share a scale */
    TILE = 8,         /* tokens that are computed together */
    CACHE_LINE = 64,  /* bytes */
    PANEL_FLOATS = 1 << 13, /* of weights that stay in the first cache while many tokens pass */
    RANGE = 64,       /* positions that one task of attention covers */
    SPAN = 64,        /* positions that many tokens attend to at once */
    RECORD = 64,      /* columns of a row that are coded together */
    CODE_BYTES = RECORD / 2,
    MOST_THREADS = 256,
};

/* ---- matrix.c ---- */

typedef enum { FLOAT32, FLOAT16, BFLOAT16, AFFINE, CODED } Kind;

/* What affine weights have beside q. */
typedef enum {
    SINGLES, /* scales and biases in fp32 */
    HALVES,  /* scales and biases in fp16 */
    CENTRED, /* scales in fp16, which tell the biases */
} Constants;

struct Chunk;

/* Weights of (rows, columns).
 *
 * Dense ones are where Python left them, row by row. Affine ones (weight = scale * q + bias, one scale and bias for
 * `group` columns of a row) are copied: for each block of 16 rows, for each group, a record of
 *   16 scales, 16 biases                 fp16 or fp32
 *   group / 4 lines of 64 bytes          8 bits: four columns of row 0, the same four of row 1, ...
 *   group / 8 lines of 64 bytes          4 bits: as above in the low nibbles, the next four columns in the high ones
 * so that one line feeds one vector instruction and decoding reads memory in a single stream. Rows beyond the last are
 * zero. Where the middle q stands for zero in all groups (bias = -(8 or 128) * scale), no biases are kept: a record has
 * the scales of two groups in their place, and then the lines of both.
 *
 * Coded ones are a copy, too, of bf16 or fp32 in 12 or 28 bits. Records of 64 columns lie row by row in two streams:
 *   packed   32 bytes                    which of the 16 `tops` is a weight's upper byte: 4 bits for each place, those
 *                                        of the last 32 places in the high nibbles
 *   rest     64 bytes                    the next byte, for each place
 *            64 words of 16 bits         fp32: the other two
 * Which column has which place follows from how vectors are put together of bytes (place_in_record). Records that have
 * an upper byte which is not one of `tops` are listed with all of theirs.
 */
typedef struct Matrix {
    Kind kind;
    int bits; /* affine: 8 or 4 */
    Constants constants;
    int integers; /* affine: activations are rounded to 8 bits for it; else the weights are exact in fp32 */
    int64_t rows, columns, group;
    int64_t record_bytes; /* affine */
    int64_t block_bytes;
    const void *dense;
    uint8_t *packed;
    int64_t rest_bytes, listed; /* coded: of a record; records */
    uint8_t tops[16];
    /* Behind `packed`, in this order: */
    uint8_t *rest;
    uint8_t *spelled;          /* (listed, RECORD) upper bytes of the records that are listed */
    uint32_t *spelled_records; /* (listed) which those are, in order */
    uint32_t *spelled_from;    /* (blocks + 1) how many of them belong to earlier blocks */
    struct Chunk *chunk; /* owns packed */
} Matrix;

/* The q that stands for zero in centred weights. */
static inline int middle_of(int bits) { return 1 << (bits - 1); }

/* Of a record of affine weights. */
static inline int64_t constants_bytes(Constants constants) { return 2 * BLOCK * (constants == SINGLES ? 4 : 2); }
static inline int64_t groups_in_record(Constants constants) { return constants == CENTRED ? 2 : 1; }

static inline int64_t blocks_of(const Matrix *matrix) { return (matrix->rows + BLOCK - 1) / BLOCK; }

/* A matrix of fp32, fp16 or bf16, whose weights stay where they are and must outlive it. NULL: no memory. */
EXPORT Matrix *gptcli_matrix_dense(int kind, const void *weights, int64_t rows, int64_t columns);

/* A packed copy of MLX's affine layout: q of (rows, columns * bits / 8) bytes, the lower column in the low nibble;
 * scales and biases of (rows, columns / group) in `constants` (a Kind). NULL: no memory, or a shape it cannot have. */
EXPORT Matrix *gptcli_matrix_affine(const uint8_t *q, const void *scales, const void *biases, int constants,
                                    int64_t rows, int64_t columns, int bits, int64_t group);

/* From now on activations are rounded to 8 bits for an affine matrix. */
EXPORT void gptcli_matrix_round_activations(Matrix *matrix);

/* A coded copy of fp32 or bf16. NULL: no memory, or nothing to be gained: weights that spread too wide, columns that
 * are no whole records, or a level in use that decodes no faster than it reads. */
EXPORT Matrix *gptcli_matrix_coded(int kind, const void *weights, int64_t rows, int64_t columns);

EXPORT void gptcli_matrix_free(Matrix *matrix);

/* Where its weights are, as the kernels read them, and in *bytes how many that takes. */
EXPORT const void *gptcli_matrix_data(const Matrix *matrix, int64_t *bytes);

/* A matrix as one was before: its record, which is a Matrix, with weights like its own, which are read in place, 64-byte
 * aligned, and must outlive it. NULL: no memory. */
EXPORT Matrix *gptcli_matrix_restored(const Matrix *record, const void *data);

/* Row `row` in fp32, (columns): what an embedding looks up. */
EXPORT void gptcli_matrix_row(const Matrix *matrix, int64_t row, float *out);

float float_of_half(uint16_t half);
float float_of_bfloat(uint16_t bfloat);

/* A matrix without weights, and 64-byte aligned memory for them; NULL: no memory. */
Matrix *matrix_new(Kind kind, int64_t rows, int64_t columns);
uint8_t *matrix_memory(int64_t bytes, struct Chunk **owner);

/* ---- coded.c ---- */

/* Interleaving bytes and then words of 128 bits each makes four columns of each 16 neighbours. */
static inline int64_t place_in_record(int64_t column) { return column % 16 / 4 * 16 + column / 16 * 4 + column % 4; }
static inline int64_t low_in_record(int64_t column) {
    return column / 32 * 32 + column % 16 / 4 * 8 + column / 16 % 2 * 4 + column % 4;
}

int64_t coded_bytes(const Matrix *matrix);

/* Sets all that lies behind `packed`. */
void coded_place(Matrix *matrix);

/* Which record is listed at a place; one that no record reaches behind the last. Places come from memory that a file
 * may have damaged: none is beyond what is there. */
static inline int64_t listed_record(const Matrix *matrix, int64_t place) {
    return place < matrix->listed ? matrix->spelled_records[place] : INT64_MAX;
}

/* The upper bytes of a record that is listed, else NULL. */
const uint8_t *spelled_tops(const Matrix *matrix, int64_t record);

/* A record's columns in fp32, one by one. spelled: its upper bytes, or NULL. */
void decode_columns(const Matrix *matrix, const uint8_t *codes, const uint8_t *rest, const uint8_t *spelled,
                    float *out);

/* ---- linear.c ---- */

/* Rows of x in signed 8 bits: value = round(x / scale), one scale for PART columns. They lie in tiles of `width`
 * tokens, all the tokens of a part side by side: (tiles, parts, width, PART), and (tiles, parts, width) for the rest.
 */
typedef struct Activations {
    int8_t *values;
    float *scales;
    float *sums;      /* scale times the sum of the part's values: what multiplies a group's bias */
    int32_t *offsets; /* that sum times -128: what products with centred weights of 8 bits begin with */
    int64_t tokens, parts, width;
} Activations;

/* Where results go: out[token * stride + row], bias[row] added unless bias is NULL. */
typedef struct Output {
    float *out;
    int64_t stride;
    const float *bias;
} Output;

/* Bytes of the workspace for so many tokens, and the activations laid out in it (64-byte aligned). */
EXPORT int64_t gptcli_activations_bytes(int64_t tokens, int64_t columns);
EXPORT void gptcli_activations_place(Activations *activations, void *workspace, int64_t tokens, int64_t columns);

/* Quantizes tokens [begin, end) of x, (tokens, columns). */
EXPORT void gptcli_quantize(Activations *activations, const float *x, int64_t begin, int64_t end);

/* Computes blocks [begin, end) of 16 rows for all tokens, on the calling thread. Matrices for integers take the
 * quantized activations, others x, (tokens, columns). */
EXPORT void gptcli_linear_blocks(const Matrix *matrix, const float *x, int64_t tokens, const Activations *activations,
                                 int64_t begin, int64_t end, const Output *output);

/* out (tokens, rows) = x (tokens, columns) @ W.T + bias, on all threads. bias: (rows) or NULL. */
EXPORT int gptcli_linear(const Matrix *matrix, const float *x, int64_t tokens, const float *bias, float *out);

/* ---- attention.c ---- */

/* One token's attention: queries (heads, head_dim) over positions [start, start + length) of a cache. Consecutive
 * heads / kv_heads queries share a kv head. A position's key is at keys + kv_head * head_stride + position * head_dim.
 */
typedef struct Attention {
    const float *queries, *keys, *values;
    const float *sinks; /* (heads) logits without a value, or NULL */
    float *out;         /* (heads, head_dim) */
    int64_t heads, kv_heads, head_dim, head_stride, start, length;
    float scale;
    float softcap; /* scores become softcap * tanh(score / softcap); 0: they stay */
} Attention;

/* A head's result over one RANGE, unnormalized: its greatest score, the sum of exp(score - greatest), and the values
 * weighted with these, (head_dim). */
enum { GREATEST, SUM, WEIGHTED };

/* All of it, on all threads. */
EXPORT int gptcli_attention(const Attention *attention);

/* The same for one token of each of several texts: the first one's, and what lies between that and the next one's
 * queries, and keys or values. Results lie side by side. */
EXPORT int gptcli_attend_texts(const Attention *first, int64_t texts, int64_t query_stride, int64_t cache_stride);

/* The attention of several tokens, which lie at positions `first` on: each sees the `window` positions up to its own,
 * all of them if that is 0. Queries of a token: (heads, head_dim) at queries + token * query_stride.
 */
typedef struct Passage {
    const float *queries, *keys, *values, *sinks; /* as above */
    float *out;                                   /* (tokens, heads, head_dim) */
    int64_t tokens, first, window, heads, kv_heads, head_dim, head_stride, query_stride;
    float scale, softcap;
} Passage;

/* All of it, on all threads. */
EXPORT int gptcli_attend_passage(const Passage *passage);

/* ---- small.c: n rows of `size`, on the calling thread; out may be x ---- */

typedef enum { SILU, GELU, GELU_TANH, RELU, CLAMPED_SWIGLU } Activation;

/* x / sqrt(mean(x^2) + epsilon) * weight; weight (size) or NULL. */
EXPORT void gptcli_rms_norm(const float *x, const float *weight, float epsilon, int64_t n, int64_t size, float *out);

/* (x - mean) / sqrt(variance + epsilon) * weight + bias; weight and bias (size) or NULL. */
EXPORT void gptcli_layer_norm(const float *x, const float *weight, const float *bias, float epsilon, int64_t n,
                              int64_t size, float *out);

/* Turns the channel pairs (i, i + dim / 2) of n heads in place; channels beyond dim stay. cos and sin: (dim), the
 * first half of sin negated, as model/rope.py makes them. */
EXPORT void gptcli_rope(float *heads, const float *cosines, const float *sines, int64_t n, int64_t head_dim,
                        int64_t dim);

/* out = activation(gate) * up, elementwise; up may be NULL except for CLAMPED_SWIGLU. */
EXPORT void gptcli_activate(int activation, const float *gate, const float *up, int64_t size, float *out);

/* e^x, elementwise: what the above use, for tests. */
EXPORT void gptcli_exp(const float *x, int64_t size, float *out);

/* ---- program.c ---- */

/* A step for all layers: what lowering.py makes of a decoder. Buffers hold a row for each token. */
typedef enum {
    EMBED,      /* out (size) = the token's row of matrix * factor, and its position's row of weight if there is one */
    RMS_NORM,   /* `rows` vectors of `size` in a row of `stride`, weights `weight_step` apart; factor is epsilon */
    LAYER_NORM, /* the same, with a bias beside the weight */
    LINEAR,     /* out = in @ matrix.T + bias; out NULL: the logits */
    ROTATE,     /* `rows` heads of `size` channels in a row of `stride`, by the rotation `table` */
    ATTEND,     /* in: queries, keys and values in a row of `stride`; out (heads * size); sinks: weight */
    ACTIVATE,   /* out (size) = activation `table` of the row's first half, times its second if stride is 2 * size */
    ADD,        /* out (size) += in * factor */
} Code;

typedef struct Op {
    int64_t code;
    const Matrix *matrix;
    const float *in;
    float *out;
    const float *weight, *bias;
    float *keys, *values; /* of a block's cache: position 0 of its first row's first head */
    int64_t rows, size, stride, weight_step, table, heads, kv_heads, window, row_stride, head_stride;
    float factor, softcap;
} Op;

/* cos and sin of the tokens' positions, (tokens, dim). */
typedef struct Rotation {
    const float *cosines, *sines;
    int64_t dim;
} Rotation;

/* What changes from step to step. Tokens follow each other in a text, or each is of a text, and a row of the caches, of
 * its own; all of these are at the same position. */
typedef struct Frame {
    int64_t tokens, texts;
    int64_t position; /* the first token's, in its text */
    int64_t wanted;   /* of the last so many tokens, the logits */
    const int64_t *ids;
    const Rotation *rotations;
    const int64_t *held; /* positions that a block's cache holds before these tokens, by kind of block */
    float *logits;       /* (wanted, vocabulary) */
} Frame;

/* Bytes of a record: 0 Op, 1 Rotation, 2 Frame, 3 Attention, 4 Draw, which Python declares again and so tells a library
 * that was compiled from another header, and 5 Matrix. */
EXPORT int64_t gptcli_record_bytes(int record);

/* Runs a step; -1: no memory, or no such operation. */
EXPORT int gptcli_run(const Op *ops, int64_t count, const Frame *frame);

/* ---- sample.c ---- */

/* A token to be drawn: the settings of settings.py's SamplingConfig, whose filters are off where they say nothing. */
typedef struct Draw {
    const float *logits;
    int64_t vocabulary;
    const uint32_t *allowed; /* a bit a token, set if it may be drawn, the lowest bits first; NULL: all may */
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

/* ---- levels ---- */

/* What each instruction set implements; pointers as above. */
typedef struct Level {
    const char *name;
    void (*quantize)(const float *x, int64_t parts, int64_t width, int8_t *values, float *scales, float *sums,
                     int32_t *offsets);
    /* Codes records [begin, end) of weights and lists those it has to, `listed` being so far; or, if the matrix has no
     * memory yet, only counts these. NULL: this level decodes no faster than it reads. */
    int64_t (*encode)(Matrix *, const uint8_t *weights, int64_t begin, int64_t end, int64_t listed);
    void (*dense_blocks)(const Matrix *, const float *x, int64_t tokens, int64_t begin, int64_t end, const Output *);
    void (*affine_blocks)(const Matrix *, const Activations *, int64_t begin, int64_t end, const Output *);
    void (*exact_blocks)(const Matrix *, const float *x, int64_t tokens, int64_t begin, int64_t end, const Output *);
    /* Rows [begin, end) of any matrix; panel: PANEL_FLOATS of the calling thread's own, 64-byte aligned. */
    void (*panels)(const Matrix *, const float *x, int64_t tokens, int64_t begin, int64_t end, float *panel,
                   const Output *);
    /* Of one range, all heads that share kv_head; their results are `stride` apart. Then of all ranges, whose results
     * lie side by side and are used up, a head's output. */
    void (*attend)(const Attention *, int64_t kv_head, int64_t begin, int64_t end, float *partial, int64_t stride);
    void (*merge)(const Attention *, int64_t head, float *partials, int64_t ranges);
    void (*attend_passage)(const Passage *, int64_t kv_head, int64_t begin, int64_t end, const float *transposed,
                           float *workspace);
    void (*rms_norm)(const float *x, const float *weight, float epsilon, int64_t size, float *out);
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float epsilon, int64_t size,
                       float *out);
    void (*rope)(float *head, const float *cosines, const float *sines, int64_t dim);
    void (*activate)(int activation, const float *gate, const float *up, int64_t size, float *out);
    void (*exp)(const float *x, int64_t size, float *out);
    float (*greatest)(const float *x, int64_t size); /* of values that are numbers; -infinity of none */
} Level;

extern const Level portable_level;
#if GPTCLI_X86
extern const Level avx2_level, avx512_level;
#endif

/* The level in use: the best the processor has until another is set. */
const Level *level(void);

/* Whether this processor and its system have "portable", "avx2" or "avx512"; 1 or 0. */
EXPORT int gptcli_has_level(const char *name);

/* Uses a level from now on; -1 if it is not to be had. Not to be called while other threads compute. */
EXPORT int gptcli_set_level(const char *name);
EXPORT const char *gptcli_level(void);

/* ---- pool.c: what runs on all threads must not be called from inside a region ---- */

/* A share of some work; the calling thread is number 0. */
typedef void Task(void *argument, int thread, int threads);

/* How many threads a region uses, the caller's included; 1 to begin with. */
EXPORT int gptcli_set_threads(int threads);
EXPORT int gptcli_threads(void);

/* Between these two, one caller owns the threads and the workspace. */
void pool_lock(void);
void pool_unlock(void);

/* Runs task on thread 0 and on whichever threads turn up before it is done: for tasks that take their work from a
 * shared counter, so that a thread whose core is busy elsewhere is not waited for. The pool is locked. */
void pool_share(Task *task, void *argument);

/* Deals [0, count) out to the tasks of the next region: each thread has a stretch of its own, which ends at a multiple
 * of `even`. The pool is locked. */
void pool_deal(int64_t count, int64_t step, int64_t even);

/* The next piece, `step` of them or fewer: of the thread's stretch, and then of what is left of the others'; 0 where
 * there is none. So a thread reads one stream, whose next piece is on its way already, and still a slow one is helped.
 */
int pool_take(int thread, int64_t *begin, int64_t *end);

/* At least so many bytes, 64-byte aligned, good until the pool is unlocked; NULL: no memory. The pool is locked. */
void *pool_workspace(int64_t bytes);

#endif
