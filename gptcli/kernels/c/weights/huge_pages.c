/* Memory for matrices.
 *
 * Address translation through 4 KB pages costs a good part of the bandwidth when gigabytes are read, and giving each
 * matrix its own huge pages would waste a megabyte on average. So matrices are laid out one after another in large
 * chunks of huge pages. The system commits only what is written. A chunk is freed with its last matrix.
 */
#define _DEFAULT_SOURCE /* madvise */
#include "../kernels.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#ifndef CHUNK_BYTES /* 0 in the sanitizers' build, so that each matrix ends where its memory does */
#define CHUNK_BYTES ((size_t)64 << 20)
#endif

typedef struct Chunk {
    uint8_t *memory;
    size_t size, used;
    int matrices;
} Chunk;

static pthread_mutex_t chunks_lock = PTHREAD_MUTEX_INITIALIZER;
static Chunk *open_chunk; /* where new matrices go */

Matrix *matrix_new(Matrix fields) {
    Matrix *matrix = malloc(sizeof *matrix);
    if (matrix != NULL) *matrix = fields;
    return matrix;
}

static void free_if_unused(Chunk *chunk) {
    if (chunk == NULL || chunk->matrices > 0 || chunk == open_chunk) return;
    free(chunk->memory);
    free(chunk);
}

static Chunk *new_chunk(size_t size) {
    Chunk *chunk = calloc(1, sizeof *chunk);
    if (chunk == NULL) return NULL;
    if (posix_memalign((void **)&chunk->memory, HUGE_PAGE, size) != 0) {
        free(chunk);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    madvise(chunk->memory, size, MADV_HUGEPAGE);
#endif
    chunk->size = size;
    return chunk;
}

uint8_t *chunk_memory(int64_t size, Chunk **owner) {
    size_t bytes = ((size_t)size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    pthread_mutex_lock(&chunks_lock);
    if (open_chunk == NULL || open_chunk->size - open_chunk->used < bytes) {
        Chunk *full = open_chunk;
        open_chunk = new_chunk(bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES);
        free_if_unused(full);
    }
    uint8_t *memory = NULL;
    if (open_chunk != NULL) {
        memory = open_chunk->memory + open_chunk->used;
        open_chunk->used += bytes;
        open_chunk->matrices++;
    }
    *owner = open_chunk;
    pthread_mutex_unlock(&chunks_lock);
    return memory;
}

void chunk_release(Chunk *chunk) {
    pthread_mutex_lock(&chunks_lock);
    if (--chunk->matrices == 0) {
        if (chunk == open_chunk) open_chunk = NULL;
        free_if_unused(chunk);
    }
    pthread_mutex_unlock(&chunks_lock);
}
