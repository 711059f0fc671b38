#include "amx.h"

#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gemm.h"

enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 }; /* Linux 5.16, Documentation/arch/x86/xstate.rst */

/* Registers 0 and 1: sums of the upper 16 rows, left and right; 2 and 3: of the lower ones; 4 and 5: rows of
 * activations; 6 and 7: of the weight. */
enum { REGISTERS = 8, ROWS = 16, ROW_BYTES = 64 };

/* Intel SDM, LDTILECFG */
struct shape {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16]; /* of a row */
  uint8_t rows[16];
};

#ifdef AMX_EMULATED
#include "emulated.h"
#else
/* Leaf 7 of CPUID, register EDX. */
enum { HAS_BF16 = 1 << 22, HAS_TILE = 1 << 24, HAS_INT8 = 1 << 25, NEEDED = HAS_BF16 | HAS_TILE | HAS_INT8 };

int amx_allowed(void)
{
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & NEEDED) == NEEDED &&
         syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

/* In assembler: compilers' intrinsics need options by which they might use these registers elsewhere, and
 * those of gcc do not say which memory they read. */
#define LOAD(register, base, bytes)                                                                          \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #register ::"r"(base), "r"(bytes) : "memory")
#define STORE(register, base, bytes)                                                                         \
  __asm__ volatile("tilestored %%tmm" #register ", (%0,%1,1)" ::"r"(base), "r"(bytes) : "memory")
#define CLEAR(register) __asm__ volatile("tilezero %tmm" #register)
#define MULTIPLY(operation, sums, a, b) __asm__ volatile(#operation " %tmm" #b ", %tmm" #a ", %tmm" #sums)
#define CONFIGURE(shape) __asm__ volatile("ldtilecfg %0" ::"m"(shape))
#define RELEASE() __asm__ volatile("tilerelease")
#endif

void amx_begin(size_t rows)
{
  struct shape shape = {.palette = 1};
  const size_t upper = rows < ROWS ? rows : ROWS, lower = rows > ROWS ? rows - ROWS : upper;
  const size_t heights[REGISTERS] = {upper, upper, lower, lower, upper, lower, ROWS, ROWS};
  for (size_t i = 0; i < REGISTERS; i++) {
    shape.bytes[i] = ROW_BYTES;
    shape.rows[i] = (uint8_t)heights[i];
  }
  CONFIGURE(shape);
}

void amx_end(void)
{
  RELEASE();
}

void amx_clear(void)
{
  CLEAR(0);
  CLEAR(1);
  CLEAR(2);
  CLEAR(3);
}

#define LOAD_ROWS(both, a, bytes)                                                                            \
  LOAD(4, a, bytes);                                                                                         \
  if (both)                                                                                                  \
    LOAD(5, (a) + ROWS * stride, bytes);
#define LOAD_PANEL(panel, bytes)                                                                             \
  LOAD(6, panel, bytes);                                                                                     \
  LOAD(7, (panel) + ROWS, bytes);
/* sums += rows x panel, of what is loaded */
#define ADD(operation, both)                                                                                 \
  MULTIPLY(operation, 0, 4, 6);                                                                              \
  MULTIPLY(operation, 1, 4, 7);                                                                              \
  if (both) {                                                                                                \
    MULTIPLY(operation, 2, 5, 6);                                                                            \
    MULTIPLY(operation, 3, 5, 7);                                                                            \
  }

INLINE void step(const int int8, const int both, const uint32_t *a, size_t stride, const uint32_t *panel)
{
  const size_t panel_bytes = PANEL * sizeof *panel, bytes = stride * sizeof *a;
  LOAD_PANEL(panel, panel_bytes)
  LOAD_ROWS(both, a, bytes)
  if (int8) {
    ADD(tdpbusd, both)
  } else {
    ADD(tdpbf16ps, both)
  }
}

/* The last words, where they are no whole step: with zeros behind them. */
INLINE void last_step(const int int8, const int both, size_t rows, const uint32_t *a, size_t stride,
                      const uint32_t *panel, size_t words)
{
  uint32_t left[AMX_ROWS * AMX_WORDS] __attribute__((aligned(64)));
  uint32_t right[AMX_WORDS * PANEL] __attribute__((aligned(64))) = {0};
  for (size_t row = 0; row < rows; row++)
    _mm512_store_si512(left + row * AMX_WORDS,
                       _mm512_maskz_loadu_epi32(lanes((long)words), a + row * stride));
  memcpy(right, panel, words * PANEL * sizeof *panel);
  step(int8, both, left, AMX_WORDS, right);
}

INLINE void multiply(const int int8, const int both, size_t rows, const uint32_t *a, size_t stride,
                     const uint32_t *panel, size_t words, struct amx_ahead *ahead)
{
  size_t k = 0;
  for (; k + AMX_WORDS <= words; k += AMX_WORDS) {
    for (size_t line = 0; line < ahead->lines; line++, ahead->next += 64)
      _mm_prefetch(ahead->next, _MM_HINT_T1);
    step(int8, both, a + k, stride, panel + k * PANEL);
  }
  if (k < words)
    last_step(int8, both, rows, a + k, stride, panel + k * PANEL, words - k);
}

void amx_multiply(int int8, size_t rows, const uint32_t *a, size_t stride, const uint32_t *panel,
                  size_t words, struct amx_ahead *ahead)
{
  if (int8 && rows > ROWS)
    multiply(1, 1, rows, a, stride, panel, words, ahead);
  else if (int8)
    multiply(1, 0, rows, a, stride, panel, words, ahead);
  else if (rows > ROWS)
    multiply(0, 1, rows, a, stride, panel, words, ahead);
  else
    multiply(0, 0, rows, a, stride, panel, words, ahead);
}

/* x = high + middle + low, and so the weight: of the nine products the three that are below 2^-24 of the
 * largest are left out. The smallest come first; what is in a register is used again. */
INLINE void multiply_split(const int both, const uint32_t *a, size_t stride, size_t a_part,
                           const uint32_t *panel, size_t panel_part, size_t words)
{
  const size_t panel_bytes = PANEL * sizeof *panel, bytes = stride * sizeof *a;
  for (size_t k = 0; k < words; k += AMX_WORDS, a += AMX_WORDS, panel += AMX_WORDS * PANEL) {
    LOAD_PANEL(panel, panel_bytes)
    LOAD_ROWS(both, a + 2 * a_part, bytes)
    ADD(tdpbf16ps, both)
    LOAD_ROWS(both, a + a_part, bytes)
    ADD(tdpbf16ps, both)
    LOAD_ROWS(both, a, bytes)
    ADD(tdpbf16ps, both)
    LOAD_PANEL(panel + panel_part, panel_bytes)
    ADD(tdpbf16ps, both)
    LOAD_ROWS(both, a + a_part, bytes)
    ADD(tdpbf16ps, both)
    LOAD_PANEL(panel + 2 * panel_part, panel_bytes)
    LOAD_ROWS(both, a, bytes)
    ADD(tdpbf16ps, both)
  }
}

void amx_multiply_split(size_t rows, const uint32_t *a, size_t stride, size_t a_part, const uint32_t *panel,
                        size_t panel_part, size_t words)
{
  if (rows > ROWS)
    multiply_split(1, a, stride, a_part, panel, panel_part, words);
  else
    multiply_split(0, a, stride, a_part, panel, panel_part, words);
}

#define EACH_SUM(move)                                                                                       \
  const size_t bytes = sums_stride * sizeof *sums;                                                           \
  move(0, sums, bytes);                                                                                      \
  move(1, sums + ROWS, bytes);                                                                               \
  if (rows > ROWS) {                                                                                         \
    move(2, sums + ROWS * sums_stride, bytes);                                                               \
    move(3, sums + ROWS * sums_stride + ROWS, bytes);                                                        \
  }

void amx_load(size_t rows, const float *sums, size_t sums_stride)
{
  EACH_SUM(LOAD)
}

void amx_store(size_t rows, float *sums, size_t sums_stride)
{
  EACH_SUM(STORE)
}
