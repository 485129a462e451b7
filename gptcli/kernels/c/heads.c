/* Products of each head by itself: latent attention projects queries to latents, and what it reads of them to values. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

enum { SLICE = 64 }; /* tokens that are multiplied at once, which limits what is copied */

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

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
    int64_t room, positions, latent, turned; /* latent: numbers of a latent; turned: those behind it, of all keys */
    float *latents, *behind;                 /* (positions, latent), (positions, turned) */
    float *whole;                            /* (threads, latent + turned) */
    int64_t first, heads;                    /* that are made at once */
    float *keys, *values;                    /* (heads, positions, size) */
    float *out;                              /* (tokens, heads, size) */
    atomic_llong next;
} Expansion;

/* Takes the latents of some positions apart. */
static void latents_share(void *argument, int thread, int threads) {
    Expansion *job = argument;
    int64_t width = job->latent + job->turned;
    float *whole = job->whole + thread * width;
    (void)threads;
    for (int64_t begin; (begin = atomic_fetch_add(&job->next, SPAN)) < job->positions;)
        for (int64_t position = begin; position < smaller(begin + SPAN, job->positions); position++) {
            level()->expand((CacheKind)job->op->cache_kind, job->cached, width, job->room, position, position + 1, whole);
            memcpy(job->latents + position * job->latent, whole, (size_t)job->latent * sizeof(float));
            memcpy(job->behind + position * job->turned, whole + job->latent, (size_t)job->turned * sizeof(float));
        }
}

/* Fills up keys with their last channels, and values with zeros: both are as wide in attention. */
static void filling_share(void *argument, int thread, int threads) {
    Expansion *job = argument;
    int64_t size = job->op->size, plain = size - job->turned, value = job->op->matrices[job->op->heads]->rows;
    (void)thread, (void)threads;
    for (int64_t begin; (begin = atomic_fetch_add(&job->next, SPAN)) < job->heads * job->positions;)
        for (int64_t row = begin; row < smaller(begin + SPAN, job->heads * job->positions); row++) {
            memcpy(job->keys + row * size + plain, job->behind + row % job->positions * job->turned,
                   (size_t)job->turned * sizeof(float));
            memset(job->values + row * size + value, 0, (size_t)(size - value) * sizeof(float));
        }
}

static void share(Task *task, Expansion *job) {
    atomic_store(&job->next, 0);
    pool_lock();
    pool_share(task, job);
    pool_unlock();
}

static int make_keys_and_values(Expansion *job, Product *products) {
    const Op *op = job->op;
    int status = 0;
    for (int64_t begin = 0; begin < job->positions && status == 0; begin += POSITIONS) {
        for (int64_t i = 0; i < 2 * job->heads; i++) {
            int64_t head = i % job->heads;
            float *to = (i < job->heads ? job->keys : job->values) + (head * job->positions + begin) * op->size;
            products[i] = (Product){
                .matrix = op->matrices[(i < job->heads ? 0 : op->heads) + job->first + head],
                .x = job->latents + begin * job->latent,
                .tokens = smaller(POSITIONS, job->positions - begin),
                .out = to,
                .stride = op->size,
            };
        }
        status = linear_products(products, 2 * job->heads);
    }
    share(filling_share, job);
    return status;
}

static int attend_heads(const Expansion *job, int64_t tokens, const float *queries, float *out) {
    const Op *op = job->op;
    int64_t value = op->matrices[op->heads]->rows;
    Passage passage = {
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
    int status = gptcli_passage(&passage);
    for (int64_t row = 0; row < tokens * job->heads; row++)
        memcpy(out + (row / job->heads * op->heads + job->first + row % job->heads) * value, job->out + row * op->size,
               (size_t)value * sizeof(float));
    return status;
}

int attend_expanded(const Op *op, const Frame *frame, int64_t text, const Row *row, const uint8_t *latents) {
    int64_t begin = frame->starts[text], tokens = frame->starts[text + 1] - begin, positions = row->cached + tokens;
    int64_t latent = op->matrices[0]->columns, turned = op->size - op->matrices[0]->rows;
    int64_t most = smaller(op->heads, larger(1, MOST_FLOATS / (2 * positions * op->size)));
    int64_t rounds = (op->heads + most - 1) / most;
    most = (op->heads + rounds - 1) / rounds; /* about as many in each */
    int64_t floats = (positions + gptcli_threads()) * (latent + turned) + most * op->size * (2 * positions + tokens);
    float *memory = malloc((size_t)floats * sizeof *memory);
    Product *products = malloc((size_t)(2 * most) * sizeof *products);
    Expansion job = {
        .op = op,
        .cached = latents,
        .room = row->room,
        .positions = positions,
        .latent = latent,
        .turned = turned,
        .latents = memory,
    };
    int status = memory == NULL || products == NULL ? -1 : 0;
    if (status == 0) {
        job.behind = job.latents + positions * latent;
        job.whole = job.behind + positions * turned;
        job.keys = job.whole + gptcli_threads() * (latent + turned);
        job.values = job.keys + most * positions * op->size;
        job.out = job.values + most * positions * op->size;
        share(latents_share, &job);
    }
    for (; job.first < op->heads && status == 0; job.first += most) {
        job.heads = smaller(most, op->heads - job.first);
        status = make_keys_and_values(&job, products);
        if (status == 0)
            status = attend_heads(&job, tokens, op->in + begin * op->stride,
                                  op->out + begin * op->heads * op->matrices[op->heads]->rows);
    }
    free(products);
    free(memory);
    return status;
}
