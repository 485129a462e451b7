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
    const Attention *attention;
    float *workspace;
    atomic_llong next;
} Job;

static void tasks_share(void *argument, int thread, int threads) {
    Job *job = argument;
    (void)thread, (void)threads;
    for (int64_t task; (task = atomic_fetch_add(&job->next, 1)) < gptcli_attention_tasks(job->attention);)
        gptcli_attention_task(job->attention, task, job->workspace);
}

int gptcli_attention(const Attention *attention) {
    pool_lock();
    Job job = {attention, pool_workspace(gptcli_attention_bytes(attention)), 0};
    if (job.workspace != NULL) {
        pool_share(tasks_share, &job);
        for (int64_t head = 0; head < attention->heads; head++) gptcli_attention_merge(attention, head, job.workspace);
    }
    pool_unlock();
    return job.workspace == NULL ? -1 : 0;
}
