/* The vector interface (vector.h says what each function means) on AVX2 with FMA. */
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8 };
typedef __m256 vec;
typedef __m256i vec_ints;
typedef __m256i vec_mask; /* all bits of a lane, or none */

/* Masks */

INLINE vec_mask lanes(long count)
{
  const int some = count >= LANES ? LANES : count <= 0 ? 0 : (int)count;
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(some), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE vec_mask mask_except(vec_mask all, vec_mask without)
{
  return _mm256_andnot_si256(without, all);
}

INLINE unsigned mask_bits(vec_mask some)
{
  return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(some));
}

INLINE int mask_any(vec_mask some)
{
  return mask_bits(some) != 0;
}

/* How many lanes: of the first ones. */
INLINE size_t mask_count(vec_mask first)
{
  return (size_t)__builtin_popcount(mask_bits(first));
}

/* Memory. AVX2 masks no 16-bit numbers, and its masked stores take AMD's older CPUs dozens of cycles. */

INLINE vec vec_load(const void *from)
{
  return _mm256_loadu_ps(from);
}

#define vec_load_some _mm256_maskload_ps

INLINE void vec_store(void *to, vec x)
{
  _mm256_storeu_ps(to, x);
}

INLINE void vec_store_some(float *to, vec_mask some, vec x)
{
  if (mask_bits(some) == 0xff)
    _mm256_storeu_ps(to, x);
  else
    _mm256_maskstore_ps(to, some, x);
}

INLINE __m128i load_halves(const uint16_t *from, vec_mask first)
{
  uint16_t some[LANES] = {0};
  if (mask_bits(first) == 0xff)
    return _mm_loadu_si128((const __m128i *)from);
  memcpy(some, from, mask_count(first) * sizeof *some);
  return _mm_loadu_si128((const __m128i *)some);
}

INLINE void store_halves(uint16_t *to, size_t count, __m128i x)
{
  uint16_t some[LANES];
  if (count == LANES) {
    _mm_storeu_si128((__m128i *)to, x);
    return;
  }
  _mm_storeu_si128((__m128i *)some, x);
  memcpy(to, some, count * sizeof *some);
}

/* The lower 16 bits of numbers that have no others. */
INLINE __m128i to_halves(__m256i x)
{
  return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

/* Arithmetic */

#define vec_zero _mm256_setzero_ps
#define vec_of _mm256_set1_ps
#define vec_add _mm256_add_ps
#define vec_sub _mm256_sub_ps
#define vec_mul _mm256_mul_ps
#define vec_div _mm256_div_ps
#define vec_fma _mm256_fmadd_ps
#define vec_minus_product _mm256_fnmadd_ps
#define vec_min _mm256_min_ps
#define vec_max _mm256_max_ps

INLINE vec vec_round(vec x)
{
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

INLINE vec vec_fraction(vec x)
{
  return _mm256_sub_ps(x, _mm256_floor_ps(x));
}

INLINE vec vec_scale(vec x, vec power)
{
  const __m256i whole = _mm256_cvtps_epi32(_mm256_floor_ps(power));
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(whole, _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(exponent));
}

INLINE vec vec_select(vec_mask some, vec a, vec b)
{
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(some));
}

INLINE vec_mask vec_is_nan(vec x)
{
  return _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

#define REDUCE(operation)                                                                                    \
  __m128 y = operation(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));                              \
  y = operation(y, _mm_movehl_ps(y, y));                                                                     \
  return _mm_cvtss_f32(operation(y, _mm_movehdup_ps(y)));

INLINE float vec_sum(vec x){REDUCE(_mm_add_ps)}

INLINE float vec_highest(vec x){REDUCE(_mm_max_ps)}

INLINE float vec_lowest(vec x){REDUCE(_mm_min_ps)}

/* Integers of 32 bits */

#define ints_as_vec _mm256_castsi256_ps
#define vec_as_ints _mm256_castps_si256
#define ints_to_floats _mm256_cvtepi32_ps
#define ints_and _mm256_and_si256
#define ints_or _mm256_or_si256
#define ints_left _mm256_slli_epi32
#define ints_right _mm256_srli_epi32
#define ints_of _mm256_set1_epi32
#define ints_load_some _mm256_maskload_epi32

INLINE vec_ints bytes_at(const uint8_t table[16], vec_ints places)
{
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), places);
}

INLINE vec_ints ints_steps(int32_t step)
{
  return _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), ints_of(step));
}

#define ints_add _mm256_add_epi32
#define ints_sub _mm256_sub_epi32
#define ints_first _mm256_cvtsi256_si32

INLINE int ints_differ(vec_ints a, vec_ints b, vec_mask some)
{
  return mask_any(mask_except(some, _mm256_cmpeq_epi32(a, b)));
}

INLINE vec vec_gather(const float *numbers, vec_ints index, vec_mask some)
{
  return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), numbers, index, _mm256_castsi256_ps(some),
                                  sizeof(float));
}

/* Bytes of an operand */

/* 8 numbers as 16-bit integers in the order of words that are widened: 0, 2, 1, 3 of each four. */
INLINE __m128i wide_bytes(vec x)
{
  const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  const __m128i q = _mm_min_epu16(_mm_set1_epi16(255), to_halves(_mm256_cvtps_epi32(x)));
  return _mm_shuffle_epi8(q, order);
}

INLINE void bytes_store(uint32_t *words, size_t number, const vec x[4])
{
  if (!DOT_I8) {
    for (size_t j = 0; j < 4; j++)
      _mm_storeu_si128((__m128i *)((uint16_t *)words + number + j * LANES), wide_bytes(x[j]));
    return;
  }
  __m256i q[4];
  for (size_t j = 0; j < 4; j++)
    q[j] = _mm256_cvtps_epi32(x[j]);
  /* packing works within 128-bit lanes, so the order is put right afterwards */
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i packed =
      _mm256_packus_epi16(_mm256_packus_epi32(q[0], q[1]), _mm256_packus_epi32(q[2], q[3]));
  _mm256_storeu_si256((__m256i *)((uint8_t *)words + number), _mm256_permutevar8x32_epi32(packed, order));
}

INLINE void bytes_store_some(uint32_t *words, size_t number, size_t count, vec x)
{
  const size_t whole = (count + 3) / 4 * 4;
  const vec kept = _mm256_and_ps(x, _mm256_castsi256_ps(lanes((long)count)));
  if (!DOT_I8) {
    store_halves((uint16_t *)words + number, whole, wide_bytes(kept));
    return;
  }
  const __m128i halves = _mm_min_epu16(_mm_set1_epi16(255), to_halves(_mm256_cvtps_epi32(kept)));
  uint8_t some[2 * LANES];
  _mm_storeu_si128((__m128i *)some, _mm_packus_epi16(halves, halves));
  memcpy((uint8_t *)words + number, some, whole);
}

INLINE void signed_bytes_store(int8_t *to, vec x)
{
  const __m256i q = _mm256_cvtps_epi32(x);
  const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storel_epi64((__m128i *)to, _mm_packs_epi16(halves, halves));
}

INLINE vec signed_bytes_load(const int8_t *from, vec_mask first)
{
  int64_t some = 0;
  memcpy(&some, from, mask_bits(first) == 0xff ? LANES : mask_count(first));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(some)));
}

/* Words */

INLINE vec_ints halves_load(const uint16_t *from, vec_mask first)
{
  return _mm256_cvtepu16_epi32(load_halves(from, first));
}

INLINE void halves_store(uint16_t *to, vec_mask first, vec_ints x)
{
  store_halves(to, mask_count(first), to_halves(x));
}

INLINE vec_ints bytes_widen(vec_ints words, size_t part)
{
  return _mm256_srai_epi16(part == 0 ? _mm256_slli_epi16(words, 8) : words, 8);
}

INLINE void words_transpose(vec rows[LANES])
{
  vec x[LANES], y[LANES];
  for (size_t r = 0; r < LANES; r += 2) { /* pairs of words, of two rows */
    x[r] = _mm256_unpacklo_ps(rows[r], rows[r + 1]);
    x[r + 1] = _mm256_unpackhi_ps(rows[r], rows[r + 1]);
  }
  for (size_t r = 0; r < LANES; r += 4) { /* y[r + j]: words j and 4 + j of rows r .. r + 3 */
    y[r] = _mm256_shuffle_ps(x[r], x[r + 2], 0x44);
    y[r + 1] = _mm256_shuffle_ps(x[r], x[r + 2], 0xee);
    y[r + 2] = _mm256_shuffle_ps(x[r + 1], x[r + 3], 0x44);
    y[r + 3] = _mm256_shuffle_ps(x[r + 1], x[r + 3], 0xee);
  }
  for (size_t j = 0; j < 4; j++) {
    rows[j] = _mm256_permute2f128_ps(y[j], y[4 + j], 0x20);
    rows[4 + j] = _mm256_permute2f128_ps(y[j], y[4 + j], 0x31);
  }
}
