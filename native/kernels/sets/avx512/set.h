/* What AVX-512 is: 32 registers of 16 floats. VNNI, BF16 and AMX as the build says (CMakeLists.txt). */
#pragma once
#include <stddef.h>

#include "amx.h"

enum { VECTOR_ROWS = 14, VECTORS = 2 }; /* of a tile: 28 of 32 registers hold sums */

enum { GROUPED_ROWS = DOT_I8 ? 8 : 4 }; /* of a tile of groups, whose float sums may leave the registers */

enum { BYTE_SHIFT = 0 }; /* activations in int8 are stored as they are: 0 to 255 */

/* What this CPU lacks of the set, or NULL. */
static inline const char *set_lacks(void)
{
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return "AVX-512 (F, BW, DQ, VL)";
  if (DOT_I8 && !__builtin_cpu_supports("avx512vnni"))
    return "AVX512_VNNI";
  if (DOT_BF16 && !__builtin_cpu_supports("avx512bf16"))
    return "AVX512_BF16";
  return HAS_AMX && !amx_allowed() ? "AMX, or the kernel refuses it to this process" : NULL;
}
