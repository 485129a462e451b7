/* Log-probabilities of tokens: the head's logits are summed up panel by panel, and never in memory together.
 *
 * Where products may be rounded, logits are first computed in bf16. Those that matter, of tokens whose share of the sum
 * is at least LEAST_SHARE, are computed again in fp32, and the target's. What rounding does to the many others averages
 * out in their sum.
 */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOST_SCORED = 512, /* tokens whose logits of a panel stay in the second cache */
    UNIT = 16,         /* panels that a thread sums up in fp32; sums of units are in fp64 */
    LEAST_SHARE = 245, /* one part in so many, e^5.5 */
    LOOSE_SHARE = 250, /* the same while threads list, whatever their sums' order rounds */
    LISTED = 256,      /* more than can have that share */
};

/* A row of the head, and its logit in bf16. */
typedef struct {
    int32_t row;
    float logit;
} Listed;

/* total * e^most; most is -infinity of no logits, or of NaN. */
typedef struct {
    double total;
    float most;
} Sum;

/* What a thread has summed up, for each token. */
typedef struct {
    _Alignas(CACHE_LINE) float panel[PANEL_FLOATS];
    float logits[MOST_SCORED * SCORED_ROWS];
    float sums[MOST_SCORED * BLOCK];
    float most[MOST_SCORED]; /* what is subtracted from logits in the sums */
    Sum whole[MOST_SCORED];  /* of its earlier units */
    float floor[MOST_SCORED]; /* the least logit that may have the share, as far as is known */
    int32_t counts[MOST_SCORED];
    Listed listed[MOST_SCORED][LISTED];
} Summed;

/* How logits are computed at first. */
typedef enum { EXACT, TO_BF16, TO_BYTES } Rounding;

typedef struct {
    const Matrix *matrix;
    const float *x, *bias;
    const int64_t *targets;
    int64_t tokens, scored;
    double *out; /* the targets' logits, then their log-probabilities */
    Summed *summed; /* of each thread */
    Sum *units;     /* (units, tokens): added up in their order, whichever thread had them */
    Rounding rounding;
    uint16_t *rounded;       /* the tokens, if in bf16 */
    Activations activations; /* the same, if in 8 bits */
    float *rows;       /* (threads, columns) */
} ScoreJob;

static Sum add(Sum a, Sum b) {
    Sum greater = a.most < b.most ? b : a, other = a.most < b.most ? a : b;
    greater.total += other.most == -INFINITY ? other.total : other.total * exp(other.most - greater.most);
    return greater;
}

/* A token's sum within the unit. */
static Sum unit_sum(const Summed *own, int64_t token) {
    Sum sum = {0, own->most[token]};
    for (int64_t i = 0; i < BLOCK; i++) sum.total += own->sums[token * BLOCK + i];
    return sum;
}

static void end_unit(const ScoreJob *job, Summed *own, int64_t unit) {
    for (int64_t token = 0; token < job->tokens; token++) {
        Sum sum = job->units[unit * job->tokens + token] = unit_sum(own, token);
        own->whole[token] = add(own->whole[token], sum);
        own->most[token] = -INFINITY;
    }
    memset(own->sums, 0, sizeof own->sums);
}

/* Raises a token's floor to what its sums so far say, and drops what is below. */
static void raise_floor(Summed *own, int64_t token) {
    const Sum sum = add(own->whole[token], unit_sum(own, token));
    own->floor[token] = (float)(sum.most + log(sum.total / LOOSE_SHARE));
    int32_t kept = 0;
    for (int32_t i = 0; i < own->counts[token]; i++)
        if (own->listed[token][i].logit >= own->floor[token]) own->listed[token][kept++] = own->listed[token][i];
    own->counts[token] = kept;
}

/* Lists those of a panel's logits that may have the share, after they are in the sums. */
static void list_greatest(Summed *own, int64_t token, const float *logits, int64_t row, int64_t count) {
    if (own->counts[token] + count > LISTED || own->floor[token] == -INFINITY) raise_floor(own, token);
    for (int64_t i = 0; i < count; i++)
        if (logits[i] >= own->floor[token] && own->counts[token] < LISTED)
            own->listed[token][own->counts[token]++] = (Listed){(int32_t)(row + i), logits[i]};
}

static void sum_panel(const ScoreJob *job, Summed *own, int64_t panel) {
    const int64_t row = panel * SCORED_ROWS, left = job->matrix->rows - row, counted = job->scored - row;
    const int64_t present = left < SCORED_ROWS ? left : SCORED_ROWS;
    const int64_t count = counted < 0 ? 0 : counted < present ? counted : present;
    const Output output = {own->logits - row, SCORED_ROWS, job->bias};
    if (job->rounding == TO_BYTES)
        level()->affine_blocks(job->matrix, &job->activations, row / BLOCK, (row + present + BLOCK - 1) / BLOCK, &output);
    else if (job->rounding == TO_BF16)
        level()->bf16_panels(job->matrix, job->rounded, job->tokens, row, row + present, own->panel, &output);
    else
        level()->panels(job->matrix, job->x, job->tokens, row, row + present, own->panel, &output);
    for (int64_t token = 0; token < job->tokens; token++) {
        const float *logits = own->logits + token * SCORED_ROWS;
        const int64_t target = job->targets[token] - row;
        if (target >= 0 && target < present) job->out[token] = logits[target];
        const float floor = job->rounding == EXACT ? INFINITY : own->floor[token];
        if (level()->add_powers(logits, count, present, floor, &own->most[token], own->sums + token * BLOCK) &&
            job->rounding != EXACT)
            list_greatest(own, token, logits, row, count);
    }
}

static int64_t panels_of(const Matrix *matrix) { return (matrix->rows + SCORED_ROWS - 1) / SCORED_ROWS; }

static void scores_share(void *argument, int thread, int threads) {
    const ScoreJob *job = argument;
    Summed *own = &job->summed[thread];
    (void)threads;
    memset(own->logits, 0, sizeof own->logits); /* of rows past the last */
    memset(own->sums, 0, sizeof own->sums);
    for (int64_t token = 0; token < job->tokens; token++) {
        own->most[token] = own->floor[token] = -INFINITY;
        own->whole[token] = (Sum){0, -INFINITY};
    }
    for (int64_t unit, next; pool_take(thread, &unit, &next);) {
        for (int64_t panel = unit * UNIT; panel < (unit + 1) * UNIT && panel < panels_of(job->matrix); panel++)
            sum_panel(job, own, panel);
        end_unit(job, own, unit);
    }
}

/* A token's logit in fp32. row: of one thread, (columns). */
static double exact_logit(const ScoreJob *job, int64_t token, int64_t number, float *row) {
    enum { LANES_OF_SUM = 16 };
    const int64_t columns = job->matrix->columns;
    const float *x = job->x + token * columns;
    float lanes[LANES_OF_SUM] = {0};
    double sum = job->bias != NULL ? job->bias[number] : 0;
    int64_t column = 0;
    gptcli_matrix_row(job->matrix, number, row);
    for (; column + LANES_OF_SUM <= columns; column += LANES_OF_SUM)
        for (int64_t i = 0; i < LANES_OF_SUM; i++) lanes[i] += row[column + i] * x[column + i];
    for (; column < columns; column++) sum += row[column] * x[column];
    for (int64_t i = 0; i < LANES_OF_SUM; i++) sum += lanes[i];
    return sum;
}

static int by_row(const void *a, const void *b) {
    return ((const Listed *)a)->row - ((const Listed *)b)->row;
}

/* How much a token's total changes if the logits that matter are in fp32. row: of one thread, (columns). */
static double correction(const ScoreJob *job, int64_t token, Sum sum, float *row) {
    const double floor = sum.most + log(sum.total / LEAST_SHARE);
    Listed listed[LISTED];
    int64_t count = 0;
    double change = 0;
    for (int i = 0; i < gptcli_threads(); i++)
        for (int32_t each = 0; each < job->summed[i].counts[token]; each++)
            if (job->summed[i].listed[token][each].logit >= floor && count < LISTED)
                listed[count++] = job->summed[i].listed[token][each];
    qsort(listed, (size_t)count, sizeof *listed, by_row);
    for (int64_t i = 0; i < count; i++)
        change += exp(exact_logit(job, token, listed[i].row, row) - sum.most) - exp(listed[i].logit - sum.most);
    return change;
}

/* Makes a target's log-probability of its logit and the units' sums. row: of one thread, (columns). */
static void finish_token(const ScoreJob *job, int64_t token, float *row) {
    const int64_t units = (panels_of(job->matrix) + UNIT - 1) / UNIT;
    Sum sum = {0, -INFINITY};
    for (int64_t unit = 0; unit < units; unit++) sum = add(sum, job->units[unit * job->tokens + token]);
    if (job->rounding != EXACT) {
        const double rounded = job->out[token]; /* is not finite if its fp32 is not */
        sum.total += correction(job, token, sum, row);
        job->out[token] = exact_logit(job, token, job->targets[token], row) + 0 * rounded;
    }
    job->out[token] -= sum.most + log(sum.total);
}

static void finish_share(void *argument, int thread, int threads) {
    const ScoreJob *job = argument;
    (void)threads;
    for (int64_t token, end; pool_take(thread, &token, &end);)
        finish_token(job, token, job->rows + thread * job->matrix->columns);
}

/* Tiles multiply bf16 faster than vectors do bytes. Without VNNI, which is where even three terms are faster than fp32 for
 * a tile of tokens, fp32 is as fast as bytes. */
static Rounding rounding_of(const Matrix *matrix, int arithmetic) {
    const int narrow = matrix->kind == BFLOAT16 || (matrix->kind == CODED && matrix->rest_bytes == RECORD);
    if (arithmetic == FP32_PRODUCTS) return EXACT;
    if (matrix->kind == AFFINE && level()->few >= TILE && level()->digits_from == 0) return TO_BYTES;
    return level()->bf16_panels != NULL && (matrix->kind == AFFINE || narrow) ? TO_BF16 : EXACT;
}

/* Bytes of the tokens as they are multiplied. */
static int64_t rounded_bytes(const Matrix *matrix, int64_t tokens, Rounding rounding) {
    if (rounding == TO_BYTES) return activations_bytes(tokens, matrix->columns, 1);
    if (rounding == EXACT) return 0;
    return round_up(tokens, BF16_TOKENS) * round_up(matrix->columns, SEGMENT) * (int64_t)sizeof(uint16_t);
}

static void round_tokens(ScoreJob *job, uint8_t *memory, int64_t bytes) {
    const int64_t columns = job->matrix->columns;
    if (job->rounding == TO_BYTES) job->activations = activations_in(memory, job->tokens, columns, 1);
    if (job->rounding == TO_BF16) job->rounded = memset(memory, 0, (size_t)bytes);
    for (int64_t token = 0; token < job->tokens; token++) {
        const float *x = job->x + token * columns;
        if (job->rounding == TO_BYTES) quantize_token(&job->activations, x, token);
        if (job->rounding == TO_BF16) level()->round_token(x, columns, token, job->rounded);
    }
}

int gptcli_linear_scores(const Matrix *matrix, const float *x, int64_t tokens, const float *bias,
                         const int64_t *targets, int64_t scored, int arithmetic, double *out) {
    const int64_t columns = matrix->columns, units = (panels_of(matrix) + UNIT - 1) / UNIT;
    const int64_t unit_bytes = round_up(units * MOST_SCORED * (int64_t)sizeof(Sum), CACHE_LINE);
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
        const int64_t summed = gptcli_threads() * (int64_t)sizeof(Summed);
        const int64_t rows = round_up(gptcli_threads() * columns * (int64_t)sizeof(float), CACHE_LINE);
        job.rounding = rounding_of(matrix, arithmetic);
        const int64_t rounded = rounded_bytes(matrix, job.tokens, job.rounding);
        uint8_t *memory = pool_workspace(summed + rows + unit_bytes + rounded);
        if (memory != NULL) {
            job.summed = (Summed *)memory;
            job.rows = (float *)(memory + summed);
            job.units = (Sum *)(memory + summed + rows);
            round_tokens(&job, memory + summed + rows + unit_bytes, rounded);
            for (int i = 0; i < gptcli_threads(); i++) /* of those that may never arrive */
                memset(job.summed[i].counts, 0, sizeof job.summed[i].counts);
            pool_deal(units, 1, 1);
            pool_share(scores_share, &job);
            pool_deal(job.tokens, 1, 1);
            pool_share(finish_share, &job);
        }
        pool_unlock();
        status = memory == NULL ? -1 : 0;
    }
    return status;
}
