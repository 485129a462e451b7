/* Convolutions over a text's last tokens, and recurrent states of heads.
 *
 * A head's state is (rows, size): `rows` values for each of `size` keys. Mamba 2 and gated DeltaNet differ in the rate
 * at which a token writes, and in whether it replaces the values stored for its keys.
 */
#include "kernels.h"

#include <math.h>
#include <string.h>

static const float *before_of(const Op *op, const Frame *frame, int64_t text) {
    return (const float *)(frame->states[text].before + op->state_at);
}

static float *after_of(const Op *op, const Frame *frame, int64_t text) {
    return (float *)(frame->states[text].after + op->state_at);
}

/* The inputs of a text's token number `index`, which may be one of the rows - 1 before this step. */
static const float *inputs_of(const Op *op, const Frame *frame, int64_t text, int64_t index) {
    if (index >= 0) return op->in + (frame->starts[text] + index) * op->stride;
    return before_of(op, frame, text) + (index + op->rows - 1) * op->size;
}

void convolve(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; token++) {
        int64_t text = text_of(frame, token), first = token - frame->starts[text] - (op->rows - 1);
        float *out = op->out + token * op->size;
        for (int64_t i = 0; i < op->size; i++) out[i] = op->bias != NULL ? op->bias[i] : 0;
        for (int64_t row = 0; row < op->rows; row++) {
            const float *in = inputs_of(op, frame, text, first + row), *weight = op->weight + row * op->size;
            for (int64_t i = 0; i < op->size; i++) out[i] += weight[i] * in[i];
        }
    }
}

void keep_tails(const Op *op, const Frame *frame) {
    for (int64_t text = 0; text < frame->texts; text++) {
        int64_t first = frame->starts[text + 1] - frame->starts[text] - (op->rows - 1);
        for (int64_t row = 0; row < op->rows - 1; row++)
            memcpy(after_of(op, frame, text) + row * op->size, inputs_of(op, frame, text, first + row),
                   (size_t)op->size * sizeof(float));
    }
}

static float softplus(float x) { return x > 20 ? x : log1pf(expf(x)); }

/* A token's decay of a head's state, and the rate at which it writes. */
static void set_rates(const Op *op, const float *steps, int64_t head, Recurrence *token) {
    const float *decays = op->weight, *biases = op->weight + op->heads;
    float step = softplus(steps[op->corrected ? op->heads + head : head] + biases[head]);
    step = step < op->least ? op->least : step > op->most ? op->most : step;
    token->decay = expf(step * decays[head]);
    token->rate = op->corrected ? 1 / (1 + expf(-steps[head])) : step;
}

static void follow_text(const Op *op, const Frame *frame, int64_t text, int64_t head) {
    int64_t group = op->tiled ? head % op->kv_heads : head / (op->heads / op->kv_heads), state = op->rows * op->size;
    const float *before = before_of(op, frame, text) + head * state;
    float *after = after_of(op, frame, text) + head * state;
    for (int64_t token = frame->starts[text]; token < frame->starts[text + 1]; token++, before = after) {
        float *out = op->out + (token * op->heads + head) * op->rows;
        Recurrence recurrence = {
            .rows = op->rows,
            .size = op->size,
            .corrected = op->corrected,
            .values = op->in + token * op->stride + head * op->rows,
            .keys = op->keys + token * op->stride + group * op->size,
            .queries = op->queries + token * op->stride + group * op->size,
        };
        set_rates(op, op->steps + token * op->out_stride, head, &recurrence);
        level()->recur(&recurrence, before, after, out);
        for (int64_t i = 0; i < op->rows && op->bias != NULL; i++) out[i] += op->bias[head] * recurrence.values[i];
    }
}

typedef struct {
    const Op *op;
    const Frame *frame;
    atomic_llong next;
} Job;

static void heads_share(void *argument, int thread, int threads) {
    Job *job = argument;
    (void)thread, (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&job->next, 1)) < job->frame->texts * job->op->heads;)
        follow_text(job->op, job->frame, task / job->op->heads, task % job->op->heads);
}

void recur_heads(const Op *op, const Frame *frame) {
    Job job = {op, frame, 0};
    pool_lock();
    pool_share(heads_share, &job);
    pool_unlock();
}
