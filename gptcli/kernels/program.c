/* A decoder's step as a list of operations on buffers that Python allocated: one call runs all layers. */
#include "kernels.h"

#include <string.h>

static void embed(const Op *op, const Frame *frame) {
    for (int64_t token = 0; token < frame->tokens; token++) {
        float *out = op->out + token * op->size;
        gptcli_matrix_row(op->matrix, frame->ids[token], out);
        for (int64_t i = 0; i < op->size; i++) out[i] *= op->factor;
        if (op->weight == NULL) continue;
        const float *position = op->weight + (frame->position + token) * op->size;
        for (int64_t i = 0; i < op->size; i++) out[i] += position[i];
    }
}

static void norm(const Op *op, const Frame *frame) {
    for (int64_t token = 0; token < frame->tokens; token++) {
        for (int64_t row = 0; row < op->rows; row++) {
            int64_t place = token * op->stride + row * op->size;
            const float *weight = op->weight != NULL ? op->weight + row * op->weight_step : NULL;
            const float *bias = op->bias != NULL ? op->bias + row * op->weight_step : NULL;
            if (op->code == RMS_NORM) {
                gptcli_rms_norm(op->in + place, weight, op->factor, 1, op->size, op->out + place);
                if (bias != NULL)
                    for (int64_t i = 0; i < op->size; i++) op->out[place + i] += bias[i];
            } else {
                gptcli_layer_norm(op->in + place, weight, bias, op->factor, 1, op->size, op->out + place);
            }
        }
    }
}

static void rotate(const Op *op, const Frame *frame) {
    const Rotation *rotation = &frame->rotations[op->table];
    for (int64_t token = 0; token < frame->tokens; token++)
        gptcli_rope(op->out + token * op->stride, rotation->cosines + token * rotation->dim,
                    rotation->sines + token * rotation->dim, op->rows, op->size, rotation->dim);
}

/* Keys and values of all tokens go into the cache first: each token sees those before it, and itself. */
static int attend(const Op *op, const Frame *frame) {
    int64_t held = frame->held[op->table], head_dim = op->size;
    int64_t keys_at = op->heads * head_dim, values_at = keys_at + op->kv_heads * head_dim;
    for (int64_t token = 0; token < frame->tokens; token++) {
        const float *row = op->in + token * op->stride;
        for (int64_t head = 0; head < op->kv_heads; head++) {
            int64_t place = head * op->head_stride + (held + token) * head_dim;
            size_t bytes = (size_t)head_dim * sizeof(float);
            memcpy(op->keys + place, row + keys_at + head * head_dim, bytes);
            memcpy(op->values + place, row + values_at + head * head_dim, bytes);
        }
    }
    for (int64_t token = 0; token < frame->tokens; token++) {
        int64_t seen = held + token + 1;
        int64_t length = op->window != 0 && op->window < seen ? op->window : seen;
        Attention attention = {
            .queries = op->in + token * op->stride,
            .keys = op->keys,
            .values = op->values,
            .sinks = op->weight,
            .out = op->out + token * op->heads * head_dim,
            .heads = op->heads,
            .kv_heads = op->kv_heads,
            .head_dim = head_dim,
            .head_stride = op->head_stride,
            .start = seen - length,
            .length = length,
            .scale = op->factor,
            .softcap = op->softcap,
        };
        if (gptcli_attention(&attention) != 0) return -1;
    }
    return 0;
}

static void activate(const Op *op, const Frame *frame) {
    for (int64_t token = 0; token < frame->tokens; token++) {
        const float *in = op->in + token * op->stride;
        gptcli_activate((int)op->table, in, op->stride == op->size ? NULL : in + op->size, op->size,
                        op->out + token * op->size);
    }
}

static int run(const Op *op, const Frame *frame) {
    switch (op->code) {
    case EMBED: embed(op, frame); return 0;
    case RMS_NORM:
    case LAYER_NORM: norm(op, frame); return 0;
    case LINEAR: {
        float *out = op->out != NULL ? op->out : frame->logits;
        return gptcli_linear(op->matrix, op->in, frame->tokens, op->bias, out);
    }
    case ROTATE: rotate(op, frame); return 0;
    case ATTEND: return attend(op, frame);
    case ACTIVATE: activate(op, frame); return 0;
    case ADD:
        for (int64_t i = 0; i < frame->tokens * op->size; i++) op->out[i] += op->in[i] * op->factor;
        return 0;
    }
    return -1;
}

int gptcli_run(const Op *ops, int64_t count, const Frame *frame) {
    for (int64_t i = 0; i < count; i++)
        if (run(&ops[i], frame) != 0) return -1;
    return 0;
}
