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

static void copy_rest(const Op *op, int64_t begin, int64_t end, int64_t columns, int64_t rows) {
    for (int64_t token = begin; token < end && op->copied > 0; token++)
        for (int64_t head = 0; head < op->heads; head++)
            memcpy(op->out + token * op->out_stride + head * op->out_step + rows,
                   op->in + token * op->stride + head * op->size + columns, (size_t)op->copied * sizeof(float));
}

/* Tokens [begin, end). x and out: room for SLICE tokens of all heads. */
static int multiply_tokens(const Op *op, int64_t begin, int64_t end, Product *products, float *x, float *out) {
    int64_t rows = op->matrices[0]->rows, columns = op->matrices[0]->columns;
    int status = 0;
    copy_rest(op, begin, end, columns, rows);
    for (; begin < end && status == 0; begin += SLICE) {
        int64_t count = smaller(SLICE, end - begin);
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
    return status;
}

int multiply_heads(const Op *op, const Frame *frame) {
    int64_t rows = op->matrices[0]->rows, columns = op->matrices[0]->columns, most = smaller(SLICE, frame->tokens);
    Product *products = malloc((size_t)op->heads * sizeof *products);
    float *x = malloc((size_t)(op->heads * most * (columns + rows)) * sizeof *x), *out = x + op->heads * most * columns;
    int status = products == NULL || x == NULL ? -1 : 0;
    for (int64_t text = 0, first; text < frame->texts && status == 0; text++) {
        for (first = text; text < frame->texts && !is_expanded(op, frame, text);) text++;
        status = multiply_tokens(op, frame->starts[first], frame->starts[text], products, x, out);
    }
    free(x);
    free(products);
    return status;
}

/* ---- latent attention of many tokens ----
 *
 * Products with keys and values of each head cost less than those with latents, once there are enough queries to pay for
 * making them. They are made anew for each step, of a few heads at a time, and of a few positions at a time, whose
 * latents then stay in the second cache.
 */

enum {
    MOST_FLOATS = 1 << 22, /* of keys and values at once, unless those of a head are more */
    POSITIONS = 512,
};

typedef struct {
    const Op *op;
    const uint8_t *cached;
    int64_t room, positions, plain, value; /* plain, value: channels of a head that are made of latents */
    int64_t first, heads;                  /* that are made at once */
    int64_t begin, end;                    /* positions that are made at once */
    float *latents;                        /* (POSITIONS, columns of a matrix) */
    float *whole;                          /* (threads, the same and the channels after them) */
    float *keys, *values;                  /* (heads, positions, size) */
    float *out;                            /* (tokens, heads, size) */
    atomic_llong next;
} Expansion;

/* Takes latents out of the cache. The rotated channels after them become the last ones of all keys; values end in zeros:
 * attention needs both of one width. */
static void latents_share(void *argument, int thread, int threads) {
    Expansion *job = argument;
    const int64_t size = job->op->size, latent = job->op->matrices[0]->columns, turned = size - job->plain;
    float *whole = job->whole + thread * (latent + turned);
    (void)threads;
    for (int64_t position; (position = atomic_fetch_add(&job->next, 1)) < job->end;) {
        level()->expand((CacheKind)job->op->cache_kind, job->cached, latent + turned, job->room, position, position + 1,
                        whole);
        memcpy(job->latents + (position - job->begin) * latent, whole, (size_t)latent * sizeof(float));
        for (int64_t row = position; row < job->heads * job->positions; row += job->positions) {
            memcpy(job->keys + row * size + job->plain, whole + latent, (size_t)turned * sizeof(float));
            memset(job->values + row * size + job->value, 0, (size_t)(size - job->value) * sizeof(float));
        }
    }
}

/* Keys and values of positions [begin, end). */
static int make_keys_and_values(Expansion *job, Product *products) {
    const Op *op = job->op;
    atomic_store(&job->next, job->begin);
    pool_lock();
    job->whole = pool_workspace(gptcli_threads() * (op->matrices[0]->columns + op->size - job->plain) * (int64_t)sizeof(float));
    if (job->whole != NULL) pool_share(latents_share, job);
    pool_unlock();
    if (job->whole == NULL) return -1;
    for (int64_t head = 0; head < job->heads; head++)
        for (int of_values = 0; of_values < 2; of_values++)
            products[2 * head + of_values] = (Product){
                .matrix = op->matrices[of_values * op->heads + job->first + head],
                .x = job->latents,
                .tokens = job->end - job->begin,
                .out = (of_values ? job->values : job->keys) + (head * job->positions + job->begin) * op->size,
                .stride = op->size,
            };
    return linear_products(products, 2 * job->heads);
}

static int attend_heads(const Expansion *job, int64_t tokens, const float *queries, float *out) {
    const Op *op = job->op;
    Prefill prefill = {
        .queries = queries + job->first * op->size,
        .keys = (const uint8_t *)job->keys,
        .values = (const uint8_t *)job->values,
        .out = job->out,
        .tokens = tokens,
        .first = job->positions - tokens,
        .kind = CACHE_FP32,
        .heads = job->heads,
        .kv_heads = job->heads,
        .head_dim = op->size,
        .room = job->positions,
        .query_stride = op->stride,
        .arithmetic = op->arithmetic,
        .scale = op->factor,
    };
    int status = gptcli_attend_prefill(&prefill);
    for (int64_t row = 0; row < tokens * job->heads && status == 0; row++)
        memcpy(out + (row / job->heads * op->heads + job->first + row % job->heads) * job->value,
               job->out + row * op->size, (size_t)job->value * sizeof(float));
    return status;
}

int attend_expanded(const Op *op, const Frame *frame, int64_t text, const Row *row, const uint8_t *latents) {
    int64_t begin = frame->starts[text], tokens = frame->starts[text + 1] - begin, positions = row->cached + tokens;
    int64_t plain = op->matrices[0]->rows, value = op->matrices[op->heads]->rows, latent = op->matrices[0]->columns;
    int64_t most = smaller(op->heads, larger(1, MOST_FLOATS / (2 * positions * op->size)));
    int64_t rounds = (op->heads + most - 1) / most;
    most = (op->heads + rounds - 1) / rounds; /* about as many in each */
    int64_t floats = POSITIONS * latent + most * op->size * (2 * positions + tokens);
    float *memory = malloc((size_t)floats * sizeof *memory);
    Product *products = malloc((size_t)(2 * most) * sizeof *products);
    int status = memory == NULL || products == NULL ? -1 : 0;
    Expansion job = {.op = op, .cached = latents, .room = row->room, .positions = positions, .plain = plain, .value = value,
                     .latents = memory};
    for (; job.first < op->heads && status == 0; job.first += most) {
        job.heads = smaller(most, op->heads - job.first);
        job.keys = job.latents + POSITIONS * latent;
        job.values = job.keys + job.heads * positions * op->size;
        job.out = job.values + job.heads * positions * op->size;
        for (job.begin = 0; job.begin < positions && status == 0; job.begin += POSITIONS) {
            job.end = smaller(job.begin + POSITIONS, positions);
            status = make_keys_and_values(&job, products);
        }
        if (status == 0)
            status = attend_heads(&job, tokens, op->in + begin * op->stride, op->out + begin * op->heads * value);
    }
    free(products);
    free(memory);
    return status;
}
