/* out = x @ W.T + bias, on all threads, of several matrices at once if there are more. */
#include "kernels.h"

#include <string.h>

enum {
    SLAB = 512,                     /* tokens that are quantized at once */
    STEPS_PER_THREAD = 8,           /* that each thread's range is taken in */
    STEP_BYTES = 1 << 16,           /* at least, for few tokens */
    PANEL_BLOCKS = 2,               /* of a task with panels: one panel of the widest vectors */
    SLICE = 128,                    /* tokens that are worth filling a panel again for */
    JOINED = 8,                     /* matrices that are multiplied together, if so many follow each other */
    MANY = 16,                      /* more tokens than this are multiplied by panels */
    SOLO_MULTIPLICATIONS = 1 << 17, /* fewer than this take less time than sharing them would */
};

/* ---- activations ---- */

int64_t activations_bytes(int64_t tokens, int64_t columns, int64_t terms) {
    int64_t padded = round_up(tokens, smaller(tokens, TILE)), segments = columns / SEGMENT;
    int64_t bytes = round_up(padded * segments * (int64_t)sizeof(float), CACHE_LINE);
    return padded * columns * value_bytes(terms) + (2 + 2 * terms) * bytes;
}

Activations activations_in(void *workspace, int64_t tokens, int64_t columns, int64_t terms) {
    int64_t width = smaller(tokens, TILE), padded = round_up(tokens, width), segments = columns / SEGMENT;
    int64_t bytes = round_up(padded * segments * (int64_t)sizeof(float), CACHE_LINE);
    uint8_t *scales = (uint8_t *)workspace + padded * columns * value_bytes(terms);
    uint8_t *sums = scales + bytes, *offsets = sums + bytes;
    return (Activations){workspace, (float *)scales, (float *)sums, (int32_t *)offsets, tokens, segments, width, terms};
}

void quantize_token(const Activations *to, const float *x, int64_t token) {
    int64_t segments = to->segments, width = to->width;
    int64_t index = token / width * segments * width + token % width;
    int8_t *values = to->values + index * value_bytes(to->terms) * SEGMENT;
    level()->quantize(x, segments, width, to->terms, values, to->scales + index, to->sums + index,
                      to->offsets + index * to->terms * 2);
}

/* ---- products ---- */

/* How a product is computed, and in which form it takes its tokens. */
typedef enum {
    ROWS,        /* dense weights, row by row; tokens in fp32, side by side */
    DOTS,        /* affine weights, with quantized tokens */
    PANELS,      /* tokens as for ROWS */
    BF16_PANELS, /* tokens in bf16; see simd/products/bf16_panels.h */
} Way;

typedef struct {
    const Product *product;
    Way way;
    int prepares; /* whether the tokens must be brought into their form; else they, or those of the part before, are */
    const float *x;
    Activations activations;
    uint16_t *rounded;
    int64_t slice; /* tokens that one filling of a panel is used for */
    int64_t first, tasks; /* in the region at hand, whose tasks are numbered through all parts */
} Part;

typedef struct {
    Part *parts;
    int64_t count;
    float *panels; /* PANEL_FLOATS for each thread */
    int64_t tasks; /* of all parts */
    atomic_llong next;
} Job;

static Way way_of(const Product *product) {
    const Matrix *matrix = product->matrix;
    int64_t few = matrix->kind != AFFINE ? MANY : product->rounds ? level()->few_rounded : level()->few;
    if (product->tokens <= few || matrix->arithmetic == INT8_PRODUCTS) return matrix->kind == AFFINE ? DOTS : ROWS;
    return matrix->arithmetic == BF16_PRODUCTS && level()->bf16_panels != NULL ? BF16_PANELS : PANELS;
}

static int64_t terms_of(const Product *product) {
    const Matrix *matrix = product->matrix;
    if (matrix->arithmetic == INT8_PRODUCTS) return 1;
    int digits = matrix->bits == 4 && !is_looked_up(matrix->constants) && level()->digits_from > 0 &&
                 product->tokens >= level()->digits_from;
    if (!product->rounds || level()->bf16_panels == NULL) return digits ? DIGITS : MOST_TERMS;
    if (level()->has_pairs && matrix->bits <= MOST_PAIRED) return IN_BF16;
    return digits ? SHORT_DIGITS : SHORT_TERMS;
}

/* Bytes of the tokens in the form that the product takes. */
static int64_t prepared_bytes(const Product *product, Way way) {
    int64_t tokens = product->tokens, columns = product->matrix->columns, bytes = 0;
    if (way == DOTS)
        bytes = activations_bytes(tokens, columns, terms_of(product));
    else if (way == BF16_PANELS)
        bytes = round_up(tokens, BF16_TOKENS) * round_up(columns, SEGMENT) * (int64_t)sizeof(uint16_t);
    else if (product->from != NULL)
        bytes = tokens * columns * (int64_t)sizeof(float);
    return round_up(bytes, CACHE_LINE);
}

static Part part_of(const Product *product, void *memory) {
    Part part = {.product = product, .way = way_of(product), .x = product->x, .prepares = 1};
    if (part.way == DOTS)
        part.activations =
            activations_in(memory, product->tokens, product->matrix->columns, terms_of(product));
    else if (part.way == BF16_PANELS)
        part.rounded = memory;
    else if (product->from != NULL)
        part.x = memory;
    else
        part.prepares = 0;
    return part;
}

/* Whether a product takes the same tokens in the same form as another. */
static int takes_the_same(const Product *a, const Product *b) {
    return a->x == b->x && a->from == b->from && a->tokens == b->tokens && a->matrix->columns == b->matrix->columns &&
           way_of(a) == way_of(b) && terms_of(a) == terms_of(b);
}

/* The part of a task of the region at hand: the last that begins no later. */
static Part *part_at(const Job *job, int64_t task) {
    int64_t low = 0, high = job->count;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (job->parts[middle].first <= task)
            low = middle;
        else
            high = middle;
    }
    return &job->parts[low];
}

/* Numbers the tasks of a region. */
static void begin_region(Job *job, int64_t (*tasks_of)(const Part *)) {
    job->tasks = 0;
    for (Part *part = job->parts; part < job->parts + job->count; part++) {
        part->first = job->tasks;
        part->tasks = tasks_of(part);
        job->tasks += part->tasks;
    }
    atomic_store(&job->next, 0);
}

static int64_t tiles_to_prepare(const Part *part) {
    return part->prepares ? (part->product->tokens + TILE - 1) / TILE : 0;
}

static int64_t blocks_to_multiply(const Part *part) {
    return part->way == ROWS || part->way == DOTS ? blocks_of(part->product->matrix) : 0;
}

static int64_t panels_to_fill(const Part *part) {
    if (part->way == ROWS || part->way == DOTS) return 0;
    int64_t panels = (blocks_of(part->product->matrix) + PANEL_BLOCKS - 1) / PANEL_BLOCKS;
    return panels * ((part->product->tokens + part->slice - 1) / part->slice);
}

static void prepare_share(void *argument, int thread, int threads) {
    Job *job = argument;
    (void)thread, (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&job->next, 1)) < job->tasks;) {
        const Part *part = part_at(job, task);
        const Product *product = part->product;
        int64_t columns = product->matrix->columns, begin = (task - part->first) * TILE;
        for (int64_t token = begin; token < smaller(begin + TILE, product->tokens); token++) {
            const float *x = product->x + (product->from != NULL ? product->from[token] : token) * columns;
            if (part->way == DOTS)
                quantize_token(&part->activations, x, token);
            else if (part->way == BF16_PANELS)
                level()->round_token(x, columns, token, part->rounded);
            else
                memcpy((float *)part->x + token * columns, x, (size_t)columns * sizeof(float));
        }
    }
}

static Output output_of(const Product *product) {
    return (Output){product->out, product->stride, product->bias};
}

static void blocks_share(void *argument, int thread, int threads) {
    const Job *job = argument;
    (void)threads;
    for (int64_t begin, end; pool_take(thread, &begin, &end);)
        for (const Part *part = part_at(job, begin); begin < end; part++) {
            const Product *product = part->product;
            Output output = output_of(product);
            int64_t from = begin - part->first, to = smaller(end - part->first, part->tasks);
            if (part->way == DOTS)
                level()->affine_blocks(product->matrix, &part->activations, from, to, &output);
            else if (part->way == ROWS)
                level()->dense_blocks(product->matrix, part->x, product->tokens, from, to, &output);
            begin = part->first + to;
        }
}

/* A task is a panel's rows for a slice of the tokens. */
static void panels_share(void *argument, int thread, int threads) {
    Job *job = argument;
    float *panel = job->panels + (int64_t)thread * PANEL_FLOATS;
    (void)threads;
    for (int64_t task, next; pool_take(thread, &task, &next);) {
        const Part *part = part_at(job, task);
        const Matrix *matrix = part->product->matrix;
        int64_t slices = (part->product->tokens + part->slice - 1) / part->slice, number = task - part->first;
        int64_t row = number / slices * PANEL_BLOCKS * BLOCK, token = number % slices * part->slice;
        int64_t count = smaller(part->slice, part->product->tokens - token);
        int64_t end = smaller(row + PANEL_BLOCKS * BLOCK, matrix->rows);
        Output output = output_of(part->product);
        output.out += token * output.stride;
        if (part->way == BF16_PANELS)
            level()->bf16_panels(matrix, part->rounded + token * round_up(matrix->columns, SEGMENT), count, row, end,
                                 panel, &output);
        else
            level()->panels(matrix, part->x + token * matrix->columns, count, row, end, panel, &output);
    }
}

/* Where there are too few panels for the threads, the tokens are divided, too. */
static int64_t slice_of(const Matrix *matrix, int64_t tokens) {
    int64_t panels = (blocks_of(matrix) + PANEL_BLOCKS - 1) / PANEL_BLOCKS, threads = gptcli_threads();
    int64_t slices = threads == 1 ? 1 : smaller(threads * STEPS_PER_THREAD / panels, tokens / SLICE);
    return slices > 1 ? round_up((tokens + slices - 1) / slices, BF16_TOKENS) : tokens;
}

/* -1: no memory. The pool is locked. */
static int make_job(const Product *products, int64_t count, Job *job) {
    int64_t parts_bytes = round_up(count * (int64_t)sizeof(Part), CACHE_LINE);
    int64_t panel_bytes = gptcli_threads() * PANEL_FLOATS * (int64_t)sizeof(float), bytes = parts_bytes + panel_bytes;
    for (int64_t i = 0; i < count; i++) bytes += prepared_bytes(&products[i], way_of(&products[i]));
    uint8_t *memory = pool_workspace(bytes);
    if (memory == NULL) return -1;
    *job = (Job){.parts = (Part *)memory, .count = count, .panels = (float *)(memory + parts_bytes)};
    memory += parts_bytes + panel_bytes;
    for (int64_t i = 0; i < count; i++) {
        Part *part = &job->parts[i];
        if (i > 0 && takes_the_same(&products[i - 1], &products[i])) {
            *part = part[-1];
            part->product = &products[i];
            part->prepares = 0;
        } else {
            *part = part_of(&products[i], memory);
            memory += prepared_bytes(&products[i], part->way);
        }
        part->slice = slice_of(products[i].matrix, products[i].tokens);
    }
    return 0;
}

/* Blocks that are taken at once. */
static int64_t step_of(const Job *job) {
    int64_t threads = gptcli_threads(), tokens = 0, bytes = 1;
    for (const Part *part = job->parts; part < job->parts + job->count; part++) {
        if (part->tasks == 0) continue;
        tokens = larger(tokens, part->product->tokens);
        bytes = larger(bytes, part->product->matrix->block_bytes);
    }
    int64_t step = larger(1, job->tasks / (threads * STEPS_PER_THREAD));
    if (tokens > TILE) return round_up(step, 2); /* the widest vectors take two blocks at a time */
    return larger(step, smaller((job->tasks + threads - 1) / threads, STEP_BYTES / bytes));
}

static void run_tasks(Task *task, Job *job, int solo) {
    if (solo)
        task(job, 0, 1);
    else
        pool_share(task, job);
}

int linear_products(const Product *products, int64_t count) {
    int64_t multiplications = 0, tokens = 0;
    for (int64_t i = 0; i < count; i++) {
        tokens += products[i].tokens;
        multiplications += products[i].matrix->rows * products[i].matrix->columns * products[i].tokens;
    }
    int solo = multiplications < SOLO_MULTIPLICATIONS;
    Job job;
    pool_lock();
    int status = make_job(products, count, &job);
    if (status == 0) {
        begin_region(&job, tiles_to_prepare);
        if (job.tasks > 0) run_tasks(prepare_share, &job, tokens <= TILE); /* as fast as sharing them */
        begin_region(&job, blocks_to_multiply);
        pool_deal(job.tasks, step_of(&job), 2); /* see step_of */
        if (job.tasks > 0) run_tasks(blocks_share, &job, solo);
        begin_region(&job, panels_to_fill);
        pool_deal(job.tasks, 1, 1);
        if (job.tasks > 0) run_tasks(panels_share, &job, solo);
    }
    pool_unlock();
    return status;
}

int linear_joined(const Matrix *const *matrices, int64_t count, const float *x, int64_t tokens, int rounds,
                  const float *bias, float *out) {
    int64_t stride = 0;
    int status = 0;
    for (int64_t i = 0; i < count; i++) stride += matrices[i]->rows;
    for (int64_t first = 0; first < tokens && status == 0; first += SLAB) {
        Product products[JOINED];
        for (int64_t i = 0, row = 0; i < count && status == 0; i++) {
            products[i % JOINED] = (Product){
                .matrix = matrices[i],
                .x = x + first * matrices[i]->columns,
                .tokens = smaller(SLAB, tokens - first),
                .bias = bias != NULL ? bias + row : NULL,
                .out = out + first * stride + row,
                .stride = stride,
                .rounds = rounds,
            };
            row += matrices[i]->rows;
            if (i % JOINED == JOINED - 1 || i == count - 1) status = linear_products(products, i % JOINED + 1);
        }
    }
    return status;
}

int gptcli_linear(const Matrix *matrix, const float *x, int64_t tokens, int rounds, const float *bias, float *out) {
    return linear_joined(&matrix, 1, x, tokens, rounds, bias, out);
}
