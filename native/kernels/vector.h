/* Arithmetic on vectors of floats, based on the few functions that every instruction set defines in its
 * lanes.h. If an intrinsic does exactly what the function does, a macro gives it the function's name.
 *
 * A vec holds LANES floats, or words of 32 bits that are only moved; vec_ints holds integers; a vec_mask says
 * for each lane whether it counts.
 *
 *   lanes(count)                 the first `count` lanes: all for LANES and more, none for 0 and less
 *   mask_except, mask_any        the lanes of one mask that another does not have; whether there are any
 *   vec_load, vec_load_some      at any address; lanes that do not count are 0, and their memory is not read
 *   vec_store, vec_store_some    at any address; the memory of lanes that do not count is not written
 *   vec_fma, vec_minus_product   a b + c; c - a b
 *   vec_min, vec_max             where one operand is NaN: the second
 *   vec_round, vec_fraction      to the nearest whole number; x - floor(x)
 *   vec_scale(x, power)          x 2^floor(power), power in [-126, 127]
 *   vec_select(some, a, b)       a where the lane counts, otherwise b
 *   vec_is_nan                   the lanes that hold NaN
 *   vec_sum, vec_highest, vec_lowest   of all lanes
 *   ints_...                     the same on integers; ints_steps(step): 0, step, 2 step, ...
 *   ints_as_vec, vec_as_ints     the same bits; ints_to_floats: the same numbers
 *   bytes_at(table, places)      of 16 bytes those at the places that each byte says
 *   halves_load, halves_store    the lower 16 bits of integers whose upper bits are 0; of the first lanes
 *   vec_gather                   numbers[index] of the lanes that count
 *   bytes_store(words, number, x)   4 vecs of x, rounded to 0 ... 255, as numbers of an int8 operand, from
 *                                `number` on
 *   bytes_store_some             the first `count` of one vec, and zeros up to the end of their last word
 *   signed_bytes_store(bytes, x)    whole numbers, or NaN, as LANES signed bytes
 *   signed_bytes_load            the numbers that the first signed bytes are
 *   bytes_widen(words, part)     of each four int8 the first and third (part 0), or the others, as 16 bits
 *   words_transpose              LANES vecs: word j of row i becomes word i of row j
 *
 * Coefficients are least-squares fits made by fit.py beside this file. */
#pragma once
#include "set.h"

#include "lanes.h"

INLINE int vec_has_nan(vec x)
{
  return mask_any(vec_is_nan(x));
}

/* The floats equal to the integers of a vec that holds int32. */
INLINE vec vec_from_ints(vec bits)
{
  return ints_to_floats(vec_as_ints(bits));
}

/* Words of two 16-bit numbers, the lower ones first; of the first lanes. */
INLINE vec words_of_pairs(const uint16_t *low, vec_mask of_low, const uint16_t *high, vec_mask of_high)
{
  return ints_as_vec(ints_or(halves_load(low, of_low), ints_left(halves_load(high, of_high), 16)));
}

INLINE vec vec_load_bf16(const uint16_t *from, vec_mask first)
{
  return ints_as_vec(ints_left(halves_load(from, first), 16));
}

#ifndef HAS_STORE_BF16
/* Rounded to the nearest, ties to even. */
INLINE void vec_store_bf16(uint16_t *to, vec_mask first, vec x)
{
  const vec_ints bits = vec_as_ints(x), odd = ints_and(ints_right(bits, 16), ints_of(1));
  const vec_ints rounded = ints_add(bits, ints_add(odd, ints_of(0x7fff))), quiet = ints_of(1 << 22);
  const vec kept = vec_select(vec_is_nan(x), ints_as_vec(ints_or(bits, quiet)), ints_as_vec(rounded));
  halves_store(to, first, ints_right(vec_as_ints(kept), 16));
}
#endif

/* The upper half of each float's bits: bfloat16, rounded towards 0. */
INLINE vec vec_upper(vec x)
{
  return ints_as_vec(ints_and(vec_as_ints(x), ints_of((int32_t)0xffff0000)));
}

INLINE void vec_store_upper(uint16_t *to, vec_mask first, vec x)
{
  halves_store(to, first, ints_right(vec_as_ints(x), 16));
}

/* x between -limit and limit. NaN stays NaN: min and max return their second operand where one is NaN. */
INLINE vec bounded_by(vec x, float limit)
{
  return vec_min(vec_of(limit), vec_max(vec_of(-limit), x));
}

/* e^x, relative error below 1e-6 for x up to 88; all smaller results become e^-87.3 = 1e-38. */
INLINE vec vector_exp(vec x)
{
  x = vec_max(vec_of(-87.3f), x);
  const vec whole = vec_round(vec_mul(x, vec_of(1.44269504f)));
  /* ln 2 in two parts: the first has few bits, so that its product is exact */
  vec part = vec_minus_product(whole, vec_of(0.693145752f), x);
  part = vec_minus_product(whole, vec_of(1.42860677e-6f), part);
  vec result = vec_of(1.f / 720);
  result = vec_fma(result, part, vec_of(1.f / 120));
  result = vec_fma(result, part, vec_of(1.f / 24));
  result = vec_fma(result, part, vec_of(1.f / 6));
  result = vec_fma(result, part, vec_of(.5f));
  result = vec_fma(result, part, vec_of(1.f));
  result = vec_fma(result, part, vec_of(1.f));
  return vec_scale(result, whole);
}

/* 2^x, relative error below 8e-5 for x up to 127; all smaller results become 2^-126 = 1e-38. A third of the
 * work of vector_exp: for results that are then rounded to bfloat16, whose steps are 4e-3. */
INLINE vec rough_power(vec x)
{
  x = vec_max(vec_of(-126.f), x);
  const vec part = vec_fraction(x);
  vec result = vec_of(0.0780245055f);
  result = vec_fma(result, part, vec_of(0.2260671798f));
  result = vec_fma(result, part, vec_of(0.6958335321f));
  result = vec_fma(result, part, vec_of(0.999925219f));
  return vec_scale(result, x); /* by the floor */
}

/* The Gauss error function, error below 1e-7: x P(x^2) / Q(x^2) up to 4, where it is 1 in float32. */
INLINE vec vector_erf(vec x)
{
  x = bounded_by(x, 4.f);
  const vec u = vec_mul(x, x);
  vec p = vec_of(1.974828072e-06f), q = vec_of(3.748083603e-05f);
  p = vec_fma(p, u, vec_of(0.0002880413198f));
  p = vec_fma(p, u, vec_of(0.004003647216f));
  p = vec_fma(p, u, vec_of(0.05346748362f));
  p = vec_fma(p, u, vec_of(0.1962490275f));
  p = vec_fma(p, u, vec_of(1.128378976f));
  q = vec_fma(q, u, vec_of(0.001216359954f));
  q = vec_fma(q, u, vec_of(0.01544442531f));
  q = vec_fma(q, u, vec_of(0.1164764459f));
  q = vec_fma(q, u, vec_of(0.5072523312f));
  q = vec_fma(q, u, vec_of(1.f));
  return vec_mul(x, vec_div(p, q));
}

INLINE vec vector_tanh(vec x)
{
  const vec bounded = bounded_by(x, 10.f);
  const vec e = vector_exp(vec_add(bounded, bounded));
  const vec one = vec_of(1.f);
  return vec_div(vec_sub(e, one), vec_add(e, one));
}

enum activation {
  ACT_NONE,
  ACT_GELU,
  ACT_GELU_TANH,
  ACT_QUICK_GELU,
  ACT_RELU,
  ACT_SILU,
  ACT_TANH,
  ACT_GELU_ROUGH, /* GELU within 4e-4 of max(|x|, 1), a quarter of the work: for results rounded to 8 bits
                     after */
  ACT_RELU_SQUARED,
  ACTIVATIONS
};

INLINE vec gelu_rough(vec x)
{
  const vec bounded = bounded_by(x, 3.5f);
  const vec u = vec_mul(bounded, bounded);
  vec p = vec_of(-6.9541386730e-07f);
  p = vec_fma(p, u, vec_of(3.4065943471e-05f));
  p = vec_fma(p, u, vec_of(-7.0980824907e-04f));
  p = vec_fma(p, u, vec_of(8.3802687526e-03f));
  p = vec_fma(p, u, vec_of(-6.3899339681e-02f));
  p = vec_fma(p, u, vec_of(3.9749955670e-01f));
  return vec_mul(x, vec_fma(p, bounded, vec_of(.5f)));
}

/* x / (1 + e^(-k x)) */
INLINE vec times_sigmoid(vec x, float k)
{
  const vec e = vector_exp(vec_min(vec_of(87.f), vec_mul(x, vec_of(-k))));
  return vec_div(x, vec_add(e, vec_of(1.f)));
}

INLINE vec activate(enum activation activation, vec x)
{
  switch (activation) {
  case ACT_GELU:
    return vec_mul(vec_mul(x, vec_of(.5f)),
                   vec_add(vec_of(1.f), vector_erf(vec_mul(x, vec_of(0.70710678f)))));
  case ACT_GELU_TANH: { /* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), which is x sigmoid(2 ...) */
    const vec cubic = vec_mul(vec_mul(x, x), vec_of(0.044715f));
    const vec inner = vec_mul(vec_fma(cubic, x, x), vec_of(0.79788456f));
    return vec_mul(vec_mul(x, vec_of(.5f)), vec_add(vec_of(1.f), vector_tanh(inner)));
  }
  case ACT_GELU_ROUGH:
    return gelu_rough(x);
  case ACT_QUICK_GELU:
    return times_sigmoid(x, 1.702f);
  case ACT_RELU:
    return vec_max(vec_zero(), x);
  case ACT_RELU_SQUARED: {
    const vec positive = vec_max(vec_zero(), x);
    return vec_mul(positive, positive);
  }
  case ACT_SILU:
    return times_sigmoid(x, 1.f);
  case ACT_TANH:
    return vector_tanh(x);
  default:
    return x;
  }
}

/* What numbers are in memory. Behind the bytes of a row lies a float, which they are multiplied with. */
enum number { NUMBER_F32, NUMBER_BF16, NUMBER_I8 };

static inline size_t number_bytes(enum number number)
{
  return sizeof(float) >> number;
}

/* Of bytes: before they are multiplied. */
INLINE vec load_floats(const void *row, size_t column, vec_mask some, enum number number)
{
  if (number == NUMBER_I8)
    return signed_bytes_load((const int8_t *)row + column, some);
  if (number == NUMBER_BF16)
    return vec_load_bf16((const uint16_t *)row + column, some);
  return vec_load_some((const float *)row + column, some);
}

INLINE void store_floats(void *row, size_t column, vec_mask some, int bf16, vec x)
{
  if (bf16)
    vec_store_bf16((uint16_t *)row + column, some, x);
  else
    vec_store_some((float *)row + column, some, x);
}

enum { NEAR = 3, FAR = 2 }; /* caches: the first level; the second */

#define PREFETCH(place, cache) __builtin_prefetch(place, 0, cache)
