/* Chooses the instruction set, and calls its norms, rotary embeddings and activation functions. */
#include "kernels.h"

#include <string.h>

#if GPTCLI_BF16
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const Level *in_use;

#if GPTCLI_X86 && GPTCLI_BF16
/* AVX-512 with products in bf16. Filled by `named`. */
static Level avx512_bf16_level, amx_level;

static const Level *with_bf16(Level *level, const char *name, typeof(level->bf16_panels) panels) {
    *level = avx512_level;
    level->name = name;
    level->bf16_panels = panels;
    level->round_token = avx512_bf16_round;
    return level;
}

static int has_avx512_bf16(void) {
    unsigned eax = 0, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && eax >> 5 & 1;
}

/* Whether there are tiles for bf16 and 8 bits, and the system lets the process use them, which is asked for here. */
static int has_amx(void) {
#if defined(__linux__)
    enum { ASK_FOR_STATE = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA */
    const unsigned all = 1u << 22 | 1u << 24 | 1u << 25; /* AMX-BF16, AMX-TILE, AMX-INT8 */
    unsigned eax, ebx, ecx, edx = 0;
    int known = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & all) == all;
    return known && syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) == 0;
#else
    return 0;
#endif
}
#endif

static const Level *named(const char *name) {
#if GPTCLI_X86
    /* These also check that the system saves the wide registers. */
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512vnni");
#if GPTCLI_BF16
    if (avx512 && strcmp(name, "amx") == 0 && has_avx512_bf16() && has_amx()) {
        with_bf16(&amx_level, "amx", amx_panels);
        amx_level.affine_blocks = amx_affine_blocks;
        amx_level.quantize = amx_quantize;
        amx_level.digits_from = AMX_FEWEST;
        amx_level.attend_split = amx_attend_prefill;
        amx_level.split_span = amx_split_span;
        amx_level.split_queries = AMX_QUERIES;
        amx_level.split_depth = INT64_MAX;
        return &amx_level;
    }
    if (avx512 && strcmp(name, "avx512_bf16") == 0 && has_avx512_bf16()) {
        with_bf16(&avx512_bf16_level, "avx512_bf16", avx512_bf16_panels);
        avx512_bf16_level.attend_split = rounded_attend;
        avx512_bf16_level.split_span = rounded_span;
        avx512_bf16_level.split_queries = ROUNDED_QUERIES;
        avx512_bf16_level.split_depth = MOST_DEPTH;
        avx512_bf16_level.affine_blocks = avx512_bf16_blocks;
        avx512_bf16_level.quantize = avx512_bf16_quantize;
        avx512_bf16_level.few_rounded = BF16_TOKENS;
        avx512_bf16_level.has_pairs = 1;
        return &avx512_bf16_level;
    }
#endif
    if (avx512 && strcmp(name, avx512_level.name) == 0) return &avx512_level;
    if (avx2 && strcmp(name, avx2_level.name) == 0) return &avx2_level;
#endif
    return strcmp(name, portable_level.name) == 0 ? &portable_level : NULL;
}

/* On Intel vectors of bf16 are multiplied no faster than those of fp32; only tiles are. */
static int is_slow(const char *name) {
#if GPTCLI_X86
    __builtin_cpu_init();
    return strcmp(name, "avx512_bf16") == 0 && __builtin_cpu_is("intel");
#else
    (void)name;
    return 0;
#endif
}

__attribute__((constructor)) static void choose_level(void) {
    static const char *const best_first[] = {"amx", "avx512_bf16", "avx512", "avx2", "portable"};
    for (int i = 0; in_use == NULL; i++)
        if (!is_slow(best_first[i])) in_use = named(best_first[i]);
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
