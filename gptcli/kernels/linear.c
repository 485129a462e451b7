/* out = x @ W.T + bias. */
#include "kernels.h"

enum {
    SLAB = 512,                     /* tokens whose activations are held at once */
    PIECES_A_THREAD = 8,            /* that a thread's share is cut into */
    PIECE_BYTES = 1 << 16,          /* at least, for few tokens */
    PANEL_BLOCKS = 2,               /* a task's, if there are many tokens: what the widest vectors make a panel of */
    SLICE = 128,                    /* tokens that are worth making a panel of their own for */
    MANY = 16,                      /* tokens; more are multiplied by panels, unless they are integers */
    SOLO_MULTIPLICATIONS = 1 << 17, /* fewer take less time than it takes to share them */
};

static int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- activations ---- */

int64_t gptcli_activations_bytes(int64_t tokens, int64_t columns) {
    int64_t padded = round_up(tokens, smaller(tokens, TILE)), parts = columns / PART;
    return padded * columns + 3 * round_up(padded * parts * (int64_t)sizeof(float), CACHE_LINE);
}

void gptcli_activations_place(Activations *activations, void *workspace, int64_t tokens, int64_t columns) {
    int64_t width = smaller(tokens, TILE), padded = round_up(tokens, width), parts = columns / PART;
    int64_t bytes = round_up(padded * parts * (int64_t)sizeof(float), CACHE_LINE);
    uint8_t *scales = (uint8_t *)workspace + padded * columns, *sums = scales + bytes, *offsets = sums + bytes;
    *activations =
        (Activations){workspace, (float *)scales, (float *)sums, (int32_t *)offsets, tokens, parts, width};
}

void gptcli_quantize(Activations *activations, const float *x, int64_t begin, int64_t end) {
    int64_t parts = activations->parts, width = activations->width;
    for (int64_t token = begin; token < end; token++) {
        int64_t place = token / width * parts * width + token % width;
        level()->quantize(x + token * parts * PART, parts, width, activations->values + place * PART,
                          activations->scales + place, activations->sums + place, activations->offsets + place);
    }
}

/* ---- on all threads ---- */

typedef struct {
    const Matrix *matrix;
    const float *x;
    int64_t tokens;
    Activations activations;
    float *panels; /* PANEL_FLOATS for each thread */
    int64_t span; /* tokens that use a panel as long as it is there */
    Output output;
    int64_t step; /* blocks that are taken at once */
    atomic_llong next_token, next_panel;
} Job;

static void quantize_share(void *argument, int thread, int threads) {
    Job *job = argument;
    (void)thread, (void)threads;
    for (int64_t token; (token = atomic_fetch_add(&job->next_token, TILE)) < job->tokens;)
        gptcli_quantize(&job->activations, job->x, token, smaller(token + TILE, job->tokens));
}

void gptcli_linear_blocks(const Matrix *matrix, const float *x, int64_t tokens, const Activations *activations,
                          int64_t begin, int64_t end, const Output *output) {
    if (matrix->integers)
        level()->affine_blocks(matrix, activations, begin, end, output);
    else if (matrix->kind == AFFINE)
        level()->exact_blocks(matrix, x, tokens, begin, end, output);
    else
        level()->dense_blocks(matrix, x, tokens, begin, end, output);
}

static void blocks_share(void *argument, int thread, int threads) {
    Job *job = argument;
    (void)threads;
    for (int64_t begin, end; pool_take(thread, &begin, &end);)
        gptcli_linear_blocks(job->matrix, job->x, job->tokens, &job->activations, begin, end, &job->output);
}

/* A task is a panel's rows of a span of the tokens. */
static void panels_share(void *argument, int thread, int threads) {
    Job *job = argument;
    const Matrix *matrix = job->matrix;
    float *panel = job->panels + (int64_t)thread * PANEL_FLOATS;
    int64_t rows = PANEL_BLOCKS * BLOCK, spans = (job->tokens + job->span - 1) / job->span;
    (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&job->next_panel, 1)) / spans * rows < matrix->rows;) {
        int64_t row = task / spans * rows, token = task % spans * job->span;
        Output output = job->output;
        output.out += token * output.stride;
        level()->panels(matrix, job->x + token * matrix->columns, smaller(job->span, job->tokens - token), row,
                        smaller(row + rows, matrix->rows), panel, &output);
    }
}

/* Few panels for many threads are shared by spans of tokens. */
static int64_t tokens_at_once(const Matrix *matrix, int64_t tokens) {
    int64_t panels = (blocks_of(matrix) + PANEL_BLOCKS - 1) / PANEL_BLOCKS, threads = gptcli_threads();
    int64_t spans = threads == 1 ? 1 : smaller(threads * PIECES_A_THREAD / panels, tokens / SLICE);
    return spans > 1 ? (tokens + spans - 1) / spans : tokens;
}

/* At most SLAB tokens. The pool is locked. */
static int linear_slab(Job *job) {
    int64_t columns = job->matrix->columns, work = job->matrix->rows * columns * job->tokens;
    if (job->matrix->integers) {
        void *workspace = pool_workspace(gptcli_activations_bytes(job->tokens, columns));
        if (workspace == NULL) return -1;
        gptcli_activations_place(&job->activations, workspace, job->tokens, columns);
        if (job->tokens <= TILE) /* a few microseconds: as long as it takes to begin another region */
            gptcli_quantize(&job->activations, job->x, 0, job->tokens);
        else
            pool_share(quantize_share, job);
    }
    Task *share = blocks_share;
    if (!job->matrix->integers && job->tokens > MANY) {
        job->panels = pool_workspace(gptcli_threads() * PANEL_FLOATS * (int64_t)sizeof(float));
        if (job->panels == NULL) return -1;
        job->span = tokens_at_once(job->matrix, job->tokens);
        share = panels_share;
    } else {
        pool_deal(blocks_of(job->matrix), job->step, 2); /* as blocks_at_once */
    }
    if (work < SOLO_MULTIPLICATIONS)
        share(job, 0, 1);
    else
        pool_share(share, job);
    return 0;
}

static int64_t blocks_at_once(const Matrix *matrix, int64_t tokens) {
    int64_t blocks = blocks_of(matrix), threads = gptcli_threads();
    int64_t step = larger(1, blocks / (threads * PIECES_A_THREAD));
    if (tokens > TILE) return round_up(step, 2); /* the widest vectors take two at a time */
    return larger(step, smaller((blocks + threads - 1) / threads, PIECE_BYTES / matrix->block_bytes));
}

int gptcli_linear(const Matrix *matrix, const float *x, int64_t tokens, const float *bias, float *out) {
    int status = 0;
    pool_lock();
    int64_t step = blocks_at_once(matrix, tokens);
    for (int64_t first = 0; first < tokens && status == 0; first += SLAB) {
        Job job = {.matrix = matrix, .x = x + first * matrix->columns, .tokens = smaller(SLAB, tokens - first)};
        job.output = (Output){out + first * matrix->rows, matrix->rows, bias};
        job.step = step;
        status = linear_slab(&job);
    }
    pool_unlock();
    return status;
}
