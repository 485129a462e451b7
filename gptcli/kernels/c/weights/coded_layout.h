/* Addresses within coded matrices (kernels.h describes the layout), and decoding of one record without vectors. */
#pragma once

#include "../kernels.h"

#include <string.h>

/* The index in a record of a column's code and next byte, and of its lower word. Vector instructions that interleave
 * bytes, then words, within 128 bits restore the columns' order. */
static inline int64_t code_index(int64_t column) { return column % 16 / 4 * 16 + column / 16 * 4 + column % 4; }
static inline int64_t word_index(int64_t column) {
    return column / 32 * 32 + column % 16 / 4 * 8 + column / 16 % 2 * 4 + column % 4;
}

static inline int64_t records_of(const Matrix *matrix) { return matrix->rows * matrix->columns / RECORD; }

static inline int64_t code_bytes(const Matrix *matrix) {
    return (records_of(matrix) * CODE_BYTES + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
}

static inline int64_t coded_bytes(const Matrix *matrix) {
    return code_bytes(matrix) + records_of(matrix) * matrix->rest_bytes + matrix->listed * RECORD +
           (matrix->listed + blocks_of(matrix) + 1) * (int64_t)sizeof(uint32_t);
}

/* Sets the pointers to what follows `packed`. */
static inline void set_coded_pointers(Matrix *matrix) {
    matrix->rest = matrix->packed + code_bytes(matrix);
    matrix->spelled = matrix->rest + records_of(matrix) * matrix->rest_bytes;
    matrix->spelled_records = (uint32_t *)(matrix->spelled + matrix->listed * RECORD);
    matrix->spelled_from = matrix->spelled_records + matrix->listed;
}

/* The number of a listed record; past the last, a number that no record has. The index is checked, because it comes from
 * memory that a damaged file may have filled. */
static inline int64_t listed_record(const Matrix *matrix, int64_t index) {
    return index < matrix->listed ? matrix->spelled_records[index] : INT64_MAX;
}

/* The index of the first listed record from `record` on, which may belong to a later block. */
static inline int64_t first_listed(const Matrix *matrix, int64_t record) {
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
    return low;
}

/* The upper bytes of a record if it is listed, else NULL. */
static inline const uint8_t *spelled_tops(const Matrix *matrix, int64_t record) {
    int64_t index = first_listed(matrix, record);
    return listed_record(matrix, index) == record ? matrix->spelled + index * RECORD : NULL;
}

/* A record's columns in fp32. spelled: its upper bytes, or NULL. */
static inline void decode_columns(const Matrix *matrix, const uint8_t *codes, const uint8_t *rest,
                                  const uint8_t *spelled, float *out) {
    for (int64_t i = 0; i < RECORD; i++) {
        int64_t index = code_index(i);
        uint8_t code = index < CODE_BYTES ? codes[index] & 15 : codes[index - CODE_BYTES] >> 4;
        uint32_t top = spelled != NULL ? spelled[index] : matrix->tops[code];
        uint32_t bits = top << 24 | (uint32_t)rest[index] << 16;
        if (matrix->rest_bytes > RECORD) {
            uint16_t low;
            memcpy(&low, rest + RECORD + 2 * word_index(i), sizeof low);
            bits |= low;
        }
        memcpy(&out[i], &bits, sizeof bits);
    }
}
