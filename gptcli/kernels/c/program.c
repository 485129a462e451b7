/* Runs a decoder's step, a list of operations on buffers that Python allocated: one call for all layers. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    TOKENS_AT_ONCE = 16, /* that a thread takes */
    FEW_AT_ONCE = 4,     /* of operations that take longer, or wait for memory */
};

typedef struct {
    TokenOp *run;
    const Op *op;
    const Frame *frame;
    int64_t at_once;
    atomic_llong next;
} Share;

static void tokens_share(void *argument, int thread, int threads) {
    Share *share = argument;
    int64_t tokens = share->frame->tokens;
    (void)thread, (void)threads;
    for (int64_t begin; (begin = atomic_fetch_add(&share->next, share->at_once)) < tokens;) {
        int64_t end = begin + share->at_once;
        share->run(share->op, share->frame, begin, end < tokens ? end : tokens);
    }
}

static void in_parts(TokenOp *run, const Op *op, const Frame *frame, int64_t at_once) {
    if (frame->tokens <= at_once) {
        run(op, frame, 0, frame->tokens);
        return;
    }
    Share share = {run, op, frame, at_once, 0};
    pool_lock();
    pool_share(tokens_share, &share);
    pool_unlock();
}

static void on_tokens(TokenOp *run, const Op *op, const Frame *frame) { in_parts(run, op, frame, TOKENS_AT_ONCE); }

static void embed(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; token++) {
        float *out = op->out + token * op->size;
        int64_t id = frame->ids[token];
        gptcli_matrix_row(op->matrices[0], id < op->matrices[0]->rows ? id : 0, out);
        for (int64_t i = 0; i < op->size; i++) out[i] *= op->factor;
        if (op->weight == NULL) continue;
        int64_t text = text_of(frame, token);
        const float *position = op->weight + (frame->positions[text] + token - frame->starts[text]) * op->size;
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
    for (int64_t token = begin; token < end; token++) {
        int64_t text = text_of(frame, token);
        const Rotation *rotation = &frame->rotations[text * frame->ropes + op->table];
        int64_t first = (token - frame->starts[text]) * rotation->dim;
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

/* weight: the factor of x^2 above 0, that of e^x - 1 - x below, the slope at 0, and the most that e^x is computed of. */
static void xielu(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    const float above = op->weight[0], below = op->weight[1], slope = op->weight[2], most = op->weight[3];
    for (int64_t token = begin; token < end; token++) {
        const float *in = op->in + token * op->size;
        float *out = op->out + token * op->size;
        for (int64_t i = 0; i < op->size; i++) out[i] = in[i] < most ? in[i] : most;
        gptcli_exp(out, op->size, out);
        for (int64_t i = 0; i < op->size; i++) {
            float x = in[i], curve = x > 0 ? above * x * x : below * (out[i] - 1 - x);
            out[i] = curve + slope * x;
        }
    }
}

/* Subtracts the mean and `factor` standard deviations; what is below becomes 0. */
static void cut_off(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) {
        float *out = op->out + token * op->stride;
        double sum = 0, squares = 0;
        for (int64_t i = 0; i < op->size; i++) sum += out[i];
        double mean = sum / (double)op->size;
        for (int64_t i = 0; i < op->size; i++) squares += (out[i] - mean) * (out[i] - mean);
        float least = (float)(mean + op->factor * sqrt(squares / (double)op->size));
        for (int64_t i = 0; i < op->size; i++) out[i] = out[i] < least ? 0 : out[i] - least;
    }
}

static void multiply(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) {
        float *out = op->out + token * op->out_stride;
        const float *in = op->weight != NULL ? op->weight : op->in + token * op->stride;
        level()->activate((int)op->table, in, out, op->size, out);
    }
}

static void scale_row(float *out, int64_t size, float factor) {
    for (int64_t i = 0; i < size; i++) out[i] *= factor;
}

static void scale(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) scale_row(op->out + token * op->stride, op->size, op->factor);
}

static void scale_by_position(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; token++) {
        int64_t text = text_of(frame, token), position = frame->positions[text] + token - frame->starts[text];
        float steps = floorf((float)(position + op->table) / (float)op->rows);
        scale_row(op->out + token * op->stride, op->size, 1 + op->factor * logf(1 + steps));
    }
}

static void clamp(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t i = begin * op->size; i < end * op->size; i++) {
        float value = op->out[i] > op->factor ? op->factor : op->out[i]; /* NaN stays */
        op->out[i] = value < -op->factor ? -op->factor : value;
    }
}

static void add_scaled(const Op *op, int64_t token, float factor) {
    float *out = op->out + token * op->size;
    const float *in = op->in + token * op->size;
    if (op->table)
        for (int64_t i = 0; i < op->size; i++) out[i] = in[i] * factor;
    else
        for (int64_t i = 0; i < op->size; i++) out[i] += in[i] * factor;
}

static void add(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) add_scaled(op, token, op->factor);
}

static void add_share(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) add_scaled(op, token, op->factor + op->steps[token * op->stride]);
}

static float mean_square(const float *x, int64_t size) {
    double sum = 0;
    for (int64_t i = 0; i < size; i++) sum += (double)x[i] * x[i];
    return (float)(sum / (double)size);
}

static void match_rms(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) {
        float *out = op->out + token * op->size, own = mean_square(out, op->size);
        float wanted = mean_square(op->in + token * op->size, op->size);
        scale_row(out, op->size, sqrtf(wanted) / sqrtf(own < op->factor ? op->factor : own));
    }
}

/* Where a block's keys of a text begin. */
static uint8_t *keys_of(const Op *op, const Row *row) { return row->memory + op->keys_at * row->room; }

static const Row *row_of(const Op *op, const Frame *frame, int64_t text) {
    return &frame->rows[text * frame->windows + op->table];
}

/* Its values follow its keys, unless they are the keys. */
static uint8_t *values_of(const Op *op, const Row *row) {
    if (op->keys != NULL) return keys_of(op, row);
    return keys_of(op, row) + op->kv_heads * head_bytes((CacheKind)op->cache_kind, op->size, row->room);
}

/* Stores the tokens' keys and values in their texts' caches, unless values are the keys. */
static void store_heads(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    int64_t keys_at = op->heads * op->size, values_at = keys_at + op->kv_heads * op->size;
    CacheKind kind = (CacheKind)op->cache_kind;
    for (int64_t token = begin; token < end; token++) {
        int64_t text = text_of(frame, token);
        const Row *row = row_of(op, frame, text);
        const float *from = op->in + token * op->stride;
        const float *keys = op->keys != NULL ? op->keys + token * op->size : from + keys_at;
        int64_t position = row->cached + token - frame->starts[text], bytes = head_bytes(kind, op->size, row->room);
        for (int64_t head = 0; head < op->kv_heads; head++) {
            level()->cache(kind, keys + head * op->size, op->size, row->room, position,
                           keys_of(op, row) + head * bytes);
            if (op->keys != NULL) continue;
            level()->cache(kind, from + values_at + head * op->size, op->size, row->room, position,
                           values_of(op, row) + head * bytes);
        }
    }
}

/* Attention of a text's tokens from `begin` on, one by one: describes each. */
static void describe_tokens(const Op *op, const Frame *frame, int64_t text, int64_t begin, Attention *tokens) {
    const Row *row = row_of(op, frame, text);
    int64_t seen = row->cached + begin - frame->starts[text], dropped = frame->positions[text] - row->cached;
    for (int64_t token = begin; token < frame->starts[text + 1]; token++) {
        seen++;
        int64_t length = op->window != 0 && op->window < seen ? op->window : seen;
        if (op->chunked) length = (dropped + seen - 1) % op->window + 1;
        *tokens++ = (Attention){
            .queries = op->in + token * op->stride,
            .keys = keys_of(op, row),
            .values = values_of(op, row),
            .sinks = op->weight,
            .slopes = op->bias,
            .out = op->out + token * op->heads * op->size,
            .kind = op->cache_kind,
            .heads = op->heads,
            .kv_heads = op->kv_heads,
            .head_dim = op->size,
            .room = row->room,
            .start = seen - length,
            .length = length,
            .scale = op->factor,
            .softcap = op->softcap,
            .rounded = op->rounded,
        };
    }
}

static int attend_many(const Op *op, const Frame *frame, int64_t text, int64_t begin) {
    const Row *row = row_of(op, frame, text);
    Prefill prefill = {
        .queries = op->in + begin * op->stride,
        .keys = keys_of(op, row),
        .values = values_of(op, row),
        .sinks = op->weight,
        .slopes = op->bias,
        .out = op->out + begin * op->heads * op->size,
        .tokens = frame->starts[text + 1] - begin,
        .first = row->cached + begin - frame->starts[text],
        .window = op->window,
        .chunked = op->chunked,
        .dropped = frame->positions[text] - row->cached,
        .kind = op->cache_kind,
        .heads = op->heads,
        .kv_heads = op->kv_heads,
        .head_dim = op->size,
        .room = row->room,
        .query_stride = op->stride,
        .arithmetic = op->arithmetic,
        .scale = op->factor,
        .softcap = op->softcap,
        .rounded = op->rounded,
    };
    return gptcli_attend_prefill(&prefill);
}

/* First stores all keys and values: each token sees those before it and its own. A text's few tokens attend one by one,
 * along with those of other texts. */
static int attend(const Op *op, const Frame *frame) {
    Attention *tokens = malloc((size_t)frame->tokens * sizeof *tokens);
    if (tokens == NULL) return -1;
    if (!op->borrows) in_parts(store_heads, op, frame, FEW_AT_ONCE);
    int64_t count = 0, passed = 0; /* wanted tokens of earlier texts */
    int status = 0;
    for (int64_t text = 0; text < frame->texts && status == 0; text++) {
        int64_t begin = frame->starts[text], end = frame->starts[text + 1], before = passed;
        while (passed < frame->wanted && frame->wanted_tokens[passed] < end) passed++;
        if (is_expanded(op, frame, text)) continue;
        if (op->narrow) begin = end - (passed - before);
        if (end - begin > TILE) {
            status = attend_many(op, frame, text, begin);
        } else {
            describe_tokens(op, frame, text, begin, tokens + count);
            count += end - begin;
        }
    }
    if (status == 0 && count > 0) status = gptcli_attention(tokens, count);
    free(tokens);
    return status;
}

static int expand(const Op *op, const Frame *frame) {
    int status = 0;
    for (int64_t text = 0; text < frame->texts && status == 0; text++) {
        const Row *row = row_of(op, frame, text);
        if (is_expanded(op, frame, text)) status = attend_expanded(op, frame, text, row, keys_of(op, row));
    }
    return status;
}

static void narrow(const Op *op, const Frame *frame) {
    if (frame->wanted == frame->tokens) return;
    for (int64_t i = 0; i < frame->wanted; i++) /* they ascend, so no row is overwritten before it moves */
        memmove(op->out + i * op->size, op->out + frame->wanted_tokens[i] * op->size, (size_t)op->size * sizeof(float));
}

static int linear(const Op *op, const Frame *frame) {
    const Matrix *matrix = op->matrices[0];
    if (op->out != NULL)
        return linear_joined(op->matrices, op->rows, op->in, frame->tokens, may_round(matrix, frame), op->bias, op->out);
    if (frame->targets != NULL)
        return gptcli_linear_scores(matrix, op->in, frame->wanted, op->bias, frame->targets, frame->scored,
                                    (int)op->arithmetic, frame->scores);
    const int rounds = op->arithmetic != FP32_PRODUCTS && frame->texts > 1;
    return gptcli_linear(matrix, op->in, frame->wanted, rounds, op->bias, frame->logits);
}

static void gate(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) {
        float factor = 1 / (1 + expf(-op->in[token]));
        for (int64_t i = token * op->size; i < (token + 1) * op->size; i++) op->out[i] *= factor;
    }
}

static int run_op(const Op *op, const Frame *frame) {
    Frame narrowed = *frame;
    if (op->narrow && op->code != ATTEND) {
        narrowed.tokens = frame->wanted;
        frame = &narrowed;
    }
    switch (op->code) {
    case EMBED: on_tokens(embed, op, frame); return 0;
    case RMS_NORM:
    case LAYER_NORM: on_tokens(norm, op, frame); return 0;
    case LINEAR: return linear(op, frame);
    case BY_HEAD: return multiply_heads(op, frame);
    case EXPAND: return expand(op, frame);
    case CHOOSE: on_tokens(choose_experts, op, frame); return sort_choices(op, frame);
    case EXPERTS: return multiply_experts(op, frame);
    case SHARE: on_tokens(share_choices, op, frame); return 0;
    case MIX: on_tokens(mix_experts, op, frame); return 0;
    case GATE: on_tokens(gate, op, frame); return 0;
    case ROTATE: on_tokens(rotate, op, frame); return 0;
    case ATTEND: return attend(op, frame);
    case CONVOLVE: on_tokens(convolve, op, frame); keep_tails(op, frame); return 0;
    case RECUR: recur_heads(op, frame); return 0;
    case ACTIVATE: in_parts(activate, op, frame, FEW_AT_ONCE); return 0;
    case XIELU: on_tokens(xielu, op, frame); return 0;
    case CUT_OFF: on_tokens(cut_off, op, frame); return 0;
    case MULTIPLY: on_tokens(multiply, op, frame); return 0;
    case SCALE: on_tokens(scale, op, frame); return 0;
    case SCALE_BY_POSITION: on_tokens(scale_by_position, op, frame); return 0;
    case CLAMP: on_tokens(clamp, op, frame); return 0;
    case ADD: on_tokens(add, op, frame); return 0;
    case ADD_SHARE: on_tokens(add_share, op, frame); return 0;
    case MATCH_RMS: on_tokens(match_rms, op, frame); return 0;
    case NARROW: narrow(op, frame); return 0;
    }
    return -1;
}

int64_t gptcli_run(const Op *ops, int64_t count, const Frame *frame, int64_t pause_nanoseconds) {
    int64_t pause = nanoseconds() + pause_nanoseconds, done = 0;
    do
        if (run_op(&ops[done++], frame) != 0) return -1;
    while (done < count && nanoseconds() < pause);
    return done;
}

int64_t gptcli_interface(void) { return INTERFACE; }

int64_t gptcli_struct_bytes(int number) {
    const int64_t bytes[] = {sizeof(Op),   sizeof(Rotation), sizeof(Row),       sizeof(Frame),
                             sizeof(Draw), sizeof(Matrix),   sizeof(Attention), sizeof(Prefill)};
    return number >= 0 && number < (int)(sizeof bytes / sizeof *bytes) ? bytes[number] : -1;
}
