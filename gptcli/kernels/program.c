/* A decoder's step as a list of operations on buffers that Python allocated: one call runs all layers. */
#include "kernels.h"

#include <string.h>

/* What works on each token by itself, for tokens [begin, end). */
typedef void Each(const Op *op, const Frame *frame, int64_t begin, int64_t end);

enum { TOKENS_AT_ONCE = 16 }; /* that a thread takes */

/* How far a token is behind the first one in its text, and which row of the caches is that text's. */
static int64_t behind(const Frame *frame, int64_t token) { return frame->texts == 1 ? token : 0; }
static int64_t text_of(const Frame *frame, int64_t token) { return frame->texts == 1 ? 0 : token; }

typedef struct {
    Each *each;
    const Op *op;
    const Frame *frame;
    atomic_llong next;
} Share;

static void each_share(void *argument, int thread, int threads) {
    Share *share = argument;
    int64_t tokens = share->frame->tokens;
    (void)thread, (void)threads;
    for (int64_t begin; (begin = atomic_fetch_add(&share->next, TOKENS_AT_ONCE)) < tokens;) {
        int64_t end = begin + TOKENS_AT_ONCE;
        share->each(share->op, share->frame, begin, end < tokens ? end : tokens);
    }
}

static void on_each(Each *each, const Op *op, const Frame *frame) {
    if (frame->tokens <= TOKENS_AT_ONCE) {
        each(op, frame, 0, frame->tokens);
        return;
    }
    Share share = {each, op, frame, 0};
    pool_lock();
    pool_share(each_share, &share);
    pool_unlock();
}

static void embed(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; token++) {
        float *out = op->out + token * op->size;
        gptcli_matrix_row(op->matrix, frame->ids[token], out);
        for (int64_t i = 0; i < op->size; i++) out[i] *= op->factor;
        if (op->weight == NULL) continue;
        const float *position = op->weight + (frame->position + behind(frame, token)) * op->size;
        for (int64_t i = 0; i < op->size; i++) out[i] += position[i];
    }
}

static void norm(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) {
        for (int64_t row = 0; row < op->rows; row++) {
            int64_t place = token * op->stride + row * op->size;
            const float *weight = op->weight != NULL ? op->weight + row * op->weight_step : NULL;
            const float *bias = op->bias != NULL ? op->bias + row * op->weight_step : NULL;
            if (op->code == RMS_NORM)
                gptcli_rms_norm(op->in + place, weight, op->factor, 1, op->size, op->out + place);
            else
                gptcli_layer_norm(op->in + place, weight, bias, op->factor, 1, op->size, op->out + place);
        }
    }
}

static void rotate(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    const Rotation *rotation = &frame->rotations[op->table];
    for (int64_t token = begin; token < end; token++) {
        int64_t place = behind(frame, token) * rotation->dim;
        gptcli_rope(op->out + token * op->stride, rotation->cosines + place, rotation->sines + place, op->rows,
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
            int64_t place = text_of(frame, token) * op->row_stride + head * op->head_stride +
                            (frame->held[op->table] + behind(frame, token)) * op->size;
            memcpy(op->keys + place, row + keys_at + head * op->size, bytes);
            memcpy(op->values + place, row + values_at + head * op->size, bytes);
        }
    }
}

/* The attention of a token, and, if there are several texts, of the one token of each. */
static int attend_one(const Op *op, int64_t held, int64_t token, int64_t texts) {
    int64_t seen = held + token + 1;
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
    return gptcli_attend_texts(&attention, texts, op->stride, op->row_stride);
}

static int attend_many(const Op *op, int64_t held, int64_t tokens) {
    Passage passage = {
        .queries = op->in,
        .keys = op->keys,
        .values = op->values,
        .sinks = op->weight,
        .out = op->out,
        .tokens = tokens,
        .first = held,
        .window = op->window,
        .heads = op->heads,
        .kv_heads = op->kv_heads,
        .head_dim = op->size,
        .head_stride = op->head_stride,
        .query_stride = op->stride,
        .scale = op->factor,
        .softcap = op->softcap,
    };
    return gptcli_attend_passage(&passage);
}

/* All keys and values go into the cache first: each token sees those before it, and itself. */
static int attend(const Op *op, const Frame *frame) {
    int64_t held = frame->held[op->table];
    on_each(store_heads, op, frame);
    if (frame->texts > 1) return attend_one(op, held, 0, frame->texts);
    if (frame->tokens > TILE) return attend_many(op, held, frame->tokens);
    int status = 0;
    for (int64_t token = 0; token < frame->tokens && status == 0; token++) status = attend_one(op, held, token, 1);
    return status;
}

/* The logits are those of the last tokens alone. */
static int linear(const Op *op, const Frame *frame) {
    if (op->out != NULL) return gptcli_linear(op->matrix, op->in, frame->tokens, op->bias, op->out);
    const float *in = op->in + (frame->tokens - frame->wanted) * op->matrix->columns;
    return gptcli_linear(op->matrix, in, frame->wanted, op->bias, frame->logits);
}

static int run(const Op *op, const Frame *frame) {
    switch (op->code) {
    case EMBED: on_each(embed, op, frame); return 0;
    case RMS_NORM:
    case LAYER_NORM: on_each(norm, op, frame); return 0;
    case LINEAR: return linear(op, frame);
    case ROTATE: on_each(rotate, op, frame); return 0;
    case ATTEND: return attend(op, frame);
    case ACTIVATE: on_each(activate, op, frame); return 0;
    case ADD: on_each(add, op, frame); return 0;
    }
    return -1;
}

int gptcli_run(const Op *ops, int64_t count, const Frame *frame) {
    for (int64_t i = 0; i < count; i++)
        if (run(&ops[i], frame) != 0) return -1;
    return 0;
}

int64_t gptcli_record_bytes(int record) {
    const int64_t bytes[] = {sizeof(Op),        sizeof(Rotation), sizeof(Frame),
                             sizeof(Attention), sizeof(Draw),     sizeof(Matrix)};
    return record >= 0 && record < 6 ? bytes[record] : -1;
}
