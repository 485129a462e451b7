/* One token's attention, cut over kv heads and ranges of positions so that a single kv head still feeds all threads. */
#include "kernels.h"

#include <math.h>

/* A head's result over one range, unnormalized: its greatest score, the sum of exp(score - greatest), and the values
 * weighted with these, (head_dim). A head's ranges lie side by side. */
enum { GREATEST, SUM, WEIGHTED };

static int64_t ranges_of(const Attention *attention) { return (attention->length + RANGE - 1) / RANGE; }
static int64_t partial_size(const Attention *attention) { return WEIGHTED + attention->head_dim; }

int64_t gptcli_attention_tasks(const Attention *attention) { return attention->kv_heads * ranges_of(attention); }

int64_t gptcli_attention_bytes(const Attention *attention) {
    return attention->heads * ranges_of(attention) * partial_size(attention) * (int64_t)sizeof(float);
}

void gptcli_attention_task(const Attention *attention, int64_t task, float *workspace) {
    int64_t ranges = ranges_of(attention), kv_head = task / ranges, range = task % ranges;
    int64_t begin = range * RANGE, end = begin + RANGE < attention->length ? begin + RANGE : attention->length;
    int64_t size = partial_size(attention), head = kv_head * (attention->heads / attention->kv_heads);
    float *partial = workspace + (head * ranges + range) * size;
    level()->attend(attention, kv_head, attention->start + begin, attention->start + end, partial, ranges * size);
}

void gptcli_attention_merge(const Attention *attention, int64_t head, const float *workspace) {
    int64_t ranges = ranges_of(attention), size = partial_size(attention), head_dim = attention->head_dim;
    const float *partials = workspace + head * ranges * size;
    float *out = attention->out + head * head_dim;
    float greatest = attention->sinks != NULL ? attention->sinks[head] : -INFINITY;
    for (int64_t range = 0; range < ranges; range++) greatest = fmaxf(greatest, partials[range * size + GREATEST]);
    float sum = attention->sinks != NULL ? expf(attention->sinks[head] - greatest) : 0;
    for (int64_t i = 0; i < head_dim; i++) out[i] = 0;
    for (int64_t range = 0; range < ranges; range++) {
        const float *partial = partials + range * size;
        float weight = expf(partial[GREATEST] - greatest);
        sum += weight * partial[SUM];
        for (int64_t i = 0; i < head_dim; i++) out[i] += weight * partial[WEIGHTED + i];
    }
    for (int64_t i = 0; i < head_dim; i++) out[i] /= sum;
}

typedef struct {
    const Attention *first;
    int64_t texts, query_stride, cache_stride;
    uint8_t *workspace;
    atomic_llong next;
} Job;

static Attention of_text(const Job *job, int64_t text) {
    Attention attention = *job->first;
    attention.queries += text * job->query_stride;
    attention.keys += text * job->cache_stride;
    attention.values += text * job->cache_stride;
    attention.out += text * attention.heads * attention.head_dim;
    return attention;
}

static float *workspace_of(const Job *job, int64_t text) {
    return (float *)(job->workspace + text * gptcli_attention_bytes(job->first));
}

static void tasks_share(void *argument, int thread, int threads) {
    Job *job = argument;
    int64_t each = gptcli_attention_tasks(job->first);
    (void)thread, (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&job->next, 1)) < job->texts * each;) {
        Attention attention = of_text(job, task / each);
        gptcli_attention_task(&attention, task % each, workspace_of(job, task / each));
    }
}

int gptcli_attend_texts(const Attention *first, int64_t texts, int64_t query_stride, int64_t cache_stride) {
    pool_lock();
    Job job = {first, texts, query_stride, cache_stride, pool_workspace(texts * gptcli_attention_bytes(first)), 0};
    if (job.workspace != NULL) {
        pool_share(tasks_share, &job);
        for (int64_t text = 0; text < texts; text++) {
            Attention attention = of_text(&job, text);
            for (int64_t head = 0; head < attention.heads; head++)
                gptcli_attention_merge(&attention, head, workspace_of(&job, text));
        }
    }
    pool_unlock();
    return job.workspace == NULL ? -1 : 0;
}

int gptcli_attention(const Attention *attention) { return gptcli_attend_texts(attention, 1, 0, 0); }

/* ---- many tokens ----
 *
 * Keys are transposed first, a span of positions after the other, (spans, head_dim, SPAN) for each kv head, so that
 * scores are products of vectors over positions. Then each task takes a few tokens of a kv head.
 */

enum {
    QUERIES = 48,    /* of a task: they share what is loaded of keys and values */
    MOST_ROWS = 8,   /* level.h's ROWS at most, to which queries are padded */
};

typedef struct {
    const Passage *passage;
    float *transposed, *slices;
    int64_t spans, tile, tiles, slice; /* tokens of a task, and floats of a thread's workspace */
    atomic_llong next_span, next_tile;
} Course;

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static void transpose_span(const Course *course, int64_t kv_head, int64_t span) {
    const Passage *passage = course->passage;
    int64_t head_dim = passage->head_dim, from = span * SPAN;
    int64_t present = smaller(SPAN, passage->first + passage->tokens - from);
    const float *keys = passage->keys + kv_head * passage->head_stride + from * head_dim;
    float *to = course->transposed + (kv_head * course->spans + span) * SPAN * head_dim;
    for (int64_t i = 0; i < head_dim; i++, to += SPAN) {
        for (int64_t position = 0; position < present; position++) to[position] = keys[position * head_dim + i];
        for (int64_t position = present; position < SPAN; position++) to[position] = 0;
    }
}

static void spans_share(void *argument, int thread, int threads) {
    Course *course = argument;
    (void)thread, (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&course->next_span, 1)) < course->passage->kv_heads * course->spans;)
        transpose_span(course, task / course->spans, task % course->spans);
}

static void tiles_share(void *argument, int thread, int threads) {
    Course *course = argument;
    const Passage *passage = course->passage;
    (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&course->next_tile, 1)) < passage->kv_heads * course->tiles;) {
        int64_t kv_head = task % passage->kv_heads;
        int64_t tile = course->tiles - 1 - task / passage->kv_heads; /* the last tokens see most: they begin */
        int64_t begin = tile * course->tile, end = smaller(begin + course->tile, passage->tokens);
        const float *transposed = course->transposed + kv_head * course->spans * SPAN * passage->head_dim;
        level()->attend_passage(passage, kv_head, begin, end, transposed, course->slices + thread * course->slice);
    }
}

int gptcli_attend_passage(const Passage *passage) {
    int64_t group = passage->heads / passage->kv_heads, head_dim = passage->head_dim;
    Course course = {.passage = passage, .tile = larger(1, QUERIES / group)};
    course.spans = (passage->first + passage->tokens + SPAN - 1) / SPAN;
    course.tiles = (passage->tokens + course.tile - 1) / course.tile;
    int64_t rows = (course.tile * group + MOST_ROWS - 1) / MOST_ROWS * MOST_ROWS;
    int64_t line = CACHE_LINE / (int64_t)sizeof(float);
    course.slice = (rows * (2 * head_dim + SPAN + 2) + line - 1) / line * line;
    int64_t transposed = passage->kv_heads * course.spans * SPAN * head_dim;
    pool_lock();
    course.transposed = pool_workspace((transposed + gptcli_threads() * course.slice) * (int64_t)sizeof(float));
    if (course.transposed != NULL) {
        course.slices = course.transposed + transposed;
        pool_share(spans_share, &course);
        pool_share(tiles_share, &course);
    }
    pool_unlock();
    return course.transposed == NULL ? -1 : 0;
}
