// Sums of products of bytes: lane l of w holds four weights of column l, x the four activations of one row. VNNI where the
// instruction set has it (the avx512bf16 build), pairs of 16-bit sums (AVX2, AVX-512), plain integers elsewhere; all exact.
#pragma once
#include "../simd.h"

namespace espalier {

/// Activations are rounded to -kByteLimit .. kByteLimit.
constexpr int kByteLimit = 127;

/// Adds four products of unsigned codes, at most 15 each; closeCodes turns a sum of at most eight such steps into 32-bit
/// lanes (without VNNI it is held in 16-bit halves: 8 * 2 * 15 * 127 < 2^15).
ESPALIER_INLINE IVec addCodes(IVec sum, UVec w, uint32_t x) {
#if defined(ESPALIER_ISA_AVX512BF16)
  return (IVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(static_cast<int>(x)));
#elif ESPALIER_LANES == 16
  return (IVec)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)w, _mm512_set1_epi32(static_cast<int>(x))));
#elif ESPALIER_LANES == 8
  return (IVec)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(static_cast<int>(x))));
#else
  const IVec words = reinterpret_cast<IVec>(w);
  for (int b = 0; b < 4; b++) sum += ((words >> (8 * b)) & 255) * static_cast<int8_t>(x >> (8 * b));
  return sum;
#endif
}
ESPALIER_INLINE IVec closeCodes(IVec sum) {
#if defined(ESPALIER_ISA_AVX512)
  return (IVec)_mm512_madd_epi16((__m512i)sum, _mm512_set1_epi16(1));
#elif ESPALIER_LANES == 8
  return (IVec)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
#else
  return sum;
#endif
}

/// sum + four products of signed weights; a chain of them starts from startOfBytes().
ESPALIER_INLINE IVec dotBytes(IVec sum, UVec w, uint32_t x) {
#if defined(ESPALIER_ISA_AVX512BF16)
  return (IVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)(w ^ 0x80808080u), _mm512_set1_epi32(static_cast<int>(x)));
#elif ESPALIER_LANES == 16
  // The sign moves to x, so that pairs of |w| x <= 128 * 127 fit 16 bits.
  const __m512i all = _mm512_set1_epi32(static_cast<int>(x)), v = (__m512i)w;
  const __m512i x1 = _mm512_mask_sub_epi8(all, _mm512_movepi8_mask(v), _mm512_setzero_si512(), all);
  return sum + (IVec)_mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(v), x1), _mm512_set1_epi16(1));
#elif ESPALIER_LANES == 8
  const __m256i v = (__m256i)w, x1 = _mm256_sign_epi8(_mm256_set1_epi32(static_cast<int>(x)), v);
  return sum + (IVec)_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(v), x1), _mm256_set1_epi16(1));
#else
  const UVec words = w;
  for (int b = 0; b < 4; b++) sum += (reinterpret_cast<IVec>(words << (24 - 8 * b)) >> 24) * static_cast<int8_t>(x >> (8 * b));
  return sum;
#endif
}
/// Where a chain of dotBytes over activations that sum to `sum` starts: VNNI takes weights as w + 128.
ESPALIER_INLINE IVec startOfBytes(int32_t sum) {
#if defined(ESPALIER_ISA_AVX512BF16)
  return set1i(-128 * sum);
#else
  (void)sum;
  return IVec{};
#endif
}

}  // namespace espalier
