/* What Arm's NEON is: 32 registers of 4 floats. dotprod, bf16 and i8mm as the build says (CMakeLists.txt). */
#pragma once
#include <stddef.h>
#include <sys/auxv.h>

enum { VECTOR_ROWS = 6, VECTORS = 4 }; /* of a tile: 24 of 32 registers hold sums */

enum { GROUPED_ROWS = 2 }; /* of a tile of groups: sums of a group take the registers */

enum { BYTE_SHIFT = DOT_I8 ? 128 : 0 }; /* sdot multiplies signed numbers: 0 to 255 are stored less 128 */

/* Linux, arch/arm64/include/uapi/asm/hwcap.h */
enum { HAS_DOTPROD = 1 << 20, HAS_I8MM = 1 << 13, HAS_BF16 = 1 << 14 };

/* What this CPU lacks of the set, or NULL. */
static inline const char *set_lacks(void)
{
  const unsigned long dot = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2);
  if (DOT_I8 && !(dot & HAS_DOTPROD))
    return "dotprod";
  return DOT_BF16 && (more & (HAS_I8MM | HAS_BF16)) != (HAS_I8MM | HAS_BF16) ? "bf16 or i8mm" : NULL;
}
