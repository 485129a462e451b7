/* Coded matrices: bf16 and fp32 weights in fewer bytes, bit for bit.
 *
 * Exponents of a matrix's weights lie close together, so that the upper bytes (sign, seven bits of the exponent) are
 * nearly all among sixteen, and four bits say which. A record with any other byte has its upper bytes spelled out.
 */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

enum {
    SAMPLED_RECORDS = 512, /* by which the sixteen are chosen; what they miss costs space alone */
    MOST_SPELLED = 16,      /* one record of so many: with more it is no longer worth it */
};

typedef struct {
    Matrix *matrix;
    const uint8_t *weights;
    atomic_llong next; /* block */
} Coding;

/* Before there is memory for it this counts the records that are to be listed, and then it writes all. */
static void encode_blocks(void *argument, int thread, int threads) {
    Coding *coding = argument;
    Matrix *matrix = coding->matrix;
    int64_t records = BLOCK * matrix->columns / RECORD;
    (void)thread, (void)threads;
    for (int64_t block; (block = atomic_fetch_add(&coding->next, 1)) < blocks_of(matrix);) {
        int64_t begin = block * records, all = matrix->rows * matrix->columns / RECORD;
        int64_t end = begin + records < all ? begin + records : all;
        uint32_t *from = &matrix->spelled_from[block];
        if (matrix->packed == NULL)
            from[1] = (uint32_t)level()->encode(matrix, coding->weights, begin, end, 0);
        else
            level()->encode(matrix, coding->weights, begin, end, from[0]);
    }
}

/* The sixteen upper bytes that are the most frequent in a sample. */
static void choose_tops(Coding *coding, int64_t size, int64_t records) {
    int64_t counts[256] = {0}, step = (records + SAMPLED_RECORDS - 1) / SAMPLED_RECORDS;
    for (int64_t record = 0; record < records; record += step)
        for (int64_t i = 0; i < RECORD; i++)
            counts[coding->weights[(record * RECORD + i + 1) * size - 1]]++;
    for (int code = 0; code < 16; code++) {
        int most = 0;
        for (int byte = 1; byte < 256; byte++)
            if (counts[byte] > counts[most]) most = byte;
        coding->matrix->tops[code] = (uint8_t)most;
        counts[most] = -1;
    }
}

static void encode_all(Coding *coding) {
    atomic_store(&coding->next, 0);
    pool_share(encode_blocks, coding);
}

/* How many records are to be listed, with where each block's begin in `from`. */
static int64_t count_listed(Coding *coding, uint32_t *from) {
    int64_t blocks = blocks_of(coding->matrix);
    coding->matrix->spelled_from = from;
    encode_all(coding);
    for (int64_t block = 0; block < blocks; block++) from[block + 1] += from[block];
    return from[blocks];
}

/* -1: too many records are to be listed, or no memory. The pool is locked. */
static int encode_matrix(Coding *coding, int64_t records) {
    Matrix *matrix = coding->matrix;
    size_t from_bytes = ((size_t)blocks_of(matrix) + 1) * sizeof(uint32_t);
    uint32_t *from = calloc(1, from_bytes);
    if (from == NULL) return -1;
    matrix->listed = count_listed(coding, from);
    if (matrix->listed <= records / MOST_SPELLED) matrix->packed = matrix_memory(coded_bytes(matrix), &matrix->chunk);
    if (matrix->packed != NULL) {
        coded_place(matrix);
        memcpy(matrix->spelled_from, from, from_bytes);
        encode_all(coding);
    }
    free(from);
    return matrix->packed != NULL ? 0 : -1;
}

Matrix *gptcli_matrix_coded(int kind, const void *weights, int64_t rows, int64_t columns) {
    int64_t records = rows * columns / RECORD, size = kind == FLOAT32 ? 4 : 2;
    if (kind == FLOAT16 || columns % RECORD != 0 || records >= UINT32_MAX || level()->encode == NULL) return NULL;
    Matrix *matrix = matrix_new(CODED, rows, columns);
    if (matrix == NULL) return NULL;
    matrix->rest_bytes = RECORD * (size - 1);
    matrix->block_bytes = BLOCK * columns / RECORD * (CODE_BYTES + matrix->rest_bytes);
    Coding coding = {.matrix = matrix, .weights = weights};
    choose_tops(&coding, size, records);
    pool_lock();
    int status = encode_matrix(&coding, records);
    pool_unlock();
    if (status == 0) return matrix;
    gptcli_matrix_free(matrix);
    return NULL;
}

/* ---- what is coded ---- */

static int64_t records_of(const Matrix *matrix) { return matrix->rows * matrix->columns / RECORD; }

static int64_t code_bytes(const Matrix *matrix) {
    return (records_of(matrix) * CODE_BYTES + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
}

void coded_place(Matrix *matrix) {
    matrix->rest = matrix->packed + code_bytes(matrix);
    matrix->spelled = matrix->rest + records_of(matrix) * matrix->rest_bytes;
    matrix->spelled_records = (uint32_t *)(matrix->spelled + matrix->listed * RECORD);
    matrix->spelled_from = matrix->spelled_records + matrix->listed;
}

int64_t coded_bytes(const Matrix *matrix) {
    return code_bytes(matrix) + records_of(matrix) * matrix->rest_bytes + matrix->listed * RECORD +
           (matrix->listed + blocks_of(matrix) + 1) * (int64_t)sizeof(uint32_t);
}

const uint8_t *spelled_tops(const Matrix *matrix, int64_t record) {
    int64_t block = record * RECORD / matrix->columns / BLOCK;
    int64_t low = matrix->spelled_from[block], end = matrix->spelled_from[block + 1];
    end = end < matrix->listed ? end : matrix->listed;
    while (low < end) {
        int64_t middle = (low + end) / 2;
        if (matrix->spelled_records[middle] < record)
            low = middle + 1;
        else
            end = middle;
    }
    return listed_record(matrix, low) == record ? matrix->spelled + low * RECORD : NULL;
}

void decode_columns(const Matrix *matrix, const uint8_t *codes, const uint8_t *rest, const uint8_t *spelled,
                    float *out) {
    for (int64_t i = 0; i < RECORD; i++) {
        int64_t place = place_in_record(i);
        uint8_t code = place < CODE_BYTES ? codes[place] & 15 : codes[place - CODE_BYTES] >> 4;
        uint32_t top = spelled != NULL ? spelled[place] : matrix->tops[code];
        uint32_t bits = top << 24 | (uint32_t)rest[place] << 16;
        if (matrix->rest_bytes > RECORD) {
            uint16_t low;
            memcpy(&low, rest + RECORD + 2 * low_in_record(i), sizeof low);
            bits |= low;
        }
        memcpy(&out[i], &bits, sizeof bits);
    }
}
