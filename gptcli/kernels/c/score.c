/* Log-probabilities of tokens: the head's logits are summed up panel by panel, and never in memory together. */
#include "kernels.h"

#include <math.h>
#include <string.h>

enum {
    MOST_SCORED = 512, /* tokens whose logits of a panel stay in the second cache */
    FLUSHED = 32,      /* panels whose sums are in fp32; those of all in fp64 */
};

/* What a thread has summed up, for each token. */
typedef struct {
    float panel[PANEL_FLOATS];
    float logits[MOST_SCORED * SCORED_ROWS];
    float sums[MOST_SCORED * BLOCK];
    float most[MOST_SCORED]; /* what is subtracted from logits in the sums */
    float scale[MOST_SCORED]; /* the same in `totals` */
    double totals[MOST_SCORED];
} Summed;

typedef struct {
    const Matrix *matrix;
    const float *x, *bias;
    const int64_t *targets;
    int64_t tokens, scored;
    double *out; /* the targets' logits */
    Summed *summed; /* of each thread */
} ScoreJob;

/* Adds the sums to the totals. */
static void flush(Summed *own, int64_t tokens) {
    for (int64_t token = 0; token < tokens; token++) {
        double total = 0;
        for (int64_t i = 0; i < BLOCK; i++) total += own->sums[token * BLOCK + i];
        if (own->most[token] > own->scale[token]) own->totals[token] *= exp(own->scale[token] - own->most[token]);
        own->scale[token] = own->most[token];
        own->totals[token] += total;
    }
    memset(own->sums, 0, (size_t)(tokens * BLOCK) * sizeof(float));
}

static void scores_share(void *argument, int thread, int threads) {
    const ScoreJob *job = argument;
    Summed *own = &job->summed[thread];
    int64_t panels = 0;
    (void)threads;
    memset(own->logits, 0, sizeof own->logits); /* of rows past the last */
    memset(own->sums, 0, sizeof own->sums);
    for (int64_t token = 0; token < job->tokens; token++) {
        own->most[token] = own->scale[token] = -INFINITY;
        own->totals[token] = 0;
    }
    for (int64_t panel, next; pool_take(thread, &panel, &next);) {
        const int64_t row = panel * SCORED_ROWS, left = job->matrix->rows - row, counted = job->scored - row;
        const int64_t present = left < SCORED_ROWS ? left : SCORED_ROWS;
        const int64_t count = counted < 0 ? 0 : counted < present ? counted : present;
        const Output output = {own->logits - row, SCORED_ROWS, job->bias};
        level()->panels(job->matrix, job->x, job->tokens, row, row + present, own->panel, &output);
        for (int64_t token = 0; token < job->tokens; token++) {
            const float *logits = own->logits + token * SCORED_ROWS;
            const int64_t target = job->targets[token] - row;
            if (target >= 0 && target < present) job->out[token] = logits[target];
            level()->add_powers(logits, count, present, &own->most[token], own->sums + token * BLOCK);
        }
        if (++panels % FLUSHED == 0) flush(own, job->tokens);
    }
    flush(own, job->tokens);
}

/* The logarithm of a token's sum of e^logit, from what all threads summed up. */
static double log_sum(const ScoreJob *job, int64_t token) {
    float most = -INFINITY;
    double total = 0;
    for (int i = 0; i < gptcli_threads(); i++) most = fmaxf(most, job->summed[i].scale[token]);
    for (int i = 0; i < gptcli_threads(); i++) {
        const Summed *own = &job->summed[i];
        if (own->scale[token] == -INFINITY)
            total += own->totals[token]; /* nothing, or NaN */
        else
            total += own->totals[token] * exp(own->scale[token] - most);
    }
    return most + log(total);
}

int gptcli_linear_scores(const Matrix *matrix, const float *x, int64_t tokens, const float *bias,
                         const int64_t *targets, int64_t scored, double *out) {
    int status = 0;
    for (int64_t first = 0; first < tokens && status == 0; first += MOST_SCORED) {
        ScoreJob job = {
            .matrix = matrix,
            .x = x + first * matrix->columns,
            .bias = bias,
            .targets = targets + first,
            .tokens = tokens - first < MOST_SCORED ? tokens - first : MOST_SCORED,
            .scored = scored,
            .out = out + first,
        };
        pool_lock();
        job.summed = pool_workspace(gptcli_threads() * (int64_t)sizeof(Summed));
        if (job.summed != NULL) {
            for (int i = 0; i < gptcli_threads(); i++) /* of those that may never arrive */
                for (int64_t token = 0; token < job.tokens; token++) {
                    job.summed[i].scale[token] = -INFINITY;
                    job.summed[i].totals[token] = 0;
                }
            pool_deal((matrix->rows + SCORED_ROWS - 1) / SCORED_ROWS, 1, 1);
            pool_share(scores_share, &job);
            for (int64_t token = 0; token < job.tokens; token++) job.out[token] -= log_sum(&job, token);
        }
        pool_unlock();
        status = job.summed == NULL ? -1 : 0;
    }
    return status;
}
