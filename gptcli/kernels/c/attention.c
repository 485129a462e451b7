/* Attention of single tokens, of any texts, and of many tokens of one text. */
#include "kernels.h"

/* ---- single tokens ----
 *
 * A task is a range of positions of a kv head, so that even a single kv head keeps all threads busy. Afterwards the
 * results of each head's ranges are merged.
 */

enum { MANY_TASKS = 32 };

/* Positions of a task. Memory is read faster in longer pieces, but many threads should have some. */
static int64_t range_of(const Attention *attention) {
    const int64_t share = attention->length * attention->kv_heads / MANY_TASKS;
    return share >= RANGE ? RANGE : share >= RANGE / 2 ? RANGE / 2 : RANGE / 4;
}

static int64_t ranges_of(const Attention *attention) {
    return (attention->length + range_of(attention) - 1) / range_of(attention);
}

static int64_t partial_size(const Attention *attention) { return WEIGHTED + attention->head_dim; }

/* Floats for the results of all ranges; those of a head lie side by side. */
static int64_t partials_size(const Attention *attention) {
    return attention->heads * ranges_of(attention) * partial_size(attention);
}

static void attend_range(const Attention *attention, int64_t kv_head, int64_t range, float *partials,
                         float *workspace) {
    int64_t begin = range * range_of(attention), end = smaller(begin + range_of(attention), attention->length);
    int64_t size = partial_size(attention), ranges = ranges_of(attention);
    int64_t head = kv_head * (attention->heads / attention->kv_heads);
    level()->attend(attention, kv_head, attention->start + begin, attention->start + end,
                    partials + (head * ranges + range) * size, ranges * size, workspace);
}

static void merge_heads(const Attention *attention, float *partials) {
    int64_t ranges = ranges_of(attention);
    for (int64_t head = 0; head < attention->heads; head++)
        level()->merge(attention, head, partials + head * ranges * partial_size(attention), ranges);
}

typedef struct {
    const Attention *tokens;
    int64_t count, tasks;
    float *partials, *workspaces;
    int64_t workspace; /* floats of a thread's */
    int64_t *first_tasks; /* (count) each token's first task */
    int64_t *offsets;     /* (count) of its results in `partials` */
} Job;

static int64_t tasks_of(const Attention *attention) { return attention->kv_heads * ranges_of(attention); }

/* Fetches what a task reads, while the one before it is computed: texts are short, and not in the caches. In a long one
 * a task fetches what follows by itself. */
static void fetch_task(const Job *job, int64_t task, int64_t token) {
    if (task >= job->tasks) return;
    if (token + 1 < job->count && job->first_tasks[token + 1] <= task) token++;
    const Attention *attention = &job->tokens[token];
    const CacheKind kind = (CacheKind)attention->kind;
    const int64_t own = task - job->first_tasks[token], ranges = ranges_of(attention), range = range_of(attention);
    const int64_t begin = own % ranges * range, count = smaller(range, attention->length - begin);
    if (range == RANGE && begin > 0) return;
    const int64_t size = attention->head_dim * number_bytes(kind);
    const int64_t first = own / ranges * head_bytes(kind, attention->head_dim, attention->room) +
                          (attention->start + begin) * size;
    for (int64_t at = 0; at < count * size; at += CACHE_LINE) {
        __builtin_prefetch(attention->keys + first + at);
        __builtin_prefetch(attention->values + first + at);
    }
}

/* Consecutive tasks of a thread read consecutive memory. */
static void ranges_share(void *argument, int thread, int threads) {
    Job *job = argument;
    int64_t token = 0;
    (void)threads;
    for (int64_t task, end; pool_take(thread, &task, &end);) {
        while (token > 0 && job->first_tasks[token] > task) token--;
        while (token + 1 < job->count && job->first_tasks[token + 1] <= task) token++;
        const Attention *attention = &job->tokens[token];
        fetch_task(job, end, token);
        int64_t own = task - job->first_tasks[token], ranges = ranges_of(attention);
        attend_range(attention, own / ranges, own % ranges, job->partials + job->offsets[token],
                     job->workspaces + thread * job->workspace);
    }
}

static void merge_share(void *argument, int thread, int threads) {
    Job *job = argument;
    (void)threads;
    for (int64_t token, end; pool_take(thread, &token, &end);)
        merge_heads(&job->tokens[token], job->partials + job->offsets[token]);
}

int gptcli_attention(const Attention *tokens, int64_t count) {
    Job job = {.tokens = tokens, .count = count, .workspace = 2 * RANGE * tokens->head_dim};
    pool_lock();
    int64_t floats = gptcli_threads() * job.workspace;
    for (int64_t token = 0; token < count; token++) floats += partials_size(&tokens[token]);
    floats += floats % 2; /* the numbers after them are aligned */
    job.workspaces = pool_workspace(floats * (int64_t)sizeof(float) + 2 * count * (int64_t)sizeof(int64_t));
    if (job.workspaces != NULL) {
        job.partials = job.workspaces + gptcli_threads() * job.workspace;
        job.first_tasks = (int64_t *)(job.workspaces + floats);
        job.offsets = job.first_tasks + count;
        int64_t offset = 0;
        for (int64_t token = 0; token < count; token++) {
            job.first_tasks[token] = job.tasks;
            job.offsets[token] = offset;
            job.tasks += tasks_of(&tokens[token]);
            offset += partials_size(&tokens[token]);
        }
        pool_deal(job.tasks, 1, 1);
        pool_share(ranges_share, &job);
        if (count == 1) {
            merge_heads(tokens, job.partials);
        } else {
            pool_deal(count, 1, 1);
            pool_share(merge_share, &job);
        }
    }
    pool_unlock();
    return job.workspaces == NULL ? -1 : 0;
}

/* ---- many tokens ----
 *
 * First the keys are transposed, span by span, to (spans, head_dim, SPAN) for each kv head, so that scores are computed
 * in vectors over positions. Then each task takes a few tokens of a kv head.
 */

enum {
    QUERIES = 48,   /* of a task, which share what is loaded of keys and values */
    MOST_ROWS = 32, /* to which queries are padded at most */
};

typedef struct {
    const Prefill *prefill;
    float *prepared, *slices; /* prepared: keys, and what else a span needs */
    int split;                /* whether in products of 16 bits */
    int64_t spans, tile, tiles; /* tile: tokens of a task */
    int64_t span_floats;
    int64_t slice; /* floats of a thread's workspace */
    atomic_llong next_span, next_tile;
} PrefillJob;

/* The keys or values of a span in fp32; expanded: SPAN * head_dim floats for those that are stored otherwise. */
static const float *span_of(const Prefill *prefill, const uint8_t *cached, int64_t kv_head, int64_t span,
                            float *expanded) {
    CacheKind kind = (CacheKind)prefill->kind;
    int64_t from = span * SPAN, end = smaller(from + SPAN, prefill->first + prefill->tokens);
    const uint8_t *head = cached + kv_head * head_bytes(kind, prefill->head_dim, prefill->room);
    if (kind == CACHE_FP32) return (const float *)head + from * prefill->head_dim;
    return level()->expand(kind, head, prefill->head_dim, prefill->room, from, end, expanded);
}

static void transpose_keys(const float *keys, int64_t present, int64_t head_dim, float *to) {
    for (int64_t i = 0; i < head_dim; i++, to += SPAN) {
        for (int64_t position = 0; position < present; position++) to[position] = keys[position * head_dim + i];
        for (int64_t position = present; position < SPAN; position++) to[position] = 0;
    }
}

static void prepare_span(const PrefillJob *job, int64_t kv_head, int64_t span, float *to, float *workspace) {
    const Prefill *prefill = job->prefill;
    int64_t present = smaller(SPAN, prefill->first + prefill->tokens - span * SPAN), head_dim = prefill->head_dim;
    const float *keys = span_of(prefill, prefill->keys, kv_head, span, workspace);
    if (job->split)
        level()->split_span(keys, span_of(prefill, prefill->values, kv_head, span, workspace + SPAN * head_dim), present,
                            head_dim, to);
    else
        transpose_keys(keys, present, head_dim, to);
}

static void spans_share(void *argument, int thread, int threads) {
    PrefillJob *job = argument;
    (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&job->next_span, 1)) < job->prefill->kv_heads * job->spans;)
        prepare_span(job, task / job->spans, task % job->spans, job->prepared + task * job->span_floats,
                     job->slices + thread * job->slice);
}

static void tiles_share(void *argument, int thread, int threads) {
    PrefillJob *job = argument;
    const Prefill *prefill = job->prefill;
    (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&job->next_tile, 1)) < prefill->kv_heads * job->tiles;) {
        int64_t kv_head = task % prefill->kv_heads;
        int64_t tile = job->tiles - 1 - task / prefill->kv_heads; /* the last tokens see most, so they go first */
        int64_t begin = tile * job->tile, end = smaller(begin + job->tile, prefill->tokens);
        const float *prepared = job->prepared + kv_head * job->spans * job->span_floats;
        (job->split ? level()->attend_split : level()->attend_prefill)(prefill, kv_head, begin, end, prepared,
                                                                       job->slices + thread * job->slice);
    }
}

static int is_split(const Prefill *prefill) {
    if (level()->attend_split == NULL || prefill->arithmetic != ROUNDED_PRODUCTS) return 0;
    return prefill->head_dim <= level()->split_depth;
}

int gptcli_attend_prefill(const Prefill *prefill) {
    int64_t group = prefill->heads / prefill->kv_heads, head_dim = prefill->head_dim;
    PrefillJob job = {.prefill = prefill};
    job.split = is_split(prefill);
    if (job.split) head_dim = round_up(head_dim, SEGMENT);
    job.tile = larger(1, (job.split ? level()->split_queries : QUERIES) / group);
    job.spans = (prefill->first + prefill->tokens + SPAN - 1) / SPAN;
    job.span_floats = (job.split ? 2 : 1) * SPAN * head_dim;
    job.tiles = (prefill->tokens + job.tile - 1) / job.tile;
    int64_t line = CACHE_LINE / (int64_t)sizeof(float); /* and the totals of a row in tiles */
    job.slice = round_up(job.tile * group, MOST_ROWS) * (2 * head_dim + 2 * SPAN + line + 1) + 2 * SPAN * head_dim;
    job.slice = round_up(job.slice, line);
    int64_t prepared = prefill->kv_heads * job.spans * job.span_floats;
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
