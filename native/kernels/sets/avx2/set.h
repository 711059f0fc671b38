/* What AVX2 with FMA is: 16 registers of 8 floats. AVX-VNNI as the build says (CMakeLists.txt). */
#pragma once
#include <stddef.h>

enum { VECTOR_ROWS = 6, VECTORS = 2 }; /* of a tile: 12 of 16 registers hold sums */

enum { GROUPED_ROWS = DOT_I8 ? 4 : 2 }; /* of a tile of groups: sums of a group take the registers */

enum { BYTE_SHIFT = 0 }; /* activations in int8 are stored as they are: 0 to 255 */

/* What this CPU lacks of the set, or NULL. */
static inline const char *set_lacks(void)
{
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
    return "AVX2 or FMA";
  return DOT_I8 && !__builtin_cpu_supports("avxvnni") ? "AVX_VNNI" : NULL;
}
