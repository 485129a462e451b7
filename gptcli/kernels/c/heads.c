/* Products of each head by itself: latent attention projects queries to latents, and what it reads of them to values. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

enum { SLICE = 64 }; /* tokens that are multiplied at once, which limits what is copied */

/* Copies heads from where tokens have them side by side, or `back`: `numbers` of each head and token. */
static void copy_heads(const Op *op, int64_t begin, int64_t count, int64_t numbers, float *by_head, int back) {
    for (int64_t head = 0; head < op->heads; head++)
        for (int64_t token = begin; token < begin + count; token++, by_head += numbers) {
            if (back)
                memcpy(op->out + token * op->out_stride + head * op->out_step, by_head, (size_t)numbers * sizeof(float));
            else
                memcpy(by_head, op->in + token * op->stride + head * op->size, (size_t)numbers * sizeof(float));
        }
}

static void copy_rest(const Op *op, int64_t tokens, int64_t columns, int64_t rows) {
    for (int64_t token = 0; token < tokens && op->copied > 0; token++)
        for (int64_t head = 0; head < op->heads; head++)
            memcpy(op->out + token * op->out_stride + head * op->out_step + rows,
                   op->in + token * op->stride + head * op->size + columns, (size_t)op->copied * sizeof(float));
}

int multiply_heads(const Op *op, const Frame *frame) {
    int64_t rows = op->matrices[0]->rows, columns = op->matrices[0]->columns, most = frame->tokens;
    if (most > SLICE) most = SLICE;
    Product *products = malloc((size_t)op->heads * sizeof *products);
    float *x = malloc((size_t)(op->heads * most * (columns + rows)) * sizeof *x), *out = x + op->heads * most * columns;
    int status = products == NULL || x == NULL ? -1 : 0;
    for (int64_t begin = 0; begin < frame->tokens && status == 0; begin += SLICE) {
        int64_t count = frame->tokens - begin < SLICE ? frame->tokens - begin : SLICE;
        copy_heads(op, begin, count, columns, x, 0);
        for (int64_t head = 0; head < op->heads; head++)
            products[head] = (Product){
                .matrix = op->matrices[head],
                .x = x + head * count * columns,
                .tokens = count,
                .out = out + head * count * rows,
                .stride = rows,
            };
        status = linear_products(products, op->heads);
        if (status == 0) copy_heads(op, begin, count, rows, out, 1);
    }
    if (status == 0) copy_rest(op, frame->tokens, columns, rows);
    free(x);
    free(products);
    return status;
}
