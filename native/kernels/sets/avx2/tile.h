/* How words are multiplied (gemm.h) on AVX2. */
#pragma once
#include <string.h>

#include "gemm.h"

// clang-format off: it moves these lines at every run
#define EACH_ROWS(CASE, kind) \
  CASE(kind, 1) CASE(kind, 2) CASE(kind, 3) CASE(kind, 4) CASE(kind, 5) CASE(kind, 6)
// clang-format on

/* int8 is in assembler: 12 sums, two vectors of the panel and two of products leave no register, and the
 * compiler would load several rows' words before it multiplies. */
INLINE void multiply(const enum kind kind, vec sums[VECTORS], const uint32_t *a, const vec b[VECTORS])
{
  __m256 word;
  if (kind != KIND_I8) {
    float value;
    memcpy(&value, a, sizeof value);
    sums[0] = _mm256_fmadd_ps(_mm256_set1_ps(value), b[0], sums[0]);
    sums[1] = _mm256_fmadd_ps(_mm256_set1_ps(value), b[1], sums[1]);
  } else if (DOT_I8) {
    __asm__("vpbroadcastd %3, %2\n\t%{vex%} vpdpbusd %4, %2, %0\n\t%{vex%} vpdpbusd %5, %2, %1"
            : "+x"(sums[0]), "+x"(sums[1]), "=&x"(word)
            : "m"(*a), "x"(b[0]), "x"(b[1]));
  } else {
    __m256 product;
    __asm__("vpbroadcastd %4, %2\n\tvpmaddwd %5, %2, %3\n\tvpaddd %3, %0, %0\n\tvpmaddwd %6, %2, %2\n\t"
            "vpaddd %2, %1, %1"
            : "+x"(sums[0]), "+x"(sums[1]), "=&x"(word), "=&x"(product)
            : "m"(*a), "x"(b[0]), "x"(b[1]));
  }
}
