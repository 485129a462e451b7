/* Matrices: dense weights that are read in place, affine weights that are packed into our own memory. */
#include "coded_layout.h"
#include "../kernels.h"
#include "../conversions.h"

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

/* Quants of a byte each, and constants for them; see gptcli_matrix_quants. */
typedef struct {
    Matrix *matrix;
    const uint8_t *q;
    const uint16_t *factors, *bias_factors;
    const uint8_t *scales, *biases;
    atomic_llong next; /* block */
} Quants;

/* A segment of one row: 32 bytes to the row's words in the segment's lines. */
static void pack_segment(const uint8_t *q, int bits, uint8_t *lines) {
    uint32_t words[6] = {0}; /* four of lower halves, then the upper bits */
    int upper_bits = bits - 4;
    for (int step = 0; step < SEGMENT / 4; step++) {
        uint32_t four = word_at(q + 4 * step), upper = four >> 4 & (upper_bits == 2 ? 0x03030303 : 0x01010101);
        words[step / 2] |= (four & 0x0f0f0f0f) << step % 2 * 4;
        if (upper_bits > 0) words[4 + step * upper_bits / 8] |= upper << step * upper_bits % 8;
    }
    for (int i = 0; i < bits; i++) memcpy(lines + i * CACHE_LINE, &words[i], sizeof words[i]);
}

static void pack_quants_row(const Quants *from, int64_t row) {
    const Matrix *matrix = from->matrix;
    const Constants constants = matrix->constants;
    int64_t columns = matrix->columns, lane = row % BLOCK, nested = is_nested(constants);
    int64_t span = groups_in_record(constants) * matrix->group, groups = columns / matrix->group;
    int64_t factors = columns / (nested ? SUPER_BLOCK : matrix->group);
    for (int64_t column = 0; column < columns; column += SEGMENT) {
        uint8_t *record = matrix->packed + row / BLOCK * matrix->block_bytes + column / span * matrix->record_bytes;
        uint8_t *lines = record + constants_bytes(constants) + column % span * BLOCK * matrix->bits / 8;
        pack_segment(from->q + row * columns + column, matrix->bits, lines + lane * 4);
        int64_t at = nested ? 0 : column % span / matrix->group * BLOCK, index = row * factors;
        index += column / (nested ? SUPER_BLOCK : matrix->group);
        memcpy(record + (at + lane) * 2, &from->factors[index], 2);
        if (has_biases(constants)) memcpy(record + (BLOCK + lane) * 2, &from->bias_factors[index], 2);
        for (int64_t part = 0; nested && part < SEGMENT; part += matrix->group) {
            int64_t group = (column + part) / matrix->group, inside = group % groups_in_record(constants);
            uint8_t *bytes = record + CACHE_LINE + inside * BLOCK * (constants == NESTED ? 2 : 1) + lane;
            bytes[0] = from->scales[row * groups + group];
            if (constants == NESTED) bytes[BLOCK] = from->biases[row * groups + group];
        }
    }
}

static void pack_quants(void *argument, int thread, int threads) {
    Quants *from = argument;
    const Matrix *matrix = from->matrix;
    (void)thread, (void)threads;
    for (int64_t block; (block = atomic_fetch_add(&from->next, 1)) < blocks_of(matrix);) {
        memset(matrix->packed + block * matrix->block_bytes, 0, (size_t)matrix->block_bytes);
        for (int64_t row = block * BLOCK; row < (block + 1) * BLOCK && row < matrix->rows; row++)
            pack_quants_row(from, row);
    }
}

/* ---- making and freeing ---- */

/* Allocates the weights of an affine matrix whose constants are set. -1: no memory. */
static int allocate(Matrix *matrix) {
    int64_t each = groups_in_record(matrix->constants);
    matrix->record_bytes = constants_bytes(matrix->constants) + each * BLOCK * matrix->group * matrix->bits / 8;
    matrix->block_bytes = matrix->columns / matrix->group / each * matrix->record_bytes;
    matrix->packed = chunk_memory(blocks_of(matrix) * matrix->block_bytes, &matrix->chunk);
    return matrix->packed != NULL ? 0 : -1;
}

Matrix *gptcli_matrix_quants(const uint8_t *q, const uint16_t *factors, const uint16_t *bias_factors,
                             const uint8_t *scales, const uint8_t *biases, const uint8_t *codes, int64_t rows,
                             int64_t columns, int bits, int constants) {
    int64_t group = constants == NESTED_CENTRED ? HALF_SEGMENT : SEGMENT;
    if (columns % (group * groups_in_record((Constants)constants)) != 0) return NULL;
    Matrix *matrix = matrix_new((Matrix){.kind = AFFINE,
                                         .bits = bits,
                                         .constants = (Constants)constants,
                                         .rows = rows,
                                         .columns = columns,
                                         .group = group});
    if (matrix == NULL) return NULL;
    if (codes != NULL) memcpy(matrix->codes, codes, sizeof matrix->codes);
    Quants from = {matrix, q, factors, bias_factors, scales, biases, 0};
    pool_lock();
    int status = allocate(matrix);
    if (status == 0) pool_share(pack_quants, &from);
    pool_unlock();
    if (status == 0) return matrix;
    free(matrix);
    return NULL;
}

Matrix *gptcli_matrix_dense(int kind, const void *weights, int64_t rows, int64_t columns) {
    int64_t block_bytes = BLOCK * columns * (int64_t)size_of((Kind)kind);
    return matrix_new((Matrix){
        .kind = (Kind)kind, .rows = rows, .columns = columns, .block_bytes = block_bytes, .dense = weights});
}

Matrix *gptcli_matrix_affine(const uint8_t *q, const void *scales, const void *biases, int kind, int64_t rows,
                             int64_t columns, int bits, int64_t group) {
    if ((bits != 4 && bits != 8) || group <= 0 || group % SEGMENT != 0 || columns % group != 0) return NULL;
    Matrix *matrix =
        matrix_new((Matrix){.kind = AFFINE, .bits = bits, .rows = rows, .columns = columns, .group = group});
    if (matrix == NULL) return NULL;
    Packing packing = {matrix, q, scales, biases, (Kind)kind, 0, 0};
    pool_lock();
    matrix->constants = constants_of(&packing);
    int status = allocate(matrix);
    if (status == 0) pool_share(pack_blocks, &packing);
    pool_unlock();
    if (status == 0) return matrix;
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

Matrix *gptcli_matrix_restored(const Matrix *fields, const void *data) {
    Matrix *matrix = matrix_new(*fields);
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

/* A weight's q, as a dot product has it, from the lines of its segment. */
static int quant_at(const Matrix *matrix, const uint8_t *lines, int64_t lane, int64_t column) {
    int64_t step = column / 4, byte = lane * 4 + column % 4;
    if (matrix->bits == 8) return lines[step * CACHE_LINE + byte];
    int q = lines[step / 2 * CACHE_LINE + byte] >> step % 2 * 4 & 15;
    if (matrix->bits == 5) q |= (lines[4 * CACHE_LINE + byte] >> step & 1) << 4;
    if (matrix->bits == 6) q |= (lines[(4 + step / 4) * CACHE_LINE + byte] >> step % 4 * 2 & 3) << 4;
    return is_looked_up(matrix->constants) ? matrix->codes[q] : q;
}

static float scale_of(const Matrix *matrix, const uint8_t *record, int64_t group, int64_t lane) {
    switch (matrix->constants) {
    case SINGLES: return element(FLOAT32, record, group * BLOCK + lane);
    case LOOKED_UP_WIDE: return element(BFLOAT16, record, group * BLOCK + lane);
    case NESTED: return element(FLOAT16, record, lane) * record[CACHE_LINE + 2 * group * BLOCK + lane];
    case NESTED_CENTRED: return element(FLOAT16, record, lane) * (int8_t)record[CACHE_LINE + group * BLOCK + lane];
    default: return element(FLOAT16, record, group * BLOCK + lane);
    }
}

static float bias_of(const Matrix *matrix, const uint8_t *record, int64_t group, int64_t lane) {
    switch (matrix->constants) {
    case SINGLES: return element(FLOAT32, record, BLOCK + lane);
    case HALVES: return element(FLOAT16, record, BLOCK + lane);
    case NESTED: return -element(FLOAT16, record, BLOCK + lane) * record[CACHE_LINE + (2 * group + 1) * BLOCK + lane];
    default: return scale_of(matrix, record, group, lane) *
                    -(float)middle_of(is_looked_up(matrix->constants) ? 8 : matrix->bits);
    }
}

static void affine_row(const Matrix *matrix, int64_t row, float *out) {
    const Constants constants = matrix->constants;
    const int64_t span = groups_in_record(constants) * matrix->group, lane = row % BLOCK;
    const uint8_t *block = matrix->packed + row / BLOCK * matrix->block_bytes;
    for (int64_t column = 0; column < matrix->columns; column += HALF_SEGMENT) { /* the least group */
        const int64_t inside = column % span, group = inside / matrix->group;
        const uint8_t *record = block + column / span * matrix->record_bytes;
        const uint8_t *lines = record + constants_bytes(constants) + inside / SEGMENT * SEGMENT * BLOCK * matrix->bits / 8;
        const float scale = scale_of(matrix, record, group, lane), bias = bias_of(matrix, record, group, lane);
        for (int64_t i = 0; i < HALF_SEGMENT; i++)
            out[column + i] = scale * (float)quant_at(matrix, lines, lane, inside % SEGMENT + i) + bias;
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
