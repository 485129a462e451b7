/* Matrices: weights read in place, or repacked into memory of our own. */
#define _DEFAULT_SOURCE /* madvise */
#include "kernels.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- memory ----
 *
 * Reading gigabytes through pages of 4 KB loses a good part of the bandwidth to address translation, and a matrix of
 * its own huge pages wastes a megabyte on average. So matrices are laid one behind another in large chunks, of which
 * the system commits only what is written. A chunk goes when its last matrix goes.
 */

#define HUGE_PAGE ((size_t)2 << 20)
#ifndef CHUNK_BYTES /* the sanitizers' build makes it 0: each matrix then ends where its memory does */
#define CHUNK_BYTES ((size_t)64 << 20)
#endif

typedef struct Chunk {
    uint8_t *memory;
    size_t size, used;
    int matrices;
} Chunk;

static pthread_mutex_t chunks_lock = PTHREAD_MUTEX_INITIALIZER;
static Chunk *open_chunk; /* the one that new matrices go to */

static void free_if_unused(Chunk *chunk) {
    if (chunk == NULL || chunk->matrices > 0 || chunk == open_chunk) return;
    free(chunk->memory);
    free(chunk);
}

static Chunk *new_chunk(size_t size) {
    Chunk *chunk = calloc(1, sizeof *chunk);
    if (chunk == NULL) return NULL;
    if (posix_memalign((void **)&chunk->memory, HUGE_PAGE, size) != 0) {
        free(chunk);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    madvise(chunk->memory, size, MADV_HUGEPAGE);
#endif
    chunk->size = size;
    return chunk;
}

uint8_t *matrix_memory(int64_t size, Chunk **owner) {
    size_t bytes = ((size_t)size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    pthread_mutex_lock(&chunks_lock);
    if (open_chunk == NULL || open_chunk->size - open_chunk->used < bytes) {
        Chunk *full = open_chunk;
        open_chunk = new_chunk(bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES);
        free_if_unused(full);
    }
    uint8_t *memory = NULL;
    if (open_chunk != NULL) {
        memory = open_chunk->memory + open_chunk->used;
        open_chunk->used += bytes;
        open_chunk->matrices++;
    }
    *owner = open_chunk;
    pthread_mutex_unlock(&chunks_lock);
    return memory;
}

static void release(Chunk *chunk) {
    pthread_mutex_lock(&chunks_lock);
    if (--chunk->matrices == 0) {
        if (chunk == open_chunk) open_chunk = NULL;
        free_if_unused(chunk);
    }
    pthread_mutex_unlock(&chunks_lock);
}

/* ---- numbers ---- */

static float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13); /* infinite, or not a number */
    /* Read as a float, its exponent is 112 too small; the product is exact, subnormals included. */
    return float_of_bits(sign | 0x3f800000) * (float_of_bits(rest << 13) * 0x1p112f);
}

float float_of_bfloat(uint16_t bfloat) { return float_of_bits((uint32_t)bfloat << 16); }

static size_t size_of(Kind kind) { return kind == FLOAT32 ? 4 : 2; }

static float element(Kind kind, const void *values, int64_t i) {
    const uint8_t *place = (const uint8_t *)values + (size_t)i * size_of(kind);
    uint16_t half;
    float single;
    if (kind == FLOAT32) {
        memcpy(&single, place, sizeof single);
        return single;
    }
    memcpy(&half, place, sizeof half);
    return kind == FLOAT16 ? float_of_half(half) : float_of_bfloat(half);
}

/* ---- packing ---- */

typedef struct {
    Matrix *matrix;
    const uint8_t *q;
    const void *scales, *biases;
    Kind kind; /* of these */
    atomic_llong next; /* block */
    atomic_int uncentred;
} Packing;

/* Finds out whether the middle q stands for zero in all groups: the scales tell the biases then, exactly. */
static void compare_biases(void *argument, int thread, int threads) {
    Packing *packing = argument;
    const Matrix *matrix = packing->matrix;
    int64_t groups = matrix->columns / matrix->group;
    (void)thread, (void)threads;
    for (int64_t block; (block = atomic_fetch_add(&packing->next, 1)) < blocks_of(matrix);) {
        int64_t end = (block + 1) * BLOCK < matrix->rows ? (block + 1) * BLOCK : matrix->rows;
        for (int64_t i = block * BLOCK * groups; i < end * groups; i++) {
            float scale = element(packing->kind, packing->scales, i), bias = element(packing->kind, packing->biases, i);
            if (bias == scale * -(float)middle_of(matrix->bits)) continue;
            atomic_store(&packing->uncentred, 1);
            atomic_store(&packing->next, blocks_of(matrix));
            return;
        }
    }
}

/* Four nibbles, the first in the lowest bits, to four bytes. */
static uint32_t spread(uint32_t nibbles) {
    nibbles = (nibbles | nibbles << 8) & 0x00ff00ff;
    return (nibbles | nibbles << 4) & 0x0f0f0f0f;
}

static uint32_t word_at(const uint8_t *bytes) {
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

/* One group of one row: its place in each line of the record gets the next four source bytes, nibbles rearranged. */
static void pack_group(const uint8_t *source, int bits, int64_t bytes, uint8_t *lines) {
    for (int64_t i = 0; i < bytes; i += 4) {
        uint32_t word = word_at(source + i);
        if (bits == 4) word = spread(word & 0xffff) | spread(word >> 16) << 4;
        memcpy(lines + i * BLOCK, &word, sizeof word);
    }
}

static void pack_constant(const Packing *packing, const void *source, int64_t from, uint8_t *record, int64_t to) {
    if (packing->matrix->constants != SINGLES) {
        memcpy(record + to * 2, (const uint8_t *)source + from * 2, 2);
    } else {
        float value = element(packing->kind, source, from);
        memcpy(record + to * 4, &value, sizeof value);
    }
}

/* Where a row has a group's constants, the first at `scale`, and its lines. */
typedef struct {
    uint8_t *record, *lines;
    int64_t scale;
} Place;

static Place find_group(const Matrix *matrix, int64_t row, int64_t group) {
    int64_t each = groups_in_record(matrix->constants), line_bytes = BLOCK * matrix->group * matrix->bits / 8;
    uint8_t *record = matrix->packed + row / BLOCK * matrix->block_bytes + group / each * matrix->record_bytes;
    uint8_t *lines = record + constants_bytes(matrix->constants) + group % each * line_bytes;
    return (Place){record, lines, group % each * BLOCK + row % BLOCK};
}

static void pack_row(const Packing *packing, int64_t row) {
    const Matrix *matrix = packing->matrix;
    int64_t groups = matrix->columns / matrix->group, group_bytes = matrix->group * matrix->bits / 8;
    for (int64_t group = 0; group < groups; group++) {
        int64_t from = row * groups + group;
        Place place = find_group(matrix, row, group);
        pack_constant(packing, packing->scales, from, place.record, place.scale);
        if (matrix->constants != CENTRED)
            pack_constant(packing, packing->biases, from, place.record, BLOCK + place.scale);
        pack_group(packing->q + from * group_bytes, matrix->bits, group_bytes, place.lines + row % BLOCK * 4);
    }
}

static void pack_blocks(void *argument, int thread, int threads) {
    Packing *packing = argument;
    const Matrix *matrix = packing->matrix;
    (void)thread, (void)threads;
    for (int64_t block; (block = atomic_fetch_add(&packing->next, 1)) < blocks_of(matrix);) {
        int64_t end = (block + 1) * BLOCK;
        if (end > matrix->rows) {
            memset(matrix->packed + block * matrix->block_bytes, 0, (size_t)matrix->block_bytes);
            end = matrix->rows;
        }
        for (int64_t row = block * BLOCK; row < end; row++) pack_row(packing, row);
    }
}

/* ---- the library's face ---- */

Matrix *matrix_new(Kind kind, int64_t rows, int64_t columns) {
    Matrix *matrix = calloc(1, sizeof *matrix);
    if (matrix == NULL) return NULL;
    matrix->kind = kind;
    matrix->rows = rows;
    matrix->columns = columns;
    return matrix;
}

Matrix *gptcli_matrix_dense(int kind, const void *weights, int64_t rows, int64_t columns) {
    Matrix *matrix = matrix_new((Kind)kind, rows, columns);
    if (matrix == NULL) return NULL;
    matrix->dense = weights;
    matrix->block_bytes = BLOCK * columns * (int64_t)size_of((Kind)kind);
    return matrix;
}

/* Two groups' scales fill a line only in fp16; where groups are odd in number the last would be alone. */
static Constants constants_of(Packing *packing) {
    const Matrix *matrix = packing->matrix;
    if (packing->kind != FLOAT16) return SINGLES;
    if (matrix->columns / matrix->group % groups_in_record(CENTRED) != 0) return HALVES;
    pool_share(compare_biases, packing);
    atomic_store(&packing->next, 0);
    return packing->uncentred ? HALVES : CENTRED;
}

Matrix *gptcli_matrix_affine(const uint8_t *q, const void *scales, const void *biases, int constants, int64_t rows,
                             int64_t columns, int bits, int64_t group) {
    if ((bits != 4 && bits != 8) || group <= 0 || group % PART != 0 || columns % group != 0) return NULL;
    Matrix *matrix = matrix_new(AFFINE, rows, columns);
    if (matrix == NULL) return NULL;
    matrix->bits = bits;
    matrix->group = group;
    Packing packing = {matrix, q, scales, biases, (Kind)constants, 0, 0};
    pool_lock();
    matrix->constants = constants_of(&packing);
    int64_t each = groups_in_record(matrix->constants);
    matrix->record_bytes = constants_bytes(matrix->constants) + each * BLOCK * group * bits / 8;
    matrix->block_bytes = columns / group / each * matrix->record_bytes;
    matrix->packed = matrix_memory(blocks_of(matrix) * matrix->block_bytes, &matrix->chunk);
    if (matrix->packed != NULL) pool_share(pack_blocks, &packing);
    pool_unlock();
    if (matrix->packed != NULL) return matrix;
    free(matrix);
    return NULL;
}

void gptcli_matrix_round_activations(Matrix *matrix) { matrix->integers = matrix->kind == AFFINE; }

void gptcli_matrix_free(Matrix *matrix) {
    if (matrix == NULL) return;
    if (matrix->chunk != NULL) release(matrix->chunk);
    free(matrix);
}

const void *gptcli_matrix_data(const Matrix *matrix, int64_t *bytes) {
    switch (matrix->kind) {
    case AFFINE: *bytes = blocks_of(matrix) * matrix->block_bytes; return matrix->packed;
    case CODED: *bytes = coded_bytes(matrix); return matrix->packed;
    default: *bytes = matrix->rows * matrix->columns * (int64_t)size_of(matrix->kind); return matrix->dense;
    }
}

Matrix *gptcli_matrix_restored(const Matrix *record, const void *data) {
    Matrix *matrix = malloc(sizeof *matrix);
    if (matrix == NULL) return NULL;
    *matrix = *record;
    matrix->chunk = NULL;
    if (matrix->kind == AFFINE || matrix->kind == CODED)
        matrix->packed = (uint8_t *)data;
    else
        matrix->dense = data;
    if (matrix->kind == CODED) coded_place(matrix);
    return matrix;
}

static int quant_at(const Matrix *matrix, const uint8_t *lines, int64_t lane, int64_t column) {
    int64_t a_line = 32 / matrix->bits; /* columns */
    int byte = lines[column / a_line * CACHE_LINE + lane * 4 + column % 4];
    if (matrix->bits == 8) return byte;
    return column % a_line < 4 ? byte & 15 : byte >> 4;
}

static void coded_row(const Matrix *matrix, int64_t row, float *out) {
    int64_t records = matrix->columns / RECORD, first = row * records;
    for (int64_t i = 0; i < records; i++)
        decode_columns(matrix, matrix->packed + (first + i) * CODE_BYTES, matrix->rest + (first + i) * matrix->rest_bytes,
                       spelled_tops(matrix, first + i), out + i * RECORD);
}

static void affine_row(const Matrix *matrix, int64_t row, float *out) {
    Kind kind = matrix->constants == SINGLES ? FLOAT32 : FLOAT16;
    for (int64_t group = 0; group < matrix->columns / matrix->group; group++, out += matrix->group) {
        Place place = find_group(matrix, row, group);
        float scale = element(kind, place.record, place.scale), bias = scale * -(float)middle_of(matrix->bits);
        if (matrix->constants != CENTRED) bias = element(kind, place.record, BLOCK + place.scale);
        for (int64_t i = 0; i < matrix->group; i++)
            out[i] = scale * (float)quant_at(matrix, place.lines, row % BLOCK, i) + bias;
    }
}

void gptcli_matrix_row(const Matrix *matrix, int64_t row, float *out) {
    if (matrix->kind == CODED) {
        coded_row(matrix, row, out);
        return;
    }
    if (matrix->kind != AFFINE) {
        for (int64_t i = 0; i < matrix->columns; i++)
            out[i] = element(matrix->kind, matrix->dense, row * matrix->columns + i);
        return;
    }
    affine_row(matrix, row, out);
}
