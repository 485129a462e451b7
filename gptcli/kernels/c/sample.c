/* Draws a token from logits, on the calling thread: the filters of generation/sampling/filters.py but typical-p, in their
 * order. Also checks that logits are finite, and sums up their exponentials, on all threads. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    FIRST_CANDIDATES = 1024, /* as in generation/sampling/filters.py */
    PIECE = 1024,            /* logits whose exponentials are in memory at once */
    STRETCH = 128,           /* logits that are skipped if their greatest does not matter */
    FEW_BANNED = 64,         /* tokens that are banned in place, not in a copy of the logits */
};

typedef struct Candidate {
    float logit;
    int32_t token;
} Candidate;

/* Which of two comes first: the likelier, and of equals the lower token. */
static int is_before(Candidate a, Candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

static int by_rank(const void *a, const void *b) {
    return is_before(*(const Candidate *)a, *(const Candidate *)b) ? -1 : 1;
}

/* Moves heap[index] down to where it belongs; the first of the heap is the last in rank. */
static void sift_down(Candidate *heap, int64_t size, int64_t index) {
    Candidate moved = heap[index];
    for (int64_t child; (child = 2 * index + 1) < size; index = child) {
        if (child + 1 < size && is_before(heap[child], heap[child + 1])) child++;
        if (is_before(heap[child], moved)) break;
        heap[index] = heap[child];
    }
    heap[index] = moved;
}

static int64_t stretch_end(int64_t begin, int64_t vocabulary) {
    return begin + STRETCH < vocabulary ? begin + STRETCH : vocabulary;
}

/* The `count` candidates of highest rank, in order. */
static void best(const float *logits, int64_t vocabulary, int64_t count, Candidate *out) {
    for (int64_t token = 0; token < count; token++) out[token] = (Candidate){logits[token], (int32_t)token};
    for (int64_t index = count / 2; index-- > 0;) sift_down(out, count, index);
    for (int64_t begin = count; begin < vocabulary; begin += STRETCH) {
        int64_t end = stretch_end(begin, vocabulary);
        if (!(level()->greatest(logits + begin, end - begin) > out[0].logit)) continue;
        for (int64_t token = begin; token < end; token++) {
            if (!(logits[token] > out[0].logit)) continue;
            out[0] = (Candidate){logits[token], (int32_t)token};
            sift_down(out, count, 0);
        }
    }
    qsort(out, (size_t)count, sizeof *out, by_rank);
}

static int64_t greatest(const float *logits, int64_t vocabulary) {
    float most = logits[0];
    int64_t from = 0; /* begin of its stretch */
    for (int64_t begin = 0; begin < vocabulary; begin += STRETCH) {
        float here = level()->greatest(logits + begin, stretch_end(begin, vocabulary) - begin);
        if (!(here > most)) continue;
        most = here;
        from = begin;
    }
    int64_t token = from;
    while (logits[token] != most) token++;
    return token;
}

/* e^((logits - first) / temperature), for at most PIECE of them. */
static void exponentials(const float *logits, int64_t count, float first, float temperature, float *out) {
    for (int64_t i = 0; i < count; i++) out[i] = (logits[i] - first) / temperature;
    level()->exp(out, count, out);
}

/* The sum of e^((logits - first) / temperature), up to the token at which it exceeds `bound`, which becomes *token. */
static double sum_until(const float *logits, int64_t vocabulary, float first, float temperature, double bound,
                        int64_t *token) {
    float piece[PIECE];
    double sum = 0;
    for (int64_t begin = 0; begin < vocabulary; begin += PIECE) {
        int64_t count = vocabulary - begin < PIECE ? vocabulary - begin : PIECE;
        exponentials(logits + begin, count, first, temperature, piece);
        for (int64_t i = 0; i < count; i++) {
            sum += piece[i];
            if (sum <= bound) continue;
            *token = begin + i;
            return sum;
        }
    }
    return sum;
}

/* Draws from all tokens, in the vocabulary's order. */
static int64_t draw_any(const Draw *draw, const float *logits) {
    int64_t likeliest = greatest(logits, draw->vocabulary), token = likeliest;
    float first = logits[likeliest];
    double total = sum_until(logits, draw->vocabulary, first, draw->temperature, INFINITY, &token);
    sum_until(logits, draw->vocabulary, first, draw->temperature, draw->uniform * total, &token);
    return token;
}

/* How many candidates top-p leaves. total: the sum of e^(logit - first) that makes their probabilities sum to 1. */
static int64_t keep_top_p(const Candidate *candidates, int64_t count, double p, double total) {
    if (p == 1) return count;
    double before = 0;
    for (int64_t i = 0; i < count; i++) {
        if (i > 0 && before >= p * total) return i;
        before += exp((double)candidates[i].logit - candidates[0].logit);
    }
    return count;
}

static int64_t keep_min_p(const Candidate *candidates, int64_t count, double p) {
    if (p == 0) return count;
    float least = candidates[0].logit + (float)log(p);
    int64_t kept = 0;
    while (kept < count && candidates[kept].logit >= least) kept++;
    return kept;
}

/* The token at draw->uniform of the candidates' probabilities, which are in order of rank. */
static int64_t pick(const Draw *draw, const Candidate *candidates, int64_t count) {
    double total = 0, sum = 0;
    for (int64_t i = 0; i < count; i++)
        total += exp(((double)candidates[i].logit - candidates[0].logit) / draw->temperature);
    for (int64_t i = 0; i < count; i++) {
        sum += exp(((double)candidates[i].logit - candidates[0].logit) / draw->temperature);
        if (sum > draw->uniform * total) return candidates[i].token;
    }
    return candidates[0].token;
}

/* Whether top-p and min-p may leave more of the vocabulary than these candidates. */
static int may_leave_more(const Draw *draw, const Candidate *candidates, int64_t count, double total) {
    double share = 0, last = 0;
    for (int64_t i = 0; i < count; i++) share += last = exp((double)candidates[i].logit - candidates[0].logit);
    return count < draw->vocabulary && share < draw->top_p * total && last >= draw->min_p;
}

static int64_t draw_filtered(const Draw *draw, const float *logits) {
    int64_t wanted = draw->top_k > 0 ? draw->top_k : FIRST_CANDIDATES;
    int64_t count = wanted < draw->vocabulary ? wanted : draw->vocabulary;
    Candidate *candidates = malloc((size_t)count * sizeof *candidates);
    if (candidates == NULL) return -1;
    best(logits, draw->vocabulary, count, candidates);
    double total = 0;
    if (draw->top_k > 0) {
        for (int64_t i = 0; i < count; i++) total += exp((double)candidates[i].logit - candidates[0].logit);
    } else {
        int64_t none;
        total = sum_until(logits, draw->vocabulary, candidates[0].logit, 1, INFINITY, &none);
        if (may_leave_more(draw, candidates, count, total)) {
            count = draw->vocabulary;
            Candidate *all = realloc(candidates, (size_t)count * sizeof *candidates);
            if (all == NULL) {
                free(candidates);
                return -1;
            }
            candidates = all;
            best(logits, draw->vocabulary, count, candidates);
        }
    }
    count = keep_min_p(candidates, keep_top_p(candidates, count, draw->top_p, total), draw->min_p);
    int64_t token = pick(draw, candidates, count);
    free(candidates);
    return token;
}

/* Makes the logits of all tokens whose bit is not set -infinity. */
static void keep_allowed(const uint32_t *allowed, int64_t vocabulary, float *logits) {
    for (int64_t begin = 0; begin < vocabulary; begin += 32) {
        uint32_t masked = ~allowed[begin / 32];
        if (masked == UINT32_MAX && begin + 32 <= vocabulary) { /* most words of a strict grammar */
            for (int64_t token = begin; token < begin + 32; token++) logits[token] = -INFINITY;
            continue;
        }
        for (; masked != 0; masked &= masked - 1) {
            int64_t token = begin + __builtin_ctz(masked);
            if (token < vocabulary) logits[token] = -INFINITY;
        }
    }
}

static int by_value(const void *a, const void *b) {
    int64_t first = *(const int64_t *)a, second = *(const int64_t *)b;
    return (first > second) - (first < second);
}

/* Penalizes each recent token's logit, for its frequency by how often it occurs. recent: sorted. */
static void penalize(const Draw *draw, const int64_t *recent, float *logits) {
    for (int64_t i = 0, next; i < draw->recent_count; i = next) {
        for (next = i + 1; next < draw->recent_count && recent[next] == recent[i];) next++;
        float *logit = &logits[recent[i]];
        *logit = *logit > 0 ? *logit / draw->repeat : *logit * draw->repeat;
        *logit = *logit - draw->presence - draw->frequency * (float)(next - i);
    }
}

/* A copy of the logits after all that precedes the filters. NULL: no memory. */
static float *prepared(const Draw *draw) {
    float *logits = malloc((size_t)draw->vocabulary * sizeof *logits);
    int64_t *recent = malloc((size_t)(draw->recent_count + 1) * sizeof *recent);
    if (logits != NULL && recent != NULL) {
        memcpy(logits, draw->logits, (size_t)draw->vocabulary * sizeof *logits);
        if (draw->allowed != NULL) keep_allowed(draw->allowed, draw->vocabulary, logits);
        for (int64_t i = 0; i < draw->banned_count; i++) logits[draw->banned[i]] = -INFINITY;
        for (int64_t i = 0; i < draw->biased_count; i++) logits[draw->biased[i]] += draw->biases[i];
        if (draw->recent_count > 0) memcpy(recent, draw->recent, (size_t)draw->recent_count * sizeof *recent);
        qsort(recent, (size_t)draw->recent_count, sizeof *recent, by_value);
        penalize(draw, recent, logits);
    } else {
        free(logits);
        logits = NULL;
    }
    free(recent);
    return logits;
}

static int64_t drawn(const Draw *draw, const float *logits) {
    int64_t token;
    if (draw->greedy)
        token = greatest(logits, draw->vocabulary);
    else if (draw->top_k == 0 && draw->top_p == 1 && draw->min_p == 0)
        token = draw_any(draw, logits);
    else
        token = draw_filtered(draw, logits);
    return token >= 0 && logits[token] == -INFINITY ? -2 : token;
}

int64_t gptcli_draw(const Draw *draw) {
    float *logits = draw->logits, kept[FEW_BANNED];
    if (draw->allowed != NULL || draw->biased_count + draw->recent_count > 0 || draw->banned_count > FEW_BANNED) {
        logits = prepared(draw);
        if (logits == NULL) return -1;
        int64_t token = drawn(draw, logits);
        free(logits);
        return token;
    }
    for (int64_t i = 0; i < draw->banned_count; i++) {
        kept[i] = logits[draw->banned[i]];
        logits[draw->banned[i]] = -INFINITY;
    }
    int64_t token = drawn(draw, logits);
    for (int64_t i = draw->banned_count; i-- > 0;) logits[draw->banned[i]] = kept[i];
    return token;
}

typedef struct {
    const float *values;
    atomic_int odd;
} Checked;

/* Whether a value is infinite or not a number: its exponent has all bits set. */
static int is_odd(const float *values, int64_t size) {
    uint32_t odd = 0;
    for (int64_t i = 0; i < size; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        odd |= (bits & 0x7f800000) == 0x7f800000;
    }
    return odd != 0;
}

static void check_share(void *argument, int thread, int threads) {
    Checked *job = argument;
    (void)threads;
    for (int64_t begin, end; pool_take(thread, &begin, &end);)
        if (is_odd(job->values + begin, end - begin)) atomic_store(&job->odd, 1);
}

int gptcli_all_finite(const float *values, int64_t size) {
    enum { SHARED = 1 << 18 }; /* values that are worth sharing */
    if (size < SHARED) return !is_odd(values, size);
    Checked job = {values, 0};
    pool_lock();
    pool_deal(size, SHARED / 4, 1);
    pool_share(check_share, &job);
    pool_unlock();
    return !atomic_load(&job.odd);
}

enum { SUMMED = 1024, SUM_LANES = 16 }; /* logits at once, whose sums are in fp32; those of all in fp64 */

typedef struct {
    const float *logits;
    int64_t size, stride;
    double *out;
} LogSums;

static double log_sum(const float *logits, int64_t size) {
    const float most = level()->greatest(logits, size);
    float values[SUMMED];
    double sum = 0;
    for (int64_t begin = 0; begin < size; begin += SUMMED) {
        int64_t count = size - begin < SUMMED ? size - begin : SUMMED;
        float lanes[SUM_LANES] = {0};
        for (int64_t i = 0; i < count; i++) values[i] = logits[begin + i] - most;
        gptcli_exp(values, count, values);
        for (int64_t i = count; i < SUMMED; i++) values[i] = 0;
        for (int64_t i = 0; i < SUMMED; i += SUM_LANES)
            for (int64_t lane = 0; lane < SUM_LANES; lane++) lanes[lane] += values[i + lane];
        for (int64_t lane = 0; lane < SUM_LANES; lane++) sum += lanes[lane];
    }
    return most + log(sum);
}

static void log_sums_share(void *argument, int thread, int threads) {
    const LogSums *job = argument;
    (void)threads;
    for (int64_t row, end; pool_take(thread, &row, &end);)
        for (; row < end; row++) job->out[row] = log_sum(job->logits + row * job->stride, job->size);
}

void gptcli_log_sums(const float *logits, int64_t rows, int64_t size, int64_t stride, double *out) {
    LogSums job = {logits, size, stride, out};
    pool_lock();
    pool_deal(rows, 1, 1);
    pool_share(log_sums_share, &job);
    pool_unlock();
}
