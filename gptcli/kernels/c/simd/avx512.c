/* The inner loops for AVX-512 with VNNI: Intel from Ice Lake, AMD from Zen 4 on. */
#include "../kernels.h"

#if GPTCLI_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,prefer-vector-width=512")
#endif

#include "avx512_vectors.h"

#include "level.h"

const Level avx512_level = LEVEL("avx512");

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
