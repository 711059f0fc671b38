/* AVX-512 arithmetic on 16 floats. Coefficients are least-squares fits made by fit.py beside this file. */
#pragma once
#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

/* The first `count` of 16 lanes; all for 16 and more, none for 0 and less. */
INLINE __mmask16 lanes(long count)
{
  return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

/* x between -limit and limit. NaN stays NaN: min and max return their second operand where one is NaN. */
INLINE __m512 bounded_by(__m512 x, float limit)
{
  return _mm512_min_ps(_mm512_set1_ps(limit), _mm512_max_ps(_mm512_set1_ps(-limit), x));
}

/* e^x, relative error below 1e-6 for x up to 88; e^-87.3 = 1e-38 stands for all smaller ones. */
INLINE __m512 vector_exp(__m512 x)
{
  x = _mm512_max_ps(_mm512_set1_ps(-87.3f), x);
  const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  /* ln 2 in two parts: the first is exact in few bits, so that its product is too */
  __m512 part = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693145752f), x);
  part = _mm512_fnmadd_ps(whole, _mm512_set1_ps(1.42860677e-6f), part);
  __m512 result = _mm512_set1_ps(1.f / 720);
  result = _mm512_fmadd_ps(result, part, _mm512_set1_ps(1.f / 120));
  result = _mm512_fmadd_ps(result, part, _mm512_set1_ps(1.f / 24));
  result = _mm512_fmadd_ps(result, part, _mm512_set1_ps(1.f / 6));
  result = _mm512_fmadd_ps(result, part, _mm512_set1_ps(.5f));
  result = _mm512_fmadd_ps(result, part, _mm512_set1_ps(1.f));
  result = _mm512_fmadd_ps(result, part, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(result, whole);
}

/* 2^x, relative error below 8e-5 for x up to 127; 2^-126 = 1e-38 stands for all smaller ones. A third of the
 * work of vector_exp: for results that are rounded to bfloat16 afterwards, whose steps are 4e-3. */
INLINE __m512 rough_power(__m512 x)
{
  x = _mm512_max_ps(_mm512_set1_ps(-126.f), x);
  const __m512 part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* x - floor(x) */
  __m512 result = _mm512_set1_ps(0.0780245055f);
  result = _mm512_fmadd_ps(result, part, _mm512_set1_ps(0.2260671798f));
  result = _mm512_fmadd_ps(result, part, _mm512_set1_ps(0.6958335321f));
  result = _mm512_fmadd_ps(result, part, _mm512_set1_ps(0.999925219f));
  return _mm512_scalef_ps(result, x); /* by the floor */
}

/* The Gauss error function, error below 1e-7: x P(x^2) / Q(x^2) up to 4, where it is 1 in float32. */
INLINE __m512 vector_erf(__m512 x)
{
  x = bounded_by(x, 4.f);
  const __m512 u = _mm512_mul_ps(x, x);
  __m512 p = _mm512_set1_ps(1.974828072e-06f), q = _mm512_set1_ps(3.748083603e-05f);
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(0.0002880413198f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(0.004003647216f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(0.05346748362f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(0.1962490275f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(1.128378976f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(0.001216359954f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(0.01544442531f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(0.1164764459f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(0.5072523312f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(1.f));
  return _mm512_mul_ps(x, _mm512_div_ps(p, q));
}

INLINE __m512 vector_tanh(__m512 x)
{
  const __m512 bounded = bounded_by(x, 10.f);
  const __m512 e = vector_exp(_mm512_add_ps(bounded, bounded));
  const __m512 one = _mm512_set1_ps(1.f);
  return _mm512_div_ps(_mm512_sub_ps(e, one), _mm512_add_ps(e, one));
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
  ACTIVATIONS
};

INLINE __m512 gelu_rough(__m512 x)
{
  const __m512 bounded = bounded_by(x, 3.5f);
  const __m512 u = _mm512_mul_ps(bounded, bounded);
  __m512 p = _mm512_set1_ps(-6.9541386730e-07f);
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(3.4065943471e-05f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-7.0980824907e-04f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(8.3802687526e-03f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-6.3899339681e-02f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(3.9749955670e-01f));
  return _mm512_mul_ps(x, _mm512_fmadd_ps(p, bounded, _mm512_set1_ps(.5f)));
}

/* x / (1 + e^(-k x)) */
INLINE __m512 times_sigmoid(__m512 x, float k)
{
  const __m512 e = vector_exp(_mm512_min_ps(_mm512_set1_ps(87.f), _mm512_mul_ps(x, _mm512_set1_ps(-k))));
  return _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1.f)));
}

INLINE __m512 activate(enum activation activation, __m512 x)
{
  switch (activation) {
  case ACT_GELU:
    return _mm512_mul_ps(
        _mm512_mul_ps(x, _mm512_set1_ps(.5f)),
        _mm512_add_ps(_mm512_set1_ps(1.f), vector_erf(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f)))));
  case ACT_GELU_TANH: { /* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), which is x sigmoid(2 ...) */
    const __m512 cubic = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f));
    const __m512 inner = _mm512_mul_ps(_mm512_fmadd_ps(cubic, x, x), _mm512_set1_ps(0.79788456f));
    return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(.5f)),
                         _mm512_add_ps(_mm512_set1_ps(1.f), vector_tanh(inner)));
  }
  case ACT_GELU_ROUGH:
    return gelu_rough(x);
  case ACT_QUICK_GELU:
    return times_sigmoid(x, 1.702f);
  case ACT_RELU:
    return _mm512_max_ps(_mm512_setzero_ps(), x);
  case ACT_SILU:
    return times_sigmoid(x, 1.f);
  case ACT_TANH:
    return vector_tanh(x);
  default:
    return x;
  }
}

/* bfloat16: the upper half of a float. The conversion is an instruction of its own (AVX512_BF16), spelled in
 * assembler so that this file compiles without that flag and nothing else may use it. */
INLINE __m256i to_bf16(__m512 x)
{
  __m256i result;
  __asm__("vcvtneps2bf16 %1, %0" : "=v"(result) : "v"(x));
  return result;
}

INLINE __m512 from_bf16(__m256i x)
{
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

INLINE __m512 load_floats(const void *row, size_t column, __mmask16 mask, int bf16)
{
  if (bf16)
    return from_bf16(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)row + column));
  return _mm512_maskz_loadu_ps(mask, (const float *)row + column);
}

INLINE void store_floats(void *row, size_t column, __mmask16 mask, int bf16, __m512 x)
{
  if (bf16)
    _mm256_mask_storeu_epi16((uint16_t *)row + column, mask, to_bf16(x));
  else
    _mm512_mask_storeu_ps((float *)row + column, mask, x);
}
