/* Attention of one token of each text, and of many tokens of one text. */
#include "kernels.h"

/* ---- one token ----
 *
 * A task is a range of positions of a kv head, so that even a single kv head keeps all threads busy. Afterwards the
 * results of each head's ranges are merged.
 */

static int64_t ranges_of(const Attention *attention) { return (attention->length + RANGE - 1) / RANGE; }
static int64_t partial_size(const Attention *attention) { return WEIGHTED + attention->head_dim; }

/* Floats for the results of all ranges; those of a head lie side by side. */
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

/* Consecutive tasks of a thread read consecutive memory. */
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

int attention_of_texts(const Attention *first, int64_t texts, int64_t query_stride, int64_t cache_stride) {
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

int gptcli_attention(const Attention *attention) { return attention_of_texts(attention, 1, 0, 0); }

/* ---- many tokens ----
 *
 * First the keys are transposed, span by span, to (spans, head_dim, SPAN) for each kv head, so that scores are computed
 * in vectors over positions. Then each task takes a few tokens of a kv head.
 */

enum {
    QUERIES = 48,        /* of a task, which share what is loaded of keys and values */
    SPLIT_QUERIES = 192, /* the same in tiles, which wait for the third cache with fewer */
    MOST_ROWS = 32,      /* to which queries are padded at most */
};

typedef struct {
    const Passage *passage;
    float *prepared, *slices; /* prepared: keys, and what else a span needs */
    int split;                /* whether in tiles */
    int64_t spans, tile, tiles; /* tile: tokens of a task */
    int64_t span_floats;
    int64_t slice; /* floats of a thread's workspace */
    atomic_llong next_span, next_tile;
} PassageJob;

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

static void transpose_span(const Passage *passage, int64_t kv_head, int64_t span, float *to) {
    int64_t head_dim = passage->head_dim, from = span * SPAN;
    int64_t present = smaller(SPAN, passage->first + passage->tokens - from);
    const float *keys = passage->keys + kv_head * passage->head_stride + from * head_dim;
    for (int64_t i = 0; i < head_dim; i++, to += SPAN) {
        for (int64_t position = 0; position < present; position++) to[position] = keys[position * head_dim + i];
        for (int64_t position = present; position < SPAN; position++) to[position] = 0;
    }
}

static void spans_share(void *argument, int thread, int threads) {
    PassageJob *job = argument;
    (void)thread, (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&job->next_span, 1)) < job->passage->kv_heads * job->spans;)
        (job->split ? level()->split_span : transpose_span)(job->passage, task / job->spans, task % job->spans,
                                                            job->prepared + task * job->span_floats);
}

static void tiles_share(void *argument, int thread, int threads) {
    PassageJob *job = argument;
    const Passage *passage = job->passage;
    (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&job->next_tile, 1)) < passage->kv_heads * job->tiles;) {
        int64_t kv_head = task % passage->kv_heads;
        int64_t tile = job->tiles - 1 - task / passage->kv_heads; /* the last tokens see most, so they go first */
        int64_t begin = tile * job->tile, end = smaller(begin + job->tile, passage->tokens);
        const float *prepared = job->prepared + kv_head * job->spans * job->span_floats;
        (job->split ? level()->attend_split : level()->attend_passage)(passage, kv_head, begin, end, prepared,
                                                                       job->slices + thread * job->slice);
    }
}

int gptcli_passage(const Passage *passage) {
    int64_t group = passage->heads / passage->kv_heads, head_dim = passage->head_dim;
    PassageJob job = {.passage = passage};
    job.split = passage->arithmetic == BF16_PRODUCTS && level()->attend_split != NULL;
    if (job.split) head_dim = round_up(head_dim, SEGMENT);
    job.tile = larger(1, (job.split ? SPLIT_QUERIES : QUERIES) / group);
    job.spans = (passage->first + passage->tokens + SPAN - 1) / SPAN;
    job.span_floats = (job.split ? 2 : 1) * SPAN * head_dim;
    job.tiles = (passage->tokens + job.tile - 1) / job.tile;
    int64_t line = CACHE_LINE / (int64_t)sizeof(float); /* and the totals of a row in tiles */
    job.slice = round_up(job.tile * group, MOST_ROWS) * (2 * head_dim + 2 * SPAN + line + 1);
    job.slice = round_up(job.slice, line);
    int64_t prepared = passage->kv_heads * job.spans * job.span_floats;
    pool_lock();
    job.prepared = pool_workspace((prepared + gptcli_threads() * job.slice) * (int64_t)sizeof(float));
    if (job.prepared != NULL) {
        job.slices = job.prepared + prepared;
        pool_share(spans_share, &job);
        pool_share(tiles_share, &job);
    }
    pool_unlock();
    return job.prepared == NULL ? -1 : 0;
}
