/* The threads. They start when first needed, spin for a moment after each region of shared work, then sleep.
 *
 * A new number announces a region. Workers that see it may enter while the region is open. The caller closes it when
 * its own share is done, then waits for the workers inside.
 */
#include "kernels.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#if GPTCLI_X86
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

enum {
    SPIN_NANOSECONDS = 50000,  /* the next layer comes sooner than a sleeping thread would wake up */
    SPINS_PER_CLOCK_READ = 64,
    SPINS_BEFORE_YIELD = 4000, /* then the thread that we wait for may need this core */
};

/* A region's number and state share a word, so that no worker enters a closed region, or the same one twice. */
#define NUMBER (1ull << 32) /* multiplied by the number of regions so far */
#define CLOSED (1ull << 31)
#define INSIDE 1ull /* multiplied by the number of workers inside */

typedef struct {
    atomic_ullong region;
    atomic_int sleepers;
    atomic_int quit;
    Task *task;
    void *argument;
    int wanted_threads;
    int workers_started; /* the calling thread is not among them */
    pthread_t workers[MOST_THREADS];
    void *workspace;
    int64_t workspace_bytes;
} Pool;

static Pool pool = {.region = CLOSED, .wanted_threads = 1};
static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER; /* one region at a time */
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;

int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void spin(int *spins) {
    RELAX();
    if (++*spins > SPINS_BEFORE_YIELD) sched_yield();
}

static int64_t current_region(void) { return (int64_t)(atomic_load(&pool.region) / NUMBER); }

static void sleep_until_after(int64_t region) {
    pthread_mutex_lock(&sleep_lock);
    /* Counted before the number is read again: announce() changes the number, then reads this count. */
    atomic_fetch_add(&pool.sleepers, 1);
    while (current_region() == region) pthread_cond_wait(&wake, &sleep_lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&sleep_lock);
}

static void wait_for_region_after(int64_t region) {
    int64_t end = nanoseconds() + SPIN_NANOSECONDS;
    while (nanoseconds() < end)
        for (int i = 0; i < SPINS_PER_CLOCK_READ; i++) {
            if (current_region() != region) return;
            RELAX();
        }
    sleep_until_after(region);
}

/* Enters the region if it is open; returns whether it did. *number: the region's, which stays while we are inside. */
static int enter(int64_t *number) {
    unsigned long long region = atomic_load(&pool.region);
    int entered = 0;
    while (!(region & CLOSED) && !entered)
        entered = atomic_compare_exchange_weak(&pool.region, &region, region + INSIDE);
    *number = (int64_t)(region / NUMBER);
    return entered;
}

static void *work(void *thread) {
    int64_t seen = 0;
    for (;;) {
        wait_for_region_after(seen);
        if (atomic_load(&pool.quit)) return NULL;
        if (!enter(&seen)) continue;
        pool.task(pool.argument, (int)(intptr_t)thread, pool.workers_started + 1);
        atomic_fetch_sub(&pool.region, INSIDE);
    }
}

/* Announces a new region, open or closed. The last one is closed, so nobody else writes the word. */
static void announce(unsigned long long state) {
    atomic_store(&pool.region, (unsigned long long)(current_region() + 1) * NUMBER + state);
    if (atomic_load(&pool.sleepers) == 0) return;
    pthread_mutex_lock(&sleep_lock);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&sleep_lock);
}

static void stop_workers(void) {
    atomic_store(&pool.quit, 1);
    announce(CLOSED);
    for (int i = 0; i < pool.workers_started; i++) pthread_join(pool.workers[i], NULL);
    pool.workers_started = 0;
    atomic_store(&pool.region, CLOSED); /* number 0, which new workers take as seen */
    atomic_store(&pool.quit, 0);
}

/* fork() copies only the calling thread: the child has no workers, and its locks may be locked. */
static void forget_workers(void) {
    pthread_mutex_init(&owner, NULL);
    pthread_mutex_init(&sleep_lock, NULL);
    pthread_cond_init(&wake, NULL);
    pool.workers_started = 0;
    atomic_store(&pool.region, CLOSED);
    atomic_store(&pool.sleepers, 0);
}

static void watch_for_forks(void) { pthread_atfork(NULL, NULL, forget_workers); }

static void start_workers(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_for_forks);
    while (pool.workers_started < pool.wanted_threads - 1) {
        intptr_t thread = pool.workers_started + 1;
        /* Without a further thread the work is slower, not wrong. */
        if (pthread_create(&pool.workers[pool.workers_started], NULL, work, (void *)thread) != 0) {
            pool.wanted_threads = pool.workers_started + 1;
            return;
        }
        pool.workers_started++;
    }
}

int gptcli_set_threads(int threads) {
    if (threads < 1 || threads > MOST_THREADS) return -1;
    pool_lock();
    if (threads - 1 != pool.workers_started) stop_workers();
    pool.wanted_threads = threads;
    pool_unlock();
    return 0;
}

int gptcli_threads(void) { return pool.wanted_threads; }

void pool_lock(void) { pthread_mutex_lock(&owner); }
void pool_unlock(void) { pthread_mutex_unlock(&owner); }

static void open_region(Task *task, void *argument) {
    start_workers();
    pool.task = task;
    pool.argument = argument;
    announce(0);
}

static void close_region(void) {
    unsigned long long region = atomic_fetch_or(&pool.region, CLOSED);
    for (int spins = 0; region % CLOSED != 0; region = atomic_load(&pool.region)) spin(&spins);
}

void pool_share(Task *task, void *argument) {
    if (pool.wanted_threads == 1) {
        task(argument, 0, 1);
        return;
    }
    open_region(task, argument);
    task(argument, 0, pool.workers_started + 1);
    close_region();
}

/* Each on its own cache line, so that no thread slows down another's counter. */
typedef struct {
    _Alignas(CACHE_LINE) atomic_llong next;
    int64_t end;
} Range;

static Range ranges[MOST_THREADS];
static int64_t ranges_dealt;
static int64_t step_taken; /* of a range at once */

void pool_deal(int64_t count, int64_t step, int64_t even) {
    int64_t steps = (count + step - 1) / step, begin = 0;
    ranges_dealt = steps < pool.wanted_threads ? steps : pool.wanted_threads;
    step_taken = step;
    for (int64_t i = 0; i < ranges_dealt; i++) {
        int64_t end = (count * (i + 1) / ranges_dealt + even - 1) / even * even;
        atomic_store_explicit(&ranges[i].next, begin, memory_order_relaxed);
        begin = ranges[i].end = end < count ? end : count;
    }
}

int pool_take(int thread, int64_t *begin, int64_t *end) {
    for (int64_t i = 0; i < ranges_dealt; i++) {
        Range *range = &ranges[(thread + i) % ranges_dealt];
        *begin = atomic_fetch_add(&range->next, step_taken);
        *end = *begin + step_taken < range->end ? *begin + step_taken : range->end;
        if (*begin < range->end) return 1;
    }
    return 0;
}

void *pool_workspace(int64_t bytes) {
    if (bytes <= pool.workspace_bytes) return pool.workspace;
    free(pool.workspace);
    pool.workspace = NULL;
    pool.workspace_bytes = 0;
    if (posix_memalign(&pool.workspace, CACHE_LINE, (size_t)bytes) != 0) return pool.workspace = NULL;
    pool.workspace_bytes = bytes;
    return pool.workspace;
}
