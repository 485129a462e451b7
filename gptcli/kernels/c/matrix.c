/* Matrices: dense weights that are read in place, affine weights that are packed into our own memory. */
#include "coded_layout.h"
#include "kernels.h"
#include "numbers.h"

#include <stdlib.h>
#include <string.h>

static size_t size_of(Kind kind) { return kind == FLOAT32 ? 4 : 2; }

static float element(Kind kind, const void *values, int64_t i) {
    const uint8_t *bytes = (const uint8_t *)values + (size_t)i * size_of(kind);
    uint16_t half;
    float single;
    if (kind == FLOAT32) {
        memcpy(&single, bytes, sizeof single);
        return single;
    }
    memcpy(&half, bytes, sizeof half);
    return kind == FLOAT16 ? float_of_half(half) : float_of_bfloat(half);
}

/* ---- packing ---- */

typedef struct {
    Matrix *matrix;
    const uint8_t *q;
    const void *scales, *biases;
    Kind kind; /* of scales and biases */
    atomic_llong next; /* block */
    atomic_int uncentred;
} Packing;

/* Finds out whether the middle q stands for zero in all groups: then the scales imply the biases exactly. */
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

/* One group of one row: each line of the record gets the row's next four source bytes, nibbles rearranged. */
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

/* A group of a row in its record: the lines, and the index of the row's scale. */
typedef struct {
    uint8_t *record, *lines;
    int64_t scale;
} Group;

static Group find_group(const Matrix *matrix, int64_t row, int64_t group) {
    int64_t each = groups_in_record(matrix->constants), line_bytes = BLOCK * matrix->group * matrix->bits / 8;
    uint8_t *record = matrix->packed + row / BLOCK * matrix->block_bytes + group / each * matrix->record_bytes;
    uint8_t *lines = record + constants_bytes(matrix->constants) + group % each * line_bytes;
    return (Group){record, lines, group % each * BLOCK + row % BLOCK};
}

static void pack_row(const Packing *packing, int64_t row) {
    const Matrix *matrix = packing->matrix;
    int64_t groups = matrix->columns / matrix->group, group_bytes = matrix->group * matrix->bits / 8;
    for (int64_t i = 0; i < groups; i++) {
        int64_t from = row * groups + i;
        Group group = find_group(matrix, row, i);
        pack_constant(packing, packing->scales, from, group.record, group.scale);
        if (matrix->constants != CENTRED)
            pack_constant(packing, packing->biases, from, group.record, BLOCK + group.scale);
        pack_group(packing->q + from * group_bytes, matrix->bits, group_bytes, group.lines + row % BLOCK * 4);
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

/* Two groups' scales fill a cache line only in fp16, and only an even number of groups can be paired. */
static Constants constants_of(Packing *packing) {
    const Matrix *matrix = packing->matrix;
    if (packing->kind != FLOAT16) return SINGLES;
    if (matrix->columns / matrix->group % groups_in_record(CENTRED) != 0) return HALVES;
    pool_share(compare_biases, packing);
    atomic_store(&packing->next, 0);
    return packing->uncentred ? HALVES : CENTRED;
}

/* ---- making and freeing ---- */

Matrix *gptcli_matrix_dense(int kind, const void *weights, int64_t rows, int64_t columns) {
    int64_t block_bytes = BLOCK * columns * (int64_t)size_of((Kind)kind);
    return matrix_new((Matrix){
        .kind = (Kind)kind, .rows = rows, .columns = columns, .block_bytes = block_bytes, .dense = weights});
}

Matrix *gptcli_matrix_affine(const uint8_t *q, const void *scales, const void *biases, int constants, int64_t rows,
                             int64_t columns, int bits, int64_t group) {
    if ((bits != 4 && bits != 8) || group <= 0 || group % SEGMENT != 0 || columns % group != 0) return NULL;
    Matrix *matrix =
        matrix_new((Matrix){.kind = AFFINE, .bits = bits, .rows = rows, .columns = columns, .group = group});
    if (matrix == NULL) return NULL;
    Packing packing = {matrix, q, scales, biases, (Kind)constants, 0, 0};
    pool_lock();
    matrix->constants = constants_of(&packing);
    int64_t each = groups_in_record(matrix->constants);
    matrix->record_bytes = constants_bytes(matrix->constants) + each * BLOCK * group * bits / 8;
    matrix->block_bytes = columns / group / each * matrix->record_bytes;
    matrix->packed = chunk_memory(blocks_of(matrix) * matrix->block_bytes, &matrix->chunk);
    if (matrix->packed != NULL) pool_share(pack_blocks, &packing);
    pool_unlock();
    if (matrix->packed != NULL) return matrix;
    free(matrix);
    return NULL;
}

int gptcli_matrix_set_arithmetic(Matrix *matrix, int arithmetic) {
    int affine = matrix->kind == AFFINE, narrow = matrix->kind == CODED && matrix->rest_bytes == RECORD;
    int possible = arithmetic == INT8_PRODUCTS ? affine : affine || narrow || matrix->kind == BFLOAT16;
    matrix->arithmetic = possible ? (Arithmetic)arithmetic : FP32_PRODUCTS;
    if (matrix->arithmetic == BF16_PRODUCTS && level()->bf16_panels == NULL) return FP32_PRODUCTS;
    return matrix->arithmetic;
}

void gptcli_matrix_free(Matrix *matrix) {
    if (matrix == NULL) return;
    if (matrix->chunk != NULL) chunk_release(matrix->chunk);
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
    Matrix *matrix = matrix_new(*record);
    if (matrix == NULL) return NULL;
    matrix->chunk = NULL;
    if (matrix->kind == AFFINE || matrix->kind == CODED)
        matrix->packed = (uint8_t *)data;
    else
        matrix->dense = data;
    if (matrix->kind == CODED) set_coded_pointers(matrix);
    return matrix;
}

/* ---- a row in fp32 ---- */

static int quant_at(const Matrix *matrix, const uint8_t *lines, int64_t lane, int64_t column) {
    int64_t line_columns = 32 / matrix->bits;
    int byte = lines[column / line_columns * CACHE_LINE + lane * 4 + column % 4];
    if (matrix->bits == 8) return byte;
    return column % line_columns < 4 ? byte & 15 : byte >> 4;
}

static void affine_row(const Matrix *matrix, int64_t row, float *out) {
    Kind kind = matrix->constants == SINGLES ? FLOAT32 : FLOAT16;
    for (int64_t i = 0; i < matrix->columns / matrix->group; i++, out += matrix->group) {
        Group group = find_group(matrix, row, i);
        float scale = element(kind, group.record, group.scale), bias = scale * -(float)middle_of(matrix->bits);
        if (matrix->constants != CENTRED) bias = element(kind, group.record, BLOCK + group.scale);
        for (int64_t column = 0; column < matrix->group; column++)
            out[column] = scale * (float)quant_at(matrix, group.lines, row % BLOCK, column) + bias;
    }
}

static void coded_row(const Matrix *matrix, int64_t row, float *out) {
    int64_t records = matrix->columns / RECORD, first = row * records;
    for (int64_t record = first; record < first + records; record++, out += RECORD)
        decode_columns(matrix, matrix->packed + record * CODE_BYTES, matrix->rest + record * matrix->rest_bytes,
                       spelled_tops(matrix, record), out);
}

void gptcli_matrix_row(const Matrix *matrix, int64_t row, float *out) {
    switch (matrix->kind) {
    case AFFINE: affine_row(matrix, row, out); return;
    case CODED: coded_row(matrix, row, out); return;
    default:
        for (int64_t i = 0; i < matrix->columns; i++)
            out[i] = element(matrix->kind, matrix->dense, row * matrix->columns + i);
    }
}
