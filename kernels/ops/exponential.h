// Exponentials without branches or infinities, for loops that are mostly exponentials. simd.h's exp covers the whole range
// and every special value at about twice the cost.
#pragma once
#include "gemm.h"

namespace espalier {

constexpr float kLog2E = 1.44269504088896341f;

/// The maximum in one instruction; a NaN in b wins, one in a is lost.
ESPALIER_INLINE Vec larger(Vec a, Vec b) {
#if ESPALIER_LANES == 16
  return _mm512_max_ps(a, b);
#elif ESPALIER_LANES == 8
  return _mm256_max_ps(a, b);
#else
  return select(a > b, a, b);
#endif
}

/// Rounded to an integer; |x| < 2^22.
ESPALIER_INLINE Vec nearest(Vec x) {
#if ESPALIER_LANES == 16
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif ESPALIER_LANES == 8
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return x + set1(12582912.f) - set1(12582912.f);  // 1.5 * 2^23
#endif
}

/// p * 2^n for an integer n, p in [0.5, 2], the result a normal number.
ESPALIER_INLINE Vec scaleByPower(Vec p, Vec n) {
#if ESPALIER_LANES == 16
  return _mm512_scalef_ps(p, n);
#else
  return reinterpret_cast<Vec>(reinterpret_cast<IVec>(p) + (__builtin_convertvector(n, IVec) << 23));
#endif
}

/// 2^x for x <= 126; 2^-126 below that. Within 1e-7 relative for Fp32 products, 4e-6 where the result becomes bf16.
/// Polynomials on [-1/2, 1/2] by interpolation at Chebyshev nodes.
template <class A> ESPALIER_INLINE Vec exp2Of(Vec x) {
  x = larger(set1(-126.f), x);
  const Vec n = nearest(x), r = x - n;
  Vec p;
  if constexpr (A::kPerStep == 1) {
    p = fma(set1(1.54614447e-4f), r, set1(1.34004282e-3f));
    p = fma(p, r, set1(9.61805668e-3f));
    p = fma(p, r, set1(5.55032723e-2f));
    p = fma(p, r, set1(2.40226509e-1f));
    p = fma(p, r, set1(6.93147207e-1f));
  } else {
    p = fma(set1(9.66636852e-3f), r, set1(5.59219758e-2f));
    p = fma(p, r, set1(2.40223490e-1f));
    p = fma(p, r, set1(6.93121045e-1f));
  }
  return scaleByPower(fma(p, r, set1(1.f)), n);
}

/// Natural logarithm of positive normal numbers, within 1e-7 relative or 6e-8 absolute near 1 (polynomial: Cephes logf).
ESPALIER_INLINE Vec naturalLog(Vec x) {
  const UVec bits = reinterpret_cast<UVec>(x);
  // x = m 2^e, m in [sqrt(1/2), sqrt(2))
  const UVec shifted = bits - 0x3f3504f3u;
  const IVec e = reinterpret_cast<IVec>(shifted) >> 23;
  const Vec m = reinterpret_cast<Vec>(bits - (reinterpret_cast<UVec>(e) << 23)), f = toVec(e), r = m - 1.f;
  Vec p = set1(7.0376836292e-2f);
  p = fma(p, r, set1(-1.1514610310e-1f));
  p = fma(p, r, set1(1.1676998740e-1f));
  p = fma(p, r, set1(-1.2420140846e-1f));
  p = fma(p, r, set1(1.4249322787e-1f));
  p = fma(p, r, set1(-1.6668057665e-1f));
  p = fma(p, r, set1(2.0000714765e-1f));
  p = fma(p, r, set1(-2.4999993993e-1f));
  p = fma(p, r, set1(3.3333331174e-1f));
  const Vec square = r * r;
  Vec y = p * r * square;
  y = fma(f, set1(-2.12194440e-4f), y);
  y = fma(square, set1(-0.5f), y);
  return fma(f, set1(0.693359375f), r + y);
}

/// e^x within 2e-7 relative for |x| <= 87, e^+-87 beyond.
ESPALIER_INLINE Vec boundedExp(Vec x) {
  x = larger(set1(-87.f), x);
  x = -larger(set1(-87.f), -x);
  const Vec n = nearest(x * kLog2E);
  Vec r = fma(n, set1(-0.693359375f), x);  // ln 2 in two parts (Cephes expf)
  r = fma(n, set1(2.12194440e-4f), r);
  Vec p = fma(set1(1.9875691500e-4f), r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  return scaleByPower(fma(p, r * r, r + 1.f), n);
}

}  // namespace espalier
