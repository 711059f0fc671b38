/* The vector interface (vector.h says what each function means) on AVX-512. */
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };
typedef __m512 vec;
typedef __m512i vec_ints;
typedef __mmask16 vec_mask;

/* Masks */

INLINE vec_mask lanes(long count)
{
  return count >= LANES ? 0xffff : count <= 0 ? 0 : (vec_mask)((1u << count) - 1);
}

INLINE vec_mask mask_except(vec_mask all, vec_mask without)
{
  return all & (vec_mask)~without;
}

INLINE int mask_any(vec_mask some)
{
  return some != 0;
}

/* Memory */

#define vec_load _mm512_loadu_ps

INLINE vec vec_load_some(const float *from, vec_mask some)
{
  return _mm512_maskz_loadu_ps(some, from);
}

#define vec_store _mm512_storeu_ps
#define vec_store_some _mm512_mask_storeu_ps

/* Arithmetic */

#define vec_zero _mm512_setzero_ps
#define vec_of _mm512_set1_ps
#define vec_add _mm512_add_ps
#define vec_sub _mm512_sub_ps
#define vec_mul _mm512_mul_ps
#define vec_div _mm512_div_ps
#define vec_fma _mm512_fmadd_ps
#define vec_minus_product _mm512_fnmadd_ps
#define vec_min _mm512_min_ps
#define vec_max _mm512_max_ps

INLINE vec vec_fraction(vec x)
{
  return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

INLINE vec vec_round(vec x)
{
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

#define vec_scale _mm512_scalef_ps

INLINE vec vec_select(vec_mask some, vec a, vec b)
{
  return _mm512_mask_mov_ps(b, some, a);
}

INLINE vec_mask vec_is_nan(vec x)
{
  return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
}

#define vec_sum _mm512_reduce_add_ps
#define vec_highest _mm512_reduce_max_ps
#define vec_lowest _mm512_reduce_min_ps

/* Integers of 32 bits */

#define ints_as_vec _mm512_castsi512_ps
#define vec_as_ints _mm512_castps_si512
#define ints_to_floats _mm512_cvtepi32_ps
#define ints_and _mm512_and_si512
#define ints_or _mm512_or_si512
#define ints_left _mm512_slli_epi32
#define ints_right _mm512_srli_epi32
#define ints_of _mm512_set1_epi32

INLINE vec_ints bytes_at(const uint8_t table[16], vec_ints places)
{
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), places);
}

INLINE vec_ints ints_load_some(const int32_t *from, vec_mask some)
{
  return _mm512_maskz_loadu_epi32(some, from);
}

INLINE vec_ints ints_steps(int32_t step)
{
  return _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                            ints_of(step));
}

#define ints_add _mm512_add_epi32
#define ints_sub _mm512_sub_epi32

INLINE int32_t ints_first(vec_ints x)
{
  return _mm_cvtsi128_si32(_mm512_castsi512_si128(x));
}

INLINE int ints_differ(vec_ints a, vec_ints b, vec_mask some)
{
  return _mm512_mask_cmpneq_epi32_mask(some, a, b) != 0;
}

INLINE vec vec_gather(const float *numbers, vec_ints index, vec_mask some)
{
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), some, index, numbers, sizeof(float));
}

/* Bytes of an operand */

/* 16 numbers as 16-bit integers in the order of words that are widened: 0, 2, 1, 3 of each four. */
INLINE __m256i wide_bytes(vec x)
{
  const __m512i q = _mm512_min_epi32(_mm512_set1_epi32(255),
                                     _mm512_max_epi32(_mm512_setzero_si512(), _mm512_cvtps_epi32(x)));
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  return _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(q), order);
}

INLINE void bytes_store(uint32_t *words, size_t number, const vec x[4])
{
  if (!DOT_I8) {
    for (size_t j = 0; j < 4; j++)
      _mm256_storeu_si256((__m256i *)((uint16_t *)words + number + j * LANES), wide_bytes(x[j]));
    return;
  }
  __m512i q[4];
  for (size_t j = 0; j < 4; j++)
    q[j] = _mm512_cvtps_epi32(x[j]);
  /* packing works within 128-bit lanes, so the order is put right afterwards */
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i packed =
      _mm512_packus_epi16(_mm512_packus_epi32(q[0], q[1]), _mm512_packus_epi32(q[2], q[3]));
  _mm512_storeu_si512((uint8_t *)words + number, _mm512_permutexvar_epi32(order, packed));
}

INLINE void bytes_store_some(uint32_t *words, size_t number, size_t count, vec x)
{
  const vec_mask whole = lanes((long)(count + 3) / 4 * 4);
  const vec kept = _mm512_maskz_mov_ps(lanes((long)count), x);
  const __m512i q = _mm512_max_epi32(_mm512_cvtps_epi32(kept), _mm512_setzero_si512());
  if (DOT_I8)
    _mm_mask_storeu_epi8((uint8_t *)words + number, whole, _mm512_cvtusepi32_epi8(q));
  else
    _mm256_mask_storeu_epi16((uint16_t *)words + number, whole, wide_bytes(kept));
}

INLINE void signed_bytes_store(int8_t *to, vec x)
{
  _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}

INLINE vec signed_bytes_load(const int8_t *from, vec_mask some)
{
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(some, from)));
}

/* Words */

INLINE vec_ints halves_load(const uint16_t *from, vec_mask some)
{
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from));
}

#define halves_store _mm512_mask_cvtepi32_storeu_epi16

INLINE vec_ints bytes_widen(vec_ints words, size_t part)
{
  return _mm512_srai_epi16(part == 0 ? _mm512_slli_epi16(words, 8) : words, 8);
}

#ifdef __AVX512BF16__
#define HAS_STORE_BF16
INLINE void vec_store_bf16(uint16_t *to, vec_mask some, vec x)
{
  _mm256_mask_storeu_epi16(to, some, (__m256i)_mm512_cvtneps_pbh(x));
}
#endif

INLINE void words_transpose(vec rows[LANES])
{
  __m512i x[16], y[16];
  for (size_t r = 0; r < 16; r++)
    x[r] = _mm512_castps_si512(rows[r]);
  for (size_t r = 0; r < 16; r += 2) { /* pairs of words, of two rows */
    y[r] = _mm512_unpacklo_epi32(x[r], x[r + 1]);
    y[r + 1] = _mm512_unpackhi_epi32(x[r], x[r + 1]);
  }
  for (size_t r = 0; r < 16; r += 4) { /* x[r + j]: words j, 4 + j, 8 + j, 12 + j of rows r .. r + 3 */
    x[r] = _mm512_unpacklo_epi64(y[r], y[r + 2]);
    x[r + 1] = _mm512_unpackhi_epi64(y[r], y[r + 2]);
    x[r + 2] = _mm512_unpacklo_epi64(y[r + 1], y[r + 3]);
    x[r + 3] = _mm512_unpackhi_epi64(y[r + 1], y[r + 3]);
  }
  for (size_t j = 0; j < 4; j++) { /* the 128-bit lanes of four registers are a 4 x 4 matrix of their own */
    const __m512i a = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x44),
                  b = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x44),
                  d = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xee);
    rows[j] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(a, c, 0x88));
    rows[4 + j] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(a, c, 0xdd));
    rows[8 + j] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(b, d, 0x88));
    rows[12 + j] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(b, d, 0xdd));
  }
}
