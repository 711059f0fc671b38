/* The vector interface (vector.h says what each function means) on Arm's NEON. */
#pragma once
#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 4 };
typedef float32x4_t vec;
typedef int32x4_t vec_ints;
typedef uint32x4_t vec_mask; /* all bits of a lane, or none */

/* Masks */

INLINE vec_mask lanes(long count)
{
  static const int32_t steps[] = {0, 1, 2, 3};
  const int32_t some = count >= LANES ? LANES : count <= 0 ? 0 : (int32_t)count;
  return vcgtq_s32(vdupq_n_s32(some), vld1q_s32(steps));
}

#define mask_except vbicq_u32

INLINE int mask_any(vec_mask some)
{
  return vmaxvq_u32(some) != 0;
}

INLINE int mask_all(vec_mask some)
{
  return vminvq_u32(some) != 0;
}

/* How many lanes: of the first ones. */
INLINE size_t mask_count(vec_mask first)
{
  return vaddvq_u32(vshrq_n_u32(first, 31));
}

/* Memory: NEON masks no loads and stores. */

INLINE vec vec_load(const void *from)
{
  return vreinterpretq_f32_u8(vld1q_u8(from));
}

INLINE void vec_store(void *to, vec x)
{
  vst1q_u8(to, vreinterpretq_u8_f32(x));
}

INLINE vec vec_load_some(const float *from, vec_mask some)
{
  uint32_t wanted[LANES];
  float all[LANES] = {0};
  if (mask_all(some))
    return vec_load(from);
  vst1q_u32(wanted, some);
  for (size_t lane = 0; lane < LANES; lane++)
    if (wanted[lane])
      all[lane] = from[lane];
  return vld1q_f32(all);
}

INLINE void vec_store_some(float *to, vec_mask some, vec x)
{
  uint32_t wanted[LANES];
  float all[LANES];
  if (mask_all(some)) {
    vec_store(to, x);
    return;
  }
  vst1q_u32(wanted, some);
  vst1q_f32(all, x);
  for (size_t lane = 0; lane < LANES; lane++)
    if (wanted[lane])
      to[lane] = all[lane];
}

INLINE uint16x4_t load_halves(const uint16_t *from, vec_mask first)
{
  uint16_t some[LANES] = {0};
  memcpy(some, from, mask_count(first) * sizeof *some);
  return vld1_u16(some);
}

INLINE void store_halves(uint16_t *to, size_t count, uint16x4_t x)
{
  uint16_t some[LANES];
  vst1_u16(some, x);
  memcpy(to, some, count * sizeof *some);
}

/* Arithmetic */

INLINE vec vec_zero(void)
{
  return vdupq_n_f32(0);
}

#define vec_of vdupq_n_f32
#define vec_add vaddq_f32
#define vec_sub vsubq_f32
#define vec_mul vmulq_f32
#define vec_div vdivq_f32

INLINE vec vec_fma(vec a, vec b, vec c)
{
  return vfmaq_f32(c, a, b);
}

INLINE vec vec_minus_product(vec a, vec b, vec c)
{
  return vfmsq_f32(c, a, b);
}

/* As on x86: where one operand is NaN, the second. */
INLINE vec vec_min(vec a, vec b)
{
  return vbslq_f32(vcltq_f32(a, b), a, b);
}

INLINE vec vec_max(vec a, vec b)
{
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}

#define vec_round vrndnq_f32

INLINE vec vec_fraction(vec x)
{
  return vsubq_f32(x, vrndmq_f32(x));
}

INLINE vec vec_scale(vec x, vec power)
{
  const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtmq_s32_f32(power), vdupq_n_s32(127)), 23);
  return vmulq_f32(x, vreinterpretq_f32_s32(exponent));
}

#define vec_select vbslq_f32

INLINE vec_mask vec_is_nan(vec x)
{
  return vmvnq_u32(vceqq_f32(x, x));
}

#define vec_sum vaddvq_f32
#define vec_highest vmaxvq_f32
#define vec_lowest vminvq_f32

/* Integers of 32 bits */

#define ints_as_vec vreinterpretq_f32_s32
#define vec_as_ints vreinterpretq_s32_f32
#define ints_to_floats vcvtq_f32_s32
#define ints_and vandq_s32
#define ints_or vorrq_s32
#define ints_left vshlq_n_s32
#define ints_right(x, bits) vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(x), bits))
#define ints_of vdupq_n_s32

INLINE vec_ints bytes_at(const uint8_t table[16], vec_ints places)
{
  return vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(table), vreinterpretq_u8_s32(places)));
}

INLINE vec_ints ints_load_some(const int32_t *from, vec_mask some)
{
  return vreinterpretq_s32_f32(vec_load_some((const float *)from, some));
}

INLINE vec_ints ints_steps(int32_t step)
{
  static const int32_t steps[] = {0, 1, 2, 3};
  return vmulq_n_s32(vld1q_s32(steps), step);
}

#define ints_add vaddq_s32
#define ints_sub vsubq_s32

INLINE int32_t ints_first(vec_ints x)
{
  return vgetq_lane_s32(x, 0);
}

INLINE int ints_differ(vec_ints a, vec_ints b, vec_mask some)
{
  return mask_any(vbicq_u32(some, vceqq_s32(a, b)));
}

INLINE vec vec_gather(const float *numbers, vec_ints index, vec_mask some)
{
  int32_t at[LANES];
  uint32_t wanted[LANES];
  float all[LANES] = {0};
  vst1q_s32(at, index);
  vst1q_u32(wanted, some);
  for (size_t lane = 0; lane < LANES; lane++)
    if (wanted[lane])
      all[lane] = numbers[at[lane]];
  return vld1q_f32(all);
}

/* Bytes of an operand */

/* 4 numbers as 16-bit integers from 0 to 255. */
INLINE uint16x4_t to_halves(vec x)
{
  return vmin_u16(vqmovun_s32(vcvtnq_s32_f32(x)), vdup_n_u16(255));
}

/* In the order of words that are widened: 0, 2, 1, 3. */
INLINE uint16x4_t wide_bytes(vec x)
{
  static const uint8_t order[] = {0, 1, 4, 5, 2, 3, 6, 7};
  return vreinterpret_u16_u8(vtbl1_u8(vreinterpret_u8_u16(to_halves(x)), vld1_u8(order)));
}

INLINE void bytes_store_some(uint32_t *words, size_t number, size_t count, vec x)
{
  const vec kept = vec_select(lanes((long)count), x, vec_zero());
  if (!DOT_I8) {
    vst1_u16((uint16_t *)words + number, wide_bytes(kept));
    return;
  }
  uint16_t halves[LANES];
  vst1_u16(halves, to_halves(kept));
  for (size_t lane = 0; lane < LANES; lane++)
    ((uint8_t *)words)[number + lane] = (uint8_t)(halves[lane] - BYTE_SHIFT);
}

INLINE void bytes_store(uint32_t *words, size_t number, const vec x[4])
{
  if (!DOT_I8) {
    for (size_t j = 0; j < 4; j++)
      vst1_u16((uint16_t *)words + number + j * LANES, wide_bytes(x[j]));
    return;
  }
  const uint16x8_t low = vcombine_u16(to_halves(x[0]), to_halves(x[1]));
  const uint16x8_t high = vcombine_u16(to_halves(x[2]), to_halves(x[3]));
  const uint8x16_t bytes = vcombine_u8(vmovn_u16(low), vmovn_u16(high));
  vst1q_u8((uint8_t *)words + number, vsubq_u8(bytes, vdupq_n_u8(BYTE_SHIFT)));
}

INLINE void signed_bytes_store(int8_t *to, vec x)
{
  const int16x4_t halves = vqmovn_s32(vcvtnq_s32_f32(x));
  const int8x8_t bytes = vqmovn_s16(vcombine_s16(halves, halves));
  memcpy(to, &bytes, LANES);
}

INLINE vec signed_bytes_load(const int8_t *from, vec_mask first)
{
  int8x8_t some = vdup_n_s8(0);
  memcpy(&some, from, mask_count(first));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(some))));
}

/* Words */

INLINE vec_ints halves_load(const uint16_t *from, vec_mask first)
{
  return vreinterpretq_s32_u32(vmovl_u16(load_halves(from, first)));
}

INLINE void halves_store(uint16_t *to, vec_mask first, vec_ints x)
{
  store_halves(to, mask_count(first), vmovn_u32(vreinterpretq_u32_s32(x)));
}

INLINE vec_ints bytes_widen(vec_ints words, size_t part)
{
  const int16x8_t pairs = vreinterpretq_s16_s32(words);
  return vreinterpretq_s32_s16(vshrq_n_s16(part == 0 ? vshlq_n_s16(pairs, 8) : pairs, 8));
}

INLINE void words_transpose(vec rows[LANES])
{
  const float32x4x2_t upper = vtrnq_f32(rows[0], rows[1]), lower = vtrnq_f32(rows[2], rows[3]);
  rows[0] = vcombine_f32(vget_low_f32(upper.val[0]), vget_low_f32(lower.val[0]));
  rows[1] = vcombine_f32(vget_low_f32(upper.val[1]), vget_low_f32(lower.val[1]));
  rows[2] = vcombine_f32(vget_high_f32(upper.val[0]), vget_high_f32(lower.val[0]));
  rows[3] = vcombine_f32(vget_high_f32(upper.val[1]), vget_high_f32(lower.val[1]));
}
