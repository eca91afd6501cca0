// Weight panels for the packed product (gemm.h), dequantized on the way. Along: y = x W^T, a panel's columns are rows of
// W. Down: dX = dY W, a panel's columns are columns of W and k runs over its rows. Both read the same bytes, and a weight
// has the same value (dequantizeRow's) in both.
#pragma once
#include <algorithm>

#include "dequant.h"
#include "gemm.h"

namespace espalier {

/// How codes become values; one specialization of each loop per kind.
enum class CodeKind { affine, byte, nf4 };
template <CodeKind kind> constexpr int kCodesPerWord = kind == CodeKind::byte ? 4 : 8;

/// Code `e` of each 32-bit word as a float, before scale and offset.
template <CodeKind kind> ESPALIER_INLINE Vec decodeWord(IVec word, int e) {
  const UVec bits = reinterpret_cast<UVec>(word);
  if constexpr (kind == CodeKind::byte) return toVec(reinterpret_cast<IVec>(bits << (24 - 8 * e)) >> 24);
#if ESPALIER_LANES == 16
  // The lookup reads the low four bits only.
  else return _mm512_permutexvar_ps((__m512i)(bits >> (4 * e)), kind == CodeKind::nf4 ? load(kNf4) : load(kCodeValues));
#else
  else if constexpr (kind == CodeKind::nf4) return lookupNf4(reinterpret_cast<IVec>((bits >> (4 * e)) & 15));
  else return toVec(reinterpret_cast<IVec>((bits >> (4 * e)) & 15));
#endif
}

/// kLanes neighbouring codes of a row as floats: the first is code `e` of the word at p, the next words lie `step` apart.
template <CodeKind kind> ESPALIER_INLINE Vec decodeRun(const uint32_t* p, int64_t step, int64_t e) {
  if constexpr (kind == CodeKind::byte) {
    (void)e;
#if ESPALIER_LANES == 16
    return toVec((IVec)_mm512_cvtepi8_epi32(_mm_setr_epi32(static_cast<int>(p[0]), static_cast<int>(p[step]), static_cast<int>(p[2 * step]), static_cast<int>(p[3 * step]))));
#elif ESPALIER_LANES == 8
    return toVec((IVec)_mm256_cvtepi8_epi32(_mm_setr_epi32(static_cast<int>(p[0]), static_cast<int>(p[step]), 0, 0)));
#else
    (void)step;
    return load(reinterpret_cast<const int8_t*>(p));
#endif
  } else {
#if ESPALIER_LANES == 16
    (void)e;
    const __m512i words = _mm512_mask_set1_epi32(_mm512_set1_epi32(static_cast<int>(p[0])), 0xff00, static_cast<int>(p[step]));
    const __m512i shift = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shift), kind == CodeKind::nf4 ? load(kNf4) : load(kCodeValues));
#else
    (void)step;
#if ESPALIER_LANES == 8
    (void)e;
    const IVec code = (IVec)_mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(*p)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28)),
                                             _mm256_set1_epi32(15));
#else
    const uint32_t half = *p >> (4 * e);
    uint32_t spread = (half & 0xff) | (half & 0xff00) << 8;
    spread = (spread | spread << 4) & 0x0f0f0f0fu;
    BVec bytes;
    memcpy(&bytes, &spread, 4);
    const IVec code = __builtin_convertvector(bytes, IVec);
#endif
    if constexpr (kind == CodeKind::nf4) return lookupNf4(code);
    else return toVec(code);
#endif
  }
}

template <CodeKind kind> ESPALIER_INLINE Vec scaleCode(Vec code, Vec scale, Vec offset) {
  if constexpr (kind == CodeKind::affine) return fma(code, scale, offset);
  else return code * scale;
}

/// Scales (and offsets) of block b for rows row .. row + present - 1, which lie in one stripe; 0 in the other lanes.
template <CodeKind kind>
ESPALIER_INLINE void laneScales(const Weights& weights, int64_t row, int64_t present, int64_t b, Vec& scale, Vec& offset) {
  offset = zero();
  if constexpr (kind == CodeKind::nf4) {
    alignas(64) float lanes[kLanes] = {};
    for (int64_t i = 0; i < present; i++) lanes[i] = nf4Absmax(weights, (row + i) * weights.rowBlocks + b);
    scale = load(lanes);
  } else {
    const int64_t place = weights.scalePlace(row, b);
    scale = loadHalves(static_cast<const uint16_t*>(weights.w[1]) + place, present);
    if constexpr (kind == CodeKind::affine)
      offset = weights.format == Format::int4Symmetric ? scale * -8.f : loadHalves(static_cast<const uint16_t*>(weights.w[2]) + place, present);
  }
}

/// kLanes rows at a time, word by word. `row` is a multiple of kLanes.
template <class A, CodeKind kind>
inline void packCodesAlong(const Weights& weights, int64_t row, int64_t columns, int nv, int64_t k0, int64_t k, uint32_t* out) {
  constexpr int kCodes = kCodesPerWord<kind>;
  const int64_t width = static_cast<int64_t>(nv) * kLanes, wordsPerBlock = weights.block / kCodes;
  for (int v = 0; v < nv; v++) {
    const int64_t first = row + v * kLanes, present = std::min<int64_t>(kLanes, columns - v * kLanes);
    uint32_t* to = out + v * kLanes;
    if (present <= 0) {
      for (int64_t step = 0; step < k / A::kPerStep; step++) store(reinterpret_cast<float*>(to + step * width), zero());
      continue;
    }
    const int64_t height = stripeHeight(weights.rows, first);
    const uint32_t* words = weights.codeWord(first, 0);
    for (int64_t w = k0 / kCodes, last = (k0 + k) / kCodes; w < last;) {
      const int64_t b = w / wordsPerBlock, end = std::min(last, (b + 1) * wordsPerBlock);
      Vec scale, offset;
      laneScales<kind>(weights, first, present, b, scale, offset);
      for (; w < end; w++) {
        const IVec word = reinterpret_cast<IVec>(loadUpTo(reinterpret_cast<const float*>(words + w * height), present));
#pragma GCC unroll 8
        for (int e = 0; e < kCodes; e += A::kPerStep, to += width)
          store(reinterpret_cast<float*>(to), A::join(scaleCode<kind>(decodeWord<kind>(word, e), scale, offset),
                                                      scaleCode<kind>(decodeWord<kind>(word, (e + 1) % kCodes), scale, offset)));
      }
    }
  }
}

/// Stripe by stripe, row by row (pair by pair): kLanes neighbouring codes of a row share one block. `row` is even.
template <class A, CodeKind kind>
inline void packCodesDown(const Weights& weights, int64_t column, int64_t columns, int nv, int64_t row, int64_t k, uint32_t* out) {
  constexpr int kCodes = kCodesPerWord<kind>, kBlocks = kPanelColumns / 32 + 2;  // a panel may begin inside one
  const int64_t firstBlock = column / weights.block;
  int64_t blockOf[kMaxVectors], wordOf[kMaxVectors], codeOf[kMaxVectors];
  for (int v = 0; v < nv; v++) {
    const int64_t at = column + v * kLanes;
    blockOf[v] = at / weights.block - firstBlock, wordOf[v] = at / kCodes, codeOf[v] = at % kCodes;
  }
  const int64_t blocks = (column + columns - 1) / weights.block - firstBlock + 1;
  alignas(64) float scales[kBlocks][kStripeRows], offsets[kBlocks][kStripeRows];
  for (int64_t i = 0, count; i < k; i += count) {
    const int64_t inStripe = (row + i) % kStripeRows, first = row + i - inStripe, height = stripeHeight(weights.rows, first);
    count = std::min(height - inStripe, k - i);
    for (int64_t b = 0; b < blocks; b++)
      for (int64_t l = 0; l < height; l += kLanes) {
        Vec scale, offset;
        laneScales<kind>(weights, first + l, std::min<int64_t>(kLanes, height - l), firstBlock + b, scale, offset);
        store(scales[b] + l, scale), store(offsets[b] + l, offset);
      }
    const uint32_t* words = weights.codeWord(first, 0);
    for (int64_t r = inStripe; r < inStripe + count; r += A::kPerStep) {
      const bool hasSecond = A::kPerStep == 2 && r + 1 < inStripe + count;
      for (int v = 0; v < nv; v++, out += kLanes) {
        if (v * kLanes >= columns) {
          store(reinterpret_cast<float*>(out), zero());
          continue;
        }
        const float *scale = scales[blockOf[v]] + r, *offset = offsets[blockOf[v]] + r;
        const uint32_t* p = words + wordOf[v] * height + r;
        const Vec one = scaleCode<kind>(decodeRun<kind>(p, height, codeOf[v]), set1(scale[0]), set1(offset[0]));
        const Vec two = hasSecond ? scaleCode<kind>(decodeRun<kind>(p + 1, height, codeOf[v]), set1(scale[1]), set1(offset[1])) : zero();
        store(reinterpret_cast<float*>(out), A::join(one, two));
      }
    }
  }
}

/// Any format, through dequantizeRow.
template <class A>
inline void packValuesAlong(const Weights& weights, int64_t row, int64_t columns, int nv, int64_t k0, int64_t k, uint32_t* out) {
  constexpr int64_t kSpan = 64;
  static_assert(kSpan % (kLanes * A::kPerStep) == 0, "whole vectors of steps");
  alignas(64) float values[kLanes * kSpan];
  const int64_t width = static_cast<int64_t>(nv) * kLanes;
  for (int v = 0; v < nv; v++) {
    const int64_t present = std::min<int64_t>(kLanes, columns - v * kLanes);
    for (int64_t c = 0; c < k; c += kSpan) {
      const int64_t n = std::min(kSpan, k - c);
      for (int64_t i = 0; i < present; i++) dequantizeRow(weights, row + v * kLanes + i, k0 + c, n, values + i * kSpan);
      for (int64_t e = 0; e < n; e += kLanes * A::kPerStep) {
        Vec r[kLanes];
        for (int i = 0; i < kLanes; i++) r[i] = i < present ? A::steps(values + i * kSpan + e, n - e) : zero();
        transpose(r);
        const int64_t first = (c + e) / A::kPerStep, left = stepsOf<A>(n - e);
        for (int j = 0; j < kLanes && j < left; j++)
          store(reinterpret_cast<float*>(out + (first + j) * width + v * kLanes), r[j]);
      }
    }
  }
}
template <class A>
inline void packValuesDown(const Weights& weights, int64_t column, int64_t columns, int nv, int64_t row, int64_t k, uint32_t* out) {
  alignas(64) float values[2][kPanelColumns];
  for (int64_t i = 0; i < k; i += A::kPerStep) {
    const int64_t has = std::min<int64_t>(A::kPerStep, k - i);
    for (int64_t p = 0; p < has; p++) dequantizeRow(weights, row + i + p, column, columns, values[p]);
    packDown<A>(values[0], kPanelColumns, has, columns, nv, out);
    out += static_cast<int64_t>(nv) * kLanes;
  }
}

/// out[step][nv * kLanes]: rows [row, row + columns) of W as columns, k over W's columns [k0, k0 + k).
/// row must be a multiple of kLanes, k0 of 8 * kPerStep.
template <class A>
inline void packWeightsAlong(const Weights& weights, int64_t row, int64_t columns, int nv, int64_t k0, int64_t k, uint32_t* out) {
  switch (weights.format) {
    case Format::int4:
    case Format::int4Symmetric:
      if (k % 8 == 0) return packCodesAlong<A, CodeKind::affine>(weights, row, columns, nv, k0, k, out);
      break;
    case Format::int8:
      if (k % 4 == 0) return packCodesAlong<A, CodeKind::byte>(weights, row, columns, nv, k0, k, out);
      break;
    case Format::nf4:
      if (k % 8 == 0) return packCodesAlong<A, CodeKind::nf4>(weights, row, columns, nv, k0, k, out);
      break;
    case Format::f32:
      return packAlong<A>(static_cast<const float*>(weights.w[0]) + row * weights.columns + k0, weights.columns, k, columns, nv, out);
    case Format::half:
      if (weights.dtype == DType::bf16)
        return packAlong<A>(static_cast<const bf16*>(weights.w[0]) + row * weights.columns + k0, weights.columns, k, columns, nv, out);
  }
  packValuesAlong<A>(weights, row, columns, nv, k0, k, out);
}

/// out[step][nv * kLanes]: W's columns [column, column + columns), k over its rows [row, row + k).
/// `column` must be a multiple of kLanes.
template <class A>
inline void packWeightsDown(const Weights& weights, int64_t column, int64_t columns, int nv, int64_t row, int64_t k, uint32_t* out) {
  const bool whole = columns % kLanes == 0;  // no vector reads past its row
  switch (weights.format) {
    case Format::int4:
    case Format::int4Symmetric:
      if (whole) return packCodesDown<A, CodeKind::affine>(weights, column, columns, nv, row, k, out);
      break;
    case Format::int8:
      if (whole) return packCodesDown<A, CodeKind::byte>(weights, column, columns, nv, row, k, out);
      break;
    case Format::nf4:
      if (whole) return packCodesDown<A, CodeKind::nf4>(weights, column, columns, nv, row, k, out);
      break;
    case Format::f32:
      return packDown<A>(static_cast<const float*>(weights.w[0]) + row * weights.columns + column, weights.columns, k, columns, nv, out);
    case Format::half:
      if (weights.dtype == DType::bf16)
        return packDown<A>(static_cast<const bf16*>(weights.w[0]) + row * weights.columns + column, weights.columns, k, columns, nv, out);
  }
  packValuesDown<A>(weights, column, columns, nv, row, k, out);
}

}  // namespace espalier
