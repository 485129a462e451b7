/* out = x @ W.T + bias, on all threads. */
#include "kernels.h"

enum {
    SLAB = 512,                     /* tokens that are quantized at once */
    STEPS_PER_THREAD = 8,           /* that each thread's range is taken in */
    STEP_BYTES = 1 << 16,           /* at least, for few tokens */
    PANEL_BLOCKS = 2,               /* of a task with panels: one panel of the widest vectors */
    SLICE = 128,                    /* tokens that are worth filling a panel again for */
    MANY = 16,                      /* more tokens than this are multiplied by panels */
    SOLO_MULTIPLICATIONS = 1 << 17, /* fewer than this take less time than sharing them would */
};

static int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- activations ---- */

static int64_t activations_bytes(int64_t tokens, int64_t columns, int64_t terms) {
    int64_t padded = round_up(tokens, smaller(tokens, TILE)), segments = columns / SEGMENT;
    return padded * columns * terms + (2 + 2 * terms) * round_up(padded * segments * (int64_t)sizeof(float), CACHE_LINE);
}

/* workspace: activations_bytes, 64-byte aligned. */
static Activations activations_in(void *workspace, int64_t tokens, int64_t columns, int64_t terms) {
    int64_t width = smaller(tokens, TILE), padded = round_up(tokens, width), segments = columns / SEGMENT;
    int64_t bytes = round_up(padded * segments * (int64_t)sizeof(float), CACHE_LINE);
    uint8_t *scales = (uint8_t *)workspace + padded * columns * terms, *sums = scales + bytes, *offsets = sums + bytes;
    return (Activations){workspace, (float *)scales, (float *)sums, (int32_t *)offsets, tokens, segments, width, terms};
}

/* Quantizes tokens [begin, end) of x, (tokens, columns). */
static void quantize(const Activations *to, const float *x, int64_t begin, int64_t end) {
    int64_t segments = to->segments, width = to->width;
    for (int64_t token = begin; token < end; token++) {
        int64_t index = token / width * segments * width + token % width;
        level()->quantize(x + token * segments * SEGMENT, segments, width, to->terms,
                          to->values + index * to->terms * SEGMENT, to->scales + index, to->sums + index,
                          to->offsets + index * to->terms * 2);
    }
}

/* ---- products ---- */

typedef struct {
    const Matrix *matrix;
    const float *x;
    int64_t tokens;
    Activations activations;
    uint16_t *rounded; /* the tokens in bf16 for level()->bf16_panels, or NULL */
    float *panels;     /* PANEL_FLOATS for each thread */
    int64_t slice; /* tokens that one filling of a panel is used for */
    Output output;
    int64_t step; /* blocks that are taken at once */
    atomic_llong next_token, next_panel;
} Job;

static void quantize_share(void *argument, int thread, int threads) {
    Job *job = argument;
    (void)thread, (void)threads;
    for (int64_t token; (token = atomic_fetch_add(&job->next_token, TILE)) < job->tokens;)
        quantize(&job->activations, job->x, token, smaller(token + TILE, job->tokens));
}

static void round_share(void *argument, int thread, int threads) {
    Job *job = argument;
    (void)thread, (void)threads;
    for (int64_t token; (token = atomic_fetch_add(&job->next_token, TILE)) < job->tokens;)
        level()->round_tokens(job->x, job->tokens, job->matrix->columns, token, smaller(token + TILE, job->tokens),
                              job->rounded);
}

static void blocks_share(void *argument, int thread, int threads) {
    const Job *job = argument;
    const Matrix *matrix = job->matrix;
    (void)threads;
    for (int64_t begin, end; pool_take(thread, &begin, &end);) {
        if (matrix->kind == AFFINE)
            level()->affine_blocks(matrix, &job->activations, begin, end, &job->output);
        else
            level()->dense_blocks(matrix, job->x, job->tokens, begin, end, &job->output);
    }
}

/* A task is a panel's rows for a slice of the tokens. */
static void panels_share(void *argument, int thread, int threads) {
    Job *job = argument;
    const Matrix *matrix = job->matrix;
    float *panel = job->panels + (int64_t)thread * PANEL_FLOATS;
    int64_t rows = PANEL_BLOCKS * BLOCK, slices = (job->tokens + job->slice - 1) / job->slice;
    (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&job->next_panel, 1)) / slices * rows < matrix->rows;) {
        int64_t row = task / slices * rows, token = task % slices * job->slice;
        Output output = job->output;
        int64_t count = smaller(job->slice, job->tokens - token), end = smaller(row + rows, matrix->rows);
        output.out += token * output.stride;
        if (job->rounded != NULL)
            level()->bf16_panels(matrix, job->rounded + token * round_up(matrix->columns, SEGMENT), count, row, end,
                                 panel, &output);
        else
            level()->panels(matrix, job->x + token * matrix->columns, count, row, end, panel, &output);
    }
}

/* Where there are too few panels for the threads, the tokens are divided, too. */
static int64_t slice_of(const Matrix *matrix, int64_t tokens) {
    int64_t panels = (blocks_of(matrix) + PANEL_BLOCKS - 1) / PANEL_BLOCKS, threads = gptcli_threads();
    int64_t slices = threads == 1 ? 1 : smaller(threads * STEPS_PER_THREAD / panels, tokens / SLICE);
    return slices > 1 ? round_up((tokens + slices - 1) / slices, BF16_TOKENS) : tokens;
}

/* -1: no memory. */
static int prepare_blocks(Job *job) {
    pool_deal(blocks_of(job->matrix), job->step, 2); /* see step_of */
    if (job->matrix->kind != AFFINE) return 0;
    int64_t columns = job->matrix->columns, terms = job->matrix->arithmetic == INT8_PRODUCTS ? 1 : MOST_TERMS;
    void *workspace = pool_workspace(activations_bytes(job->tokens, columns, terms));
    if (workspace == NULL) return -1;
    job->activations = activations_in(workspace, job->tokens, columns, terms);
    if (job->tokens <= TILE) /* takes a few microseconds, no longer than sharing it */
        quantize(&job->activations, job->x, 0, job->tokens);
    else
        pool_share(quantize_share, job);
    return 0;
}

/* -1: no memory. */
static int prepare_panels(Job *job) {
    const Matrix *matrix = job->matrix;
    int bf16 = matrix->arithmetic == BF16_PRODUCTS && level()->bf16_panels != NULL;
    int64_t panel_bytes = gptcli_threads() * PANEL_FLOATS * (int64_t)sizeof(float);
    int64_t rounded = round_up(job->tokens, BF16_TOKENS) * round_up(matrix->columns, SEGMENT);
    uint8_t *workspace = pool_workspace(panel_bytes + (bf16 ? rounded * (int64_t)sizeof(uint16_t) : 0));
    if (workspace == NULL) return -1;
    job->panels = (float *)workspace;
    job->slice = slice_of(matrix, job->tokens);
    if (bf16) {
        job->rounded = (uint16_t *)(workspace + panel_bytes);
        pool_share(round_share, job);
    }
    return 0;
}

/* At most SLAB tokens. The pool is locked. */
static int linear_slab(Job *job) {
    const Matrix *matrix = job->matrix;
    int64_t few = matrix->kind == AFFINE ? level()->few : MANY;
    int panels = job->tokens > few && matrix->arithmetic != INT8_PRODUCTS;
    if ((panels ? prepare_panels(job) : prepare_blocks(job)) != 0) return -1;
    Task *share = panels ? panels_share : blocks_share;
    if (matrix->rows * matrix->columns * job->tokens < SOLO_MULTIPLICATIONS)
        share(job, 0, 1);
    else
        pool_share(share, job);
    return 0;
}

static int64_t step_of(const Matrix *matrix, int64_t tokens) {
    int64_t blocks = blocks_of(matrix), threads = gptcli_threads();
    int64_t step = larger(1, blocks / (threads * STEPS_PER_THREAD));
    if (tokens > TILE) return round_up(step, 2); /* the widest vectors take two blocks at a time */
    return larger(step, smaller((blocks + threads - 1) / threads, STEP_BYTES / matrix->block_bytes));
}

int gptcli_linear(const Matrix *matrix, const float *x, int64_t tokens, const float *bias, float *out) {
    int status = 0;
    pool_lock();
    int64_t step = step_of(matrix, tokens);
    for (int64_t first = 0; first < tokens && status == 0; first += SLAB) {
        Job job = {.matrix = matrix, .x = x + first * matrix->columns, .tokens = smaller(SLAB, tokens - first)};
        job.output = (Output){out + first * matrix->rows, matrix->rows, bias};
        job.step = step;
        status = linear_slab(&job);
    }
    pool_unlock();
    return status;
}
