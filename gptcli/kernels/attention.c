/* One token's attention, cut over kv heads and ranges of positions so that a single kv head still feeds all threads;
 * then each head merges its own. */
#include "kernels.h"

static int64_t ranges_of(const Attention *attention) { return (attention->length + RANGE - 1) / RANGE; }
static int64_t partial_size(const Attention *attention) { return WEIGHTED + attention->head_dim; }

/* Floats for the results of all ranges; a head's lie side by side. */
static int64_t partials_size(const Attention *attention) {
    return attention->heads * ranges_of(attention) * partial_size(attention);
}

static void attend_range(const Attention *attention, int64_t kv_head, int64_t range, float *partials) {
    int64_t begin = range * RANGE, end = begin + RANGE < attention->length ? begin + RANGE : attention->length;
    int64_t size = partial_size(attention), ranges = ranges_of(attention);
    int64_t head = kv_head * (attention->heads / attention->kv_heads);
    level()->attend(attention, kv_head, attention->start + begin, attention->start + end,
                    partials + (head * ranges + range) * size, ranges * size);
}

static void merge_heads(const Attention *attention, float *partials) {
    int64_t ranges = ranges_of(attention);
    for (int64_t head = 0; head < attention->heads; head++)
        level()->merge(attention, head, partials + head * ranges * partial_size(attention), ranges);
}

typedef struct {
    const Attention *first;
    int64_t query_stride, cache_stride;
    float *partials;
} Job;

static Attention of_text(const Job *job, int64_t text) {
    Attention attention = *job->first;
    attention.queries += text * job->query_stride;
    attention.keys += text * job->cache_stride;
    attention.values += text * job->cache_stride;
    attention.out += text * attention.heads * attention.head_dim;
    return attention;
}

static float *partials_of(const Job *job, int64_t text) { return job->partials + text * partials_size(job->first); }

/* A task is a range of a kv head of a text; those of a thread follow each other in memory. */
static void ranges_share(void *argument, int thread, int threads) {
    Job *job = argument;
    int64_t ranges = ranges_of(job->first), kv_heads = job->first->kv_heads;
    (void)threads;
    for (int64_t task, end; pool_take(thread, &task, &end);) {
        int64_t text = task / ranges / kv_heads;
        Attention attention = of_text(job, text);
        attend_range(&attention, task / ranges % kv_heads, task % ranges, partials_of(job, text));
    }
}

int gptcli_attend_texts(const Attention *first, int64_t texts, int64_t query_stride, int64_t cache_stride) {
    pool_lock();
    float *partials = pool_workspace(texts * partials_size(first) * (int64_t)sizeof(float));
    if (partials != NULL) {
        Job job = {first, query_stride, cache_stride, partials};
        pool_deal(texts * first->kv_heads * ranges_of(first), 1, 1);
        pool_share(ranges_share, &job);
        for (int64_t text = 0; text < texts; text++) {
            Attention attention = of_text(&job, text);
            merge_heads(&attention, partials_of(&job, text));
        }
    }
    pool_unlock();
    return partials == NULL ? -1 : 0;
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
