/* Mixtures of experts: the choice of each token's experts, their products, and the sum of their results. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The `count` greatest of logits (size), in descending order; among equals, the first ones. */
static void choose_greatest(const float *logits, int64_t size, int64_t count, Choice *choices) {
    for (int64_t i = 0; i < size; i++) {
        if (i >= count && !(logits[i] > logits[choices[count - 1].expert])) continue;
        int64_t at = i < count ? i : count - 1;
        for (; at > 0 && logits[i] > logits[choices[at - 1].expert]; at--) choices[at] = choices[at - 1];
        choices[at].expert = (int32_t)i;
    }
}

/* Makes scores of logits (size); a NaN among them makes all scores NaN, so that it is not lost. */
static void score(const Op *op, float *logits) {
    float all = 0, poison = 0;
    if (op->router == SIGMOID_ROUTER) {
        for (int64_t i = 0; i < op->size; i++) poison += logits[i] * 0;
        level()->activate(LOGISTIC, logits, NULL, op->size, logits);
        for (int64_t i = 0; i < op->size; i++) logits[i] += poison;
        return;
    }
    float greatest = level()->greatest(logits, op->size);
    for (int64_t i = 0; i < op->size; i++) logits[i] -= greatest;
    gptcli_exp(logits, op->size, logits);
    for (int64_t i = 0; i < op->size; i++) all += logits[i];
    for (int64_t i = 0; i < op->size; i++) logits[i] /= all;
}

/* The sum of the `group_best` greatest of `size` ranks. */
static float rank_of_group(const Op *op, const float *ranks, int64_t size) {
    Choice best[MOST_GROUPS];
    float sum = 0;
    choose_greatest(ranks, size, op->group_best, best);
    for (int64_t i = 0; i < op->group_best; i++) sum += ranks[best[i].expert];
    return sum;
}

/* Makes the ranks of all but the `top_groups` best groups -infinity; among equals, the first groups stay. */
static void drop_groups(const Op *op, float *ranks) {
    int64_t size = op->size / op->groups;
    float sums[MOST_GROUPS];
    Choice best[MOST_GROUPS];
    for (int64_t group = 0; group < op->groups; group++) sums[group] = rank_of_group(op, ranks + group * size, size);
    choose_greatest(sums, op->groups, op->groups, best);
    for (int64_t i = op->top_groups; i < op->groups; i++)
        for (int64_t expert = 0; expert < size; expert++) ranks[best[i].expert * size + expert] = -INFINITY;
}

/* Two experts, each with its share of a softmax over those near it, without the ones before it (Liu et al., 2023). */
static void choose_sparsely(const Op *op, const float *logits, Choice *choices) {
    choose_greatest(logits, op->size, 2, choices);
    for (int64_t round = 0; round < 2; round++) {
        float best = logits[choices[round].expert], sum = 0;
        for (int64_t i = 0; i < op->size; i++) {
            float far = (best - logits[i]) / fmaxf(fabsf(logits[i]), best);
            if (!(far > 2 * op->jitter) && !(round == 1 && i == choices[0].expert)) sum += expf(logits[i] - best);
        }
        choices[round].share = 1 / sum;
    }
}

/* Each choice's share: its score, divided by the chosen scores' sum if they are renormalized, times op->factor. */
static void share_scores(const Op *op, const float *scores, Choice *choices) {
    float chosen = 0;
    for (int64_t i = 0; i < op->rows; i++) chosen += choices[i].share = scores[choices[i].expert];
    float divisor = op->renormalize ? (chosen < op->least_sum ? op->least_sum : chosen) + op->added_to_sum : 1;
    for (int64_t i = 0; i < op->rows; i++) choices[i].share = choices[i].share / divisor * op->factor;
}

void choose_experts(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (int64_t token = begin; token < end; token++) {
        float *scores = (float *)op->in + token * op->size, *ranks = op->out + token * op->size;
        Choice *choices = op->choices + token * op->rows;
        if (op->router == SPARSE_MIXER) {
            choose_sparsely(op, scores, choices);
        } else {
            memcpy(ranks, scores, (size_t)op->size * sizeof *ranks);
            score(op, scores);
            if (op->weight != NULL)
                for (int64_t i = 0; i < op->size; i++) ranks[i] = scores[i] + op->weight[i];
            else if (op->groups > 1)
                memcpy(ranks, scores, (size_t)op->size * sizeof *ranks);
            if (op->groups > 1) drop_groups(op, ranks);
            choose_greatest(ranks, op->size, op->rows, choices);
            share_scores(op, scores, choices);
        }
        if (op->bias != NULL)
            for (int64_t i = 0; i < op->rows; i++) choices[i].share *= op->bias[choices[i].expert];
    }
}

int sort_choices(const Op *op, const Frame *frame) {
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
            .stride = matrix->rows,
        };
    }
    return count;
}

int multiply_experts(const Op *op, const Frame *frame) {
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

void mix_experts(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
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

void share_choices(const Op *op, const Frame *frame, int64_t begin, int64_t end) {
    (void)frame;
    for (Choice *choice = op->choices + begin * op->rows; choice < op->choices + end * op->rows; choice++) {
        float *out = op->out + choice->slot * op->size;
        for (int64_t i = 0; i < op->size; i++) out[i] *= choice->share;
        choice->share = 1;
    }
}
