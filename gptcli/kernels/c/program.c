/* Runs a decoder's step, a list of operations on buffers that Python allocated: one call for all layers. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* An operation that computes each token by itself, for tokens [begin, end). */
typedef void TokenOp(const Op *op, const Frame *frame, int64_t begin, int64_t end);

enum { TOKENS_AT_ONCE = 16 }; /* that a thread takes */

/* How many positions a token is after the step's first one in its text, and its text's row of the caches. */
static int64_t offset_of(const Frame *frame, int64_t token) { return frame->texts == 1 ? token : 0; }
static int64_t text_of(const Frame *frame, int64_t token) { return frame->texts == 1 ? 0 : token; }

typedef struct {
    TokenOp *run;
    const Op *op;
    const Frame *frame;
    atomic_llong next;
} Share;

static void tokens_share(void *argument, int thread, int threads) {
    Share *share = argument;
    int64_t tokens = share->frame->tokens;
    (void)thread, (void)threads;
    for (int64_t begin; (begin = atomic_fetch_add(&share->next, TOKENS_AT_ONCE)) < tokens;) {
        int64_t end = begin + TOKENS_AT_ONCE;
        share->run(share->op, share->frame, begin, end < tokens ? end : tokens);
    }
}

static void on_tokens(TokenOp *run, const Op *op, const Frame *frame) {
    if (frame->tokens <= TOKENS_AT_ONCE) {
        run(op, frame, 0, frame->tokens);
        return;
    }
    Share share = {run, op, frame, 0};
    pool_lock();
    pool_share(tokens_share, &share);
    pool_unlock();
}

static void embed(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; token++) {
        float *out = op->out + token * op->size;
        gptcli_matrix_row(op->matrices[0], frame->ids[token], out);
        for (int64_t i = 0; i < op->size; i++) out[i] *= op->factor;
        if (op->weight == NULL) continue;
        const float *position = op->weight + (frame->position + offset_of(frame, token)) * op->size;
        for (int64_t i = 0; i < op->size; i++) out[i] += position[i];
    }
}

static void norm(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) {
        for (int64_t row = 0; row < op->rows; row++) {
            int64_t index = token * op->stride + row * op->size;
            const float *weight = op->weight != NULL ? op->weight + row * op->weight_step : NULL;
            const float *bias = op->bias != NULL ? op->bias + row * op->weight_step : NULL;
            if (op->code == RMS_NORM)
                gptcli_rms_norm(op->in + index, weight, op->factor, 1, op->size, op->out + index);
            else
                gptcli_layer_norm(op->in + index, weight, bias, op->factor, 1, op->size, op->out + index);
        }
    }
}

static void rotate(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    const Rotation *rotation = &frame->rotations[op->table];
    for (int64_t token = begin; token < end; token++) {
        int64_t first = offset_of(frame, token) * rotation->dim;
        gptcli_rope(op->out + token * op->stride, rotation->cosines + first, rotation->sines + first, op->rows,
                    op->size, rotation->dim);
    }
}

static void activate(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t row = begin * op->rows; row < end * op->rows; row++) {
        const float *in = op->in + row * op->stride;
        gptcli_activate((int)op->table, in, op->stride == op->size ? NULL : in + op->size, op->size,
                        op->out + row * op->size);
    }
}

static void add(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t i = begin * op->size; i < end * op->size; i++) op->out[i] += op->in[i] * op->factor;
}

static void store_heads(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    int64_t keys_at = op->heads * op->size, values_at = keys_at + op->kv_heads * op->size;
    size_t bytes = (size_t)op->size * sizeof(float);
    for (int64_t token = begin; token < end; token++) {
        const float *row = op->in + token * op->stride;
        for (int64_t head = 0; head < op->kv_heads; head++) {
            int64_t index = text_of(frame, token) * op->row_stride + head * op->head_stride +
                            (frame->cached[op->table] + offset_of(frame, token)) * op->size;
            memcpy(op->keys + index, row + keys_at + head * op->size, bytes);
            memcpy(op->values + index, row + values_at + head * op->size, bytes);
        }
    }
}

/* The attention of one token, or, with several texts, of the one token of each. */
static int attend_one(const Op *op, int64_t cached, int64_t token, int64_t texts) {
    int64_t seen = cached + token + 1;
    int64_t length = op->window != 0 && op->window < seen ? op->window : seen;
    Attention attention = {
        .queries = op->in + token * op->stride,
        .keys = op->keys,
        .values = op->values,
        .sinks = op->weight,
        .out = op->out + token * op->heads * op->size,
        .heads = op->heads,
        .kv_heads = op->kv_heads,
        .head_dim = op->size,
        .head_stride = op->head_stride,
        .start = seen - length,
        .length = length,
        .scale = op->factor,
        .softcap = op->softcap,
    };
    return attention_of_texts(&attention, texts, op->stride, op->row_stride);
}

static int attend_many(const Op *op, int64_t cached, int64_t tokens) {
    Passage passage = {
        .queries = op->in,
        .keys = op->keys,
        .values = op->values,
        .sinks = op->weight,
        .out = op->out,
        .tokens = tokens,
        .first = cached,
        .window = op->window,
        .heads = op->heads,
        .kv_heads = op->kv_heads,
        .head_dim = op->size,
        .head_stride = op->head_stride,
        .query_stride = op->stride,
        .scale = op->factor,
        .softcap = op->softcap,
    };
    return attention_of_passage(&passage);
}

/* First stores all keys and values: each token sees those before it and its own. */
static int attend(const Op *op, const Frame *frame) {
    int64_t cached = frame->cached[op->table];
    on_tokens(store_heads, op, frame);
    if (frame->texts > 1) return attend_one(op, cached, 0, frame->texts);
    if (frame->tokens > TILE) return attend_many(op, cached, frame->tokens);
    int status = 0;
    for (int64_t token = 0; token < frame->tokens && status == 0; token++) status = attend_one(op, cached, token, 1);
    return status;
}

/* Logits are computed for the last tokens only. */
static int linear(const Op *op, const Frame *frame) {
    const Matrix *matrix = op->matrices[0];
    if (op->out != NULL) return gptcli_linear(matrix, op->in, frame->tokens, op->bias, op->out);
    const float *in = op->in + (frame->tokens - frame->wanted) * matrix->columns;
    return gptcli_linear(matrix, in, frame->wanted, op->bias, frame->logits);
}

/* The `count` greatest of logits (size), in descending order; among equals, the first ones. */
static void choose_greatest(const float *logits, int64_t size, int64_t count, Choice *choices) {
    for (int64_t i = 0; i < size; i++) {
        if (i >= count && !(logits[i] > logits[choices[count - 1].expert])) continue;
        int64_t at = i < count ? i : count - 1;
        for (; at > 0 && logits[i] > logits[choices[at - 1].expert]; at--) choices[at] = choices[at - 1];
        choices[at].expert = (int32_t)i;
    }
}

/* The softmax is over all experts, so that a NaN among the logits is not lost. */
static void choose(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) {
        float *logits = op->out + token * op->size, all = 0, chosen = 0;
        Choice *choices = op->choices + token * op->rows;
        choose_greatest(logits, op->size, op->rows, choices);
        float greatest = logits[choices[0].expert];
        for (int64_t i = 0; i < op->size; i++) logits[i] -= greatest;
        gptcli_exp(logits, op->size, logits);
        for (int64_t i = 0; i < op->size; i++) all += logits[i];
        for (int64_t i = 0; i < op->rows; i++) chosen += choices[i].share = logits[choices[i].expert] / all;
        for (int64_t i = 0; i < op->rows && op->table; i++) choices[i].share /= chosen;
    }
}

static int sort_choices(const Op *op, const Frame *frame) {
    int64_t *next = calloc((size_t)op->size + 1, sizeof *next); /* slot of each expert */
    Choice *end = op->choices + frame->tokens * op->rows;
    if (next == NULL) return -1;
    for (Choice *choice = op->choices; choice < end; choice++) next[choice->expert + 1]++;
    for (int64_t expert = 0; expert < op->size; expert++) next[expert + 1] += next[expert];
    for (Choice *choice = op->choices; choice < end; choice++) choice->slot = (int32_t)next[choice->expert]++;
    free(next);
    return 0;
}

/* One product for each expert that was chosen; from: for each slot. Returns how many. */
static int64_t products_of(const Op *op, int64_t slots, int32_t *from, Product *products) {
    int64_t count = 0, last = -1;
    for (int64_t i = 0; i < slots; i++) from[op->choices[i].slot] = (int32_t)i;
    for (int64_t slot = 0; slot < slots; slot++) {
        int64_t expert = op->choices[from[slot]].expert;
        from[slot] /= (int32_t)op->rows; /* from the choice's number to its token's */
        if (expert == last) {
            Product *product = &products[count - 1];
            product->tokens++;
            if (op->table) { /* they do not lie side by side */
                product->x = op->in;
                product->from = from + slot + 1 - product->tokens;
            }
            continue;
        }
        const Matrix *matrix = op->matrices[last = expert];
        products[count++] = (Product){
            .matrix = matrix,
            .x = op->in + (op->table ? from[slot] : slot) * matrix->columns,
            .tokens = 1,
            .bias = op->bias != NULL ? op->bias + expert * matrix->rows : NULL,
            .out = op->out + slot * matrix->rows,
        };
    }
    return count;
}

static int experts(const Op *op, const Frame *frame) {
    int64_t slots = frame->tokens * op->rows, most = slots < op->size ? slots : op->size;
    int32_t *from = malloc((size_t)slots * sizeof *from);
    Product *products = malloc((size_t)most * sizeof *products);
    int status = -1;
    if (from != NULL && products != NULL)
        status = linear_products(products, products_of(op, slots, from, products));
    free(products);
    free(from);
    return status;
}

static void mix(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) {
        float *out = op->out + token * op->size;
        memset(out, 0, (size_t)op->size * sizeof *out);
        for (int64_t i = 0; i < op->rows; i++) {
            Choice choice = op->choices[token * op->rows + i];
            const float *in = op->in + choice.slot * op->size;
            for (int64_t column = 0; column < op->size; column++) out[column] += choice.share * in[column];
        }
    }
}

static void gate(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) {
        float factor = 1 / (1 + expf(-op->in[token]));
        for (int64_t i = token * op->size; i < (token + 1) * op->size; i++) op->out[i] *= factor;
    }
}

static int run_op(const Op *op, const Frame *frame) {
    switch (op->code) {
    case EMBED: on_tokens(embed, op, frame); return 0;
    case RMS_NORM:
    case LAYER_NORM: on_tokens(norm, op, frame); return 0;
    case LINEAR: return linear(op, frame);
    case CHOOSE: on_tokens(choose, op, frame); return sort_choices(op, frame);
    case EXPERTS: return experts(op, frame);
    case MIX: on_tokens(mix, op, frame); return 0;
    case GATE: on_tokens(gate, op, frame); return 0;
    case ROTATE: on_tokens(rotate, op, frame); return 0;
    case ATTEND: return attend(op, frame);
    case ACTIVATE: on_tokens(activate, op, frame); return 0;
    case ADD: on_tokens(add, op, frame); return 0;
    }
    return -1;
}

int gptcli_run(const Op *ops, int64_t count, const Frame *frame) {
    for (int64_t i = 0; i < count; i++)
        if (run_op(&ops[i], frame) != 0) return -1;
    return 0;
}

int64_t gptcli_record_bytes(int record) {
    const int64_t bytes[] = {sizeof(Op),   sizeof(Rotation), sizeof(Frame),
                             sizeof(Draw), sizeof(Matrix),   sizeof(Attention)};
    return record >= 0 && record < 6 ? bytes[record] : -1;
}
