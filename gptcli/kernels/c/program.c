/* Runs a decoder's step, a list of operations on buffers that Python allocated: one call for all layers. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* An operation that computes each token by itself, for tokens [begin, end). */
typedef void TokenOp(const Op *op, const Frame *frame, int64_t begin, int64_t end);

enum { TOKENS_AT_ONCE = 16 }; /* that a thread takes */

/* The text of a token, by halves. */
static int64_t text_of(const Frame *frame, int64_t token) {
    int64_t text = 0, past = frame->texts;
    while (past - text > 1) {
        int64_t middle = (text + past) / 2;
        if (frame->starts[middle] <= token)
            text = middle;
        else
            past = middle;
    }
    return text;
}

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

static void add(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t i = begin * op->size; i < end * op->size; i++) op->out[i] += op->in[i] * op->factor;
}

/* Where a block's keys of a text begin, and its values, which follow them. */
static uint8_t *keys_of(const Op *op, const Row *row) { return row->memory + op->keys_at * row->room; }

static const Row *row_of(const Op *op, const Frame *frame, int64_t text) {
    return &frame->rows[text * frame->windows + op->table];
}

static uint8_t *values_of(const Op *op, const Row *row) {
    return keys_of(op, row) + op->kv_heads * head_bytes((CacheKind)op->cache_kind, op->size, row->room);
}

static void store_heads(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    int64_t keys_at = op->heads * op->size, values_at = keys_at + op->kv_heads * op->size;
    CacheKind kind = (CacheKind)op->cache_kind;
    for (int64_t token = begin; token < end; token++) {
        int64_t text = text_of(frame, token);
        const Row *row = row_of(op, frame, text);
        const float *from = op->in + token * op->stride;
        int64_t position = row->cached + token - frame->starts[text], bytes = head_bytes(kind, op->size, row->room);
        for (int64_t head = 0; head < op->kv_heads; head++) {
            const float *key = from + keys_at + head * op->size, *value = from + values_at + head * op->size;
            level()->cache(kind, key, op->size, row->room, position, keys_of(op, row) + head * bytes);
            level()->cache(kind, value, op->size, row->room, position, values_of(op, row) + head * bytes);
        }
    }
}

/* Attention of a text's tokens one by one: describes each. */
static void describe_tokens(const Op *op, const Frame *frame, int64_t text, Attention *tokens) {
    const Row *row = row_of(op, frame, text);
    int64_t seen = row->cached;
    for (int64_t token = frame->starts[text]; token < frame->starts[text + 1]; token++) {
        seen++;
        int64_t length = op->window != 0 && op->window < seen ? op->window : seen;
        *tokens++ = (Attention){
            .queries = op->in + token * op->stride,
            .keys = keys_of(op, row),
            .values = values_of(op, row),
            .sinks = op->weight,
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
        };
    }
}

static int attend_many(const Op *op, const Frame *frame, int64_t text) {
    const Row *row = row_of(op, frame, text);
    int64_t begin = frame->starts[text];
    Passage passage = {
        .queries = op->in + begin * op->stride,
        .keys = keys_of(op, row),
        .values = values_of(op, row),
        .sinks = op->weight,
        .out = op->out + begin * op->heads * op->size,
        .tokens = frame->starts[text + 1] - begin,
        .first = row->cached,
        .window = op->window,
        .kind = op->cache_kind,
        .heads = op->heads,
        .kv_heads = op->kv_heads,
        .head_dim = op->size,
        .room = row->room,
        .query_stride = op->stride,
        .arithmetic = op->arithmetic,
        .scale = op->factor,
        .softcap = op->softcap,
    };
    return gptcli_passage(&passage);
}

/* First stores all keys and values: each token sees those before it and its own. A text's few tokens attend one by one,
 * along with those of other texts. */
static int attend(const Op *op, const Frame *frame) {
    Attention *tokens = malloc((size_t)frame->tokens * sizeof *tokens);
    if (tokens == NULL) return -1;
    on_tokens(store_heads, op, frame);
    int64_t count = 0;
    int status = 0;
    for (int64_t text = 0; text < frame->texts && status == 0; text++) {
        int64_t own = frame->starts[text + 1] - frame->starts[text];
        if (own > TILE) {
            status = attend_many(op, frame, text);
        } else {
            describe_tokens(op, frame, text, tokens + count);
            count += own;
        }
    }
    if (status == 0 && count > 0) status = gptcli_attention(tokens, count);
    free(tokens);
    return status;
}

/* Logits are computed for the wanted tokens only, whose rows are moved together. */
static int linear(const Op *op, const Frame *frame) {
    const Matrix *matrix = op->matrices[0];
    if (op->out != NULL) return gptcli_linear(matrix, op->in, frame->tokens, op->bias, op->out);
    int64_t columns = matrix->columns, first = frame->wanted_tokens[0];
    float *in = (float *)op->in + first * columns; /* a buffer of the program, which nothing reads afterwards */
    for (int64_t i = 1; i < frame->wanted; i++)
        memmove(in + i * columns, op->in + frame->wanted_tokens[i] * columns, (size_t)columns * sizeof(float));
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

int64_t gptcli_run(const Op *ops, int64_t count, const Frame *frame, int64_t pause_nanoseconds) {
    int64_t pause = nanoseconds() + pause_nanoseconds, done = 0;
    do
        if (run_op(&ops[done++], frame) != 0) return -1;
    while (done < count && nanoseconds() < pause);
    return done;
}

int64_t gptcli_record_bytes(int record) {
    const int64_t bytes[] = {sizeof(Op),   sizeof(Rotation), sizeof(Row),       sizeof(Frame),
                             sizeof(Draw), sizeof(Matrix),   sizeof(Attention), sizeof(Passage)};
    return record >= 0 && record < 8 ? bytes[record] : -1;
}
