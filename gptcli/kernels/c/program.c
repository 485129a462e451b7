/* Runs a decoder's step, a list of operations on buffers that Python allocated: one call for all layers. */
#include "kernels.h"

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
        gptcli_matrix_row(op->matrix, frame->ids[token], out);
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
    for (int64_t token = begin; token < end; token++) {
        const float *in = op->in + token * op->stride;
        gptcli_activate((int)op->table, in, op->stride == op->size ? NULL : in + op->size, op->size,
                        op->out + token * op->size);
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
        .arithmetic = op->arithmetic,
        .scale = op->factor,
        .softcap = op->softcap,
    };
    return gptcli_passage(&passage);
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
    if (op->out != NULL) return gptcli_linear(op->matrix, op->in, frame->tokens, op->bias, op->out);
    const float *in = op->in + (frame->tokens - frame->wanted) * op->matrix->columns;
    return gptcli_linear(op->matrix, in, frame->wanted, op->bias, frame->logits);
}

static int run_op(const Op *op, const Frame *frame) {
    switch (op->code) {
    case EMBED: on_tokens(embed, op, frame); return 0;
    case RMS_NORM:
    case LAYER_NORM: on_tokens(norm, op, frame); return 0;
    case LINEAR: return linear(op, frame);
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
                             sizeof(Draw), sizeof(Matrix),   sizeof(Attention), sizeof(Passage)};
    return record >= 0 && record < 7 ? bytes[record] : -1;
}
