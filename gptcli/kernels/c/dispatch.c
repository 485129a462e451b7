/* Chooses the instruction set, and calls its norms, rotary embeddings and activation functions. */
#include "kernels.h"

#include <string.h>

static const Level *in_use;

static const Level *named(const char *name) {
#if GPTCLI_X86
    /* These also check that the system saves the wide registers. */
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512vnni");
    if (avx512 && strcmp(name, avx512_level.name) == 0) return &avx512_level;
    if (avx2 && strcmp(name, avx2_level.name) == 0) return &avx2_level;
#endif
    return strcmp(name, portable_level.name) == 0 ? &portable_level : NULL;
}

__attribute__((constructor)) static void choose_level(void) {
    static const char *const best_first[] = {"avx512", "avx2", "portable"};
    for (int i = 0; in_use == NULL; i++) in_use = named(best_first[i]);
}

const Level *level(void) { return in_use; }
const char *gptcli_level(void) { return in_use->name; }
int gptcli_has_level(const char *name) { return named(name) != NULL; }

int gptcli_set_level(const char *name) {
    const Level *wanted = named(name);
    if (wanted == NULL) return -1;
    in_use = wanted;
    return 0;
}

void gptcli_rms_norm(const float *x, const float *weight, float epsilon, int64_t n, int64_t size, float *out) {
    for (int64_t i = 0; i < n; i++) in_use->rms_norm(x + i * size, weight, epsilon, size, out + i * size);
}

void gptcli_layer_norm(const float *x, const float *weight, const float *bias, float epsilon, int64_t n, int64_t size,
                       float *out) {
    for (int64_t i = 0; i < n; i++) in_use->layer_norm(x + i * size, weight, bias, epsilon, size, out + i * size);
}

void gptcli_rope(float *heads, const float *cosines, const float *sines, int64_t n, int64_t head_dim, int64_t dim) {
    for (int64_t i = 0; i < n; i++) in_use->rope(heads + i * head_dim, cosines, sines, dim);
}

void gptcli_activate(int activation, const float *gate, const float *up, int64_t size, float *out) {
    in_use->activate(activation, gate, up, size, out);
}

void gptcli_exp(const float *x, int64_t size, float *out) { in_use->exp(x, size, out); }
