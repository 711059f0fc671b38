/* How words are multiplied (gemm.h) on AVX-512. */
#pragma once
#include <string.h>

#include "gemm.h"

// clang-format off: it moves these lines at every run
#define EACH_ROWS(CASE, kind) \
  CASE(kind, 1) CASE(kind, 2) CASE(kind, 3) CASE(kind, 4) CASE(kind, 5) CASE(kind, 6) CASE(kind, 7) \
  CASE(kind, 8) CASE(kind, 9) CASE(kind, 10) CASE(kind, 11) CASE(kind, 12) CASE(kind, 13) CASE(kind, 14)
// clang-format on

/* bf16 and int8 are in assembler: the compiler would otherwise load all rows' words before it multiplies, and
 * run out of registers. */
INLINE void multiply(const enum kind kind, vec sums[VECTORS], const uint32_t *a, const vec b[VECTORS])
{
  __m512 word;
  if (kind == KIND_F32 || (kind == KIND_BF16 && !DOT_BF16)) {
    float value;
    memcpy(&value, a, sizeof value);
    sums[0] = _mm512_fmadd_ps(_mm512_set1_ps(value), b[0], sums[0]);
    sums[1] = _mm512_fmadd_ps(_mm512_set1_ps(value), b[1], sums[1]);
  } else if (kind == KIND_BF16) {
    __asm__("vpbroadcastd %3, %2\n\tvdpbf16ps %4, %2, %0\n\tvdpbf16ps %5, %2, %1"
            : "+v"(sums[0]), "+v"(sums[1]), "=&v"(word)
            : "m"(*a), "v"(b[0]), "v"(b[1]));
  } else if (DOT_I8) {
    __asm__("vpbroadcastd %3, %2\n\tvpdpbusd %4, %2, %0\n\tvpdpbusd %5, %2, %1"
            : "+v"(sums[0]), "+v"(sums[1]), "=&v"(word)
            : "m"(*a), "v"(b[0]), "v"(b[1]));
  } else {
    __m512 product;
    __asm__("vpbroadcastd %4, %2\n\tvpmaddwd %5, %2, %3\n\tvpaddd %3, %0, %0\n\tvpmaddwd %6, %2, %2\n\t"
            "vpaddd %2, %1, %1"
            : "+v"(sums[0]), "+v"(sums[1]), "=&v"(word), "=&v"(product)
            : "m"(*a), "v"(b[0]), "v"(b[1]));
  }
}

/* Groups (gemm_grouped.c): whether whole bytes are multiplied at once, or only numbers below 16; and whether
 * sums are pairs of 16 bits meanwhile. */
enum { WHOLE_BYTES = DOT_I8, IN_PAIRS = !DOT_I8 };

/* sums += four unsigned bytes times four signed ones, for each word of the weight. */
INLINE void multiply_unsigned(vec_ints sums[VECTORS], const uint32_t *a, const vec_ints b[VECTORS])
{
  __m512i word;
#if DOT_I8
  __asm__("vpbroadcastd %3, %2\n\tvpdpbusd %2, %4, %0\n\tvpdpbusd %2, %5, %1"
          : "+v"(sums[0]), "+v"(sums[1]), "=&v"(word)
          : "m"(*a), "v"(b[0]), "v"(b[1]));
#else
  word = _mm512_set1_epi32((int)*a);
  sums[0] = _mm512_add_epi16(sums[0], _mm512_maddubs_epi16(b[0], word));
  sums[1] = _mm512_add_epi16(sums[1], _mm512_maddubs_epi16(b[1], word));
#endif
}

/* sums += factor times the two 16-bit numbers of each pair */
INLINE vec_ints add_pairs(vec_ints sums, vec_ints pairs, int16_t factor)
{
  return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(factor)));
}
