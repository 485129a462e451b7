/* Coding: bf16 and fp32 weights in fewer bytes, bit for bit.
 *
 * The exponents of a matrix's weights lie close together, so nearly all upper bytes (the sign and seven bits of the
 * exponent) are among sixteen, and four bits say which one. A record with any other upper byte spells its own out.
 */
#include "coded_layout.h"
#include "../kernels.h"

#include <stdlib.h>
#include <string.h>

enum {
    SAMPLED_RECORDS = 512, /* from which the sixteen are chosen; bytes that the sample misses only cost space */
    MOST_SPELLED = 16,     /* there is no coding if more than one record in this many would be spelled out */
};

typedef struct {
    Matrix *matrix;
    const uint8_t *weights;
    atomic_llong next; /* block */
} Coding;

/* Counts the listed records of each block while the matrix has no memory, then writes everything. */
static void encode_blocks(void *argument, int thread, int threads) {
    Coding *coding = argument;
    Matrix *matrix = coding->matrix;
    int64_t records = BLOCK * matrix->columns / RECORD;
    (void)thread, (void)threads;
    for (int64_t block; (block = atomic_fetch_add(&coding->next, 1)) < blocks_of(matrix);) {
        int64_t begin = block * records, all = records_of(matrix);
        int64_t end = begin + records < all ? begin + records : all;
        uint32_t *from = &matrix->spelled_from[block];
        if (matrix->packed == NULL)
            from[1] = (uint32_t)level()->encode(matrix, coding->weights, begin, end, 0);
        else
            level()->encode(matrix, coding->weights, begin, end, from[0]);
    }
}

/* Sets `tops` to the sixteen most frequent upper bytes of a sample. */
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

/* The number of listed records; from: (blocks + 1), as `spelled_from`. */
static int64_t count_listed(Coding *coding, uint32_t *from) {
    int64_t blocks = blocks_of(coding->matrix);
    coding->matrix->spelled_from = from;
    encode_all(coding);
    for (int64_t block = 0; block < blocks; block++) from[block + 1] += from[block];
    return from[blocks];
}

/* -1: too many records would be listed, or no memory. The pool is locked. */
static int encode_matrix(Coding *coding, int64_t records) {
    Matrix *matrix = coding->matrix;
    size_t from_bytes = ((size_t)blocks_of(matrix) + 1) * sizeof(uint32_t);
    uint32_t *from = calloc(1, from_bytes);
    if (from == NULL) return -1;
    matrix->listed = count_listed(coding, from);
    if (matrix->listed <= records / MOST_SPELLED) matrix->packed = chunk_memory(coded_bytes(matrix), &matrix->chunk);
    if (matrix->packed != NULL) {
        set_coded_pointers(matrix);
        memcpy(matrix->spelled_from, from, from_bytes);
        encode_all(coding);
    }
    free(from);
    return matrix->packed != NULL ? 0 : -1;
}

Matrix *gptcli_matrix_coded(int kind, const void *weights, int64_t rows, int64_t columns) {
    int64_t records = rows * columns / RECORD, size = kind == FLOAT32 ? 4 : 2;
    if (kind == FLOAT16 || columns % RECORD != 0 || records >= UINT32_MAX || level()->encode == NULL) return NULL;
    Matrix *matrix =
        matrix_new((Matrix){.kind = CODED, .rows = rows, .columns = columns, .rest_bytes = RECORD * (size - 1)});
    if (matrix == NULL) return NULL;
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
