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

/// kLanes neighbouring codes, the first at byte `p` (low nibble), as floats.
template <CodeKind kind> ESPALIER_INLINE Vec decodeRun(const uint8_t* p) {
  if constexpr (kind == CodeKind::byte) return load(reinterpret_cast<const int8_t*>(p));
  else {
#if ESPALIER_LANES == 16
    const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i shift = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i words = _mm512_permutexvar_epi32(half, _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shift), kind == CodeKind::nf4 ? load(kNf4) : load(kCodeValues));
#else
#if ESPALIER_LANES == 8
    int32_t word;
    memcpy(&word, p, 4);
    const IVec code = (IVec)_mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(word), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28)),
                                             _mm256_set1_epi32(15));
#else
    uint32_t spread = static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 16;
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

/// Elements of k whose scales are held at a time.
constexpr int64_t kScaledSpan = 2048;

/// scales[block][lane], offsets alike, for rows row .. row + present - 1 and `blocks` blocks from block b on.
template <CodeKind kind>
inline void transposeScales(const Weights& weights, int64_t row, int64_t present, int64_t b, int64_t blocks, float* scales, float* offsets) {
  const int64_t perRow = weights.columns / weights.block;
  if constexpr (kind == CodeKind::nf4) {
    for (int64_t i = 0; i < kLanes; i++)
      for (int64_t j = 0; j < blocks; j++) scales[j * kLanes + i] = i < present ? nf4Absmax(weights, (row + i) * perRow + b + j) : 0.f;
    return;
  }
  const auto* scale = static_cast<const uint16_t*>(weights.w[1]);
  const auto* offset = static_cast<const uint16_t*>(weights.w[2]);
  const bool symmetric = weights.format == Format::int4Symmetric;
#if ESPALIER_LANES == 16
  // Pairs of halves are transposed as words, then told apart.
  const auto pairs = [&](const uint16_t* from, float* out) {
    for (int64_t j = 0; j < blocks; j += 2 * kLanes) {
      Vec r[kLanes];
      const auto mask = static_cast<__mmask32>(blocks - j >= 2 * kLanes ? ~0u : (1u << (blocks - j)) - 1);
      for (int64_t i = 0; i < kLanes; i++) r[i] = i < present ? (Vec)_mm512_maskz_loadu_epi16(mask, from + (row + i) * perRow + b + j) : zero();
      transpose(r);
      for (int64_t l = 0; l < kLanes && j + 2 * l < blocks; l++) {
        const auto word = (__m512i)r[l];
        store(out + (j + 2 * l) * kLanes, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(word)));
        if (j + 2 * l + 1 < blocks) store(out + (j + 2 * l + 1) * kLanes, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(word, 16))));
      }
    }
  };
  pairs(scale, scales);
  if constexpr (kind == CodeKind::affine) {
    if (!symmetric) return pairs(offset, offsets);
    for (int64_t j = 0; j < blocks; j++) store(offsets + j * kLanes, load(scales + j * kLanes) * -8.f);
  }
#else
  // A load may run on into the next row, whose lanes are not used; only past the last block there is nothing.
  const int64_t total = weights.rows * perRow;
  for (int64_t j = 0; j < blocks; j += kLanes) {
    Vec s[kLanes], o[kLanes];
    for (int64_t i = 0; i < kLanes; i++) {
      const int64_t at = (row + i) * perRow + b + j;
      s[i] = i < present ? loadHalves(scale + at, total - at) : zero();
      if constexpr (kind == CodeKind::affine) o[i] = i >= present ? zero() : symmetric ? s[i] * -8.f : loadHalves(offset + at, total - at);
    }
    transpose(s);
    if constexpr (kind == CodeKind::affine) transpose(o);
    for (int64_t l = 0; l < kLanes && j + l < blocks; l++) {
      store(scales + (j + l) * kLanes, s[l]);
      if constexpr (kind == CodeKind::affine) store(offsets + (j + l) * kLanes, o[l]);
    }
  }
#endif
}

/// kLanes rows at a time: their code words are transposed, then each word gives its codes lane by lane.
template <class A, CodeKind kind>
inline void packCodesAlong(const Weights& weights, int64_t row, int64_t columns, int nv, int64_t k0, int64_t k, uint32_t* out) {
  constexpr int kCodes = kCodesPerWord<kind>;
  alignas(64) float scales[kScaledSpan / 32 * kLanes], offsets[kScaledSpan / 32 * kLanes];
  const int64_t width = static_cast<int64_t>(nv) * kLanes, rowBytes = weights.columns * (kCodes == 4 ? 2 : 1) / 2;
  const auto* bytes = static_cast<const uint8_t*>(weights.w[0]);
  const int64_t wordsPerBlock = weights.block / kCodes;
  for (int v = 0; v < nv; v++) {
    const int64_t first = row + v * kLanes, present = std::min<int64_t>(kLanes, columns - v * kLanes);
    for (int64_t span = k0; span < k0 + k; span += kScaledSpan) {
      const int64_t end = std::min(span + kScaledSpan, k0 + k), firstBlock = span / weights.block;
      transposeScales<kind>(weights, first, present, firstBlock, (end - 1) / weights.block - firstBlock + 1, scales, offsets);
      const int64_t words = (end - span) / kCodes, phase = span % weights.block / kCodes;
      for (int64_t w = 0; w < words; w += kLanes) {
        Vec r[kLanes];
        for (int64_t i = 0; i < kLanes; i++)
          r[i] = i < present ? loadUpTo(reinterpret_cast<const float*>(bytes + (first + i) * rowBytes + span * (kCodes == 4 ? 2 : 1) / 2) + w, words - w) : zero();
        transpose(r);
        uint32_t* to = out + ((span - k0) + w * kCodes) / A::kPerStep * width + v * kLanes;
        for (int64_t j = 0; j < kLanes && w + j < words; j++) {
          const int64_t b = (phase + w + j) / wordsPerBlock * kLanes;
          const Vec scale = load(scales + b), offset = kind == CodeKind::affine ? load(offsets + b) : zero();
          const IVec word = reinterpret_cast<IVec>(r[j]);
#pragma GCC unroll 8
          for (int e = 0; e < kCodes; e += A::kPerStep, to += width)
            store(reinterpret_cast<float*>(to), A::join(scaleCode<kind>(decodeWord<kind>(word, e), scale, offset),
                                                        scaleCode<kind>(decodeWord<kind>(word, (e + 1) % kCodes), scale, offset)));
        }
      }
    }
  }
}

/// The scale (and offset) of the block that holds `column` of `row`, in every lane.
template <CodeKind kind>
ESPALIER_INLINE void broadcastScale(const Weights& weights, int64_t block, Vec& scale, Vec& offset) {
  if constexpr (kind == CodeKind::nf4) scale = set1(nf4Absmax(weights, block));
  else scale = broadcastHalf(static_cast<const uint16_t*>(weights.w[1]) + block);
  if constexpr (kind == CodeKind::affine)
    offset = weights.format == Format::int4Symmetric ? scale * -8.f : broadcastHalf(static_cast<const uint16_t*>(weights.w[2]) + block);
  else offset = zero();
}

/// Row by row (pair by pair): kLanes neighbouring codes of a row share one block.
template <class A, CodeKind kind>
inline void packCodesDown(const Weights& weights, int64_t column, int64_t columns, int nv, int64_t row, int64_t k, uint32_t* out) {
  const int64_t perRow = weights.columns / weights.block, rowBytes = weights.columns * (kCodesPerWord<kind> == 4 ? 2 : 1) / 2;
  const auto* bytes = static_cast<const uint8_t*>(weights.w[0]);
  for (int64_t i = 0; i < k; i += A::kPerStep) {
    const bool hasSecond = A::kPerStep == 2 && i + 1 < k;
    int64_t held = -1;
    Vec scale[2] = {}, offset[2] = {};
    for (int v = 0; v < nv; v++, out += kLanes) {
      const int64_t at = column + v * kLanes, b = at / weights.block;
      if (v * kLanes >= columns) {
        store(reinterpret_cast<float*>(out), zero());
        continue;
      }
      if (b != held) {
        held = b;
        broadcastScale<kind>(weights, (row + i) * perRow + b, scale[0], offset[0]);
        if (hasSecond) broadcastScale<kind>(weights, (row + i + 1) * perRow + b, scale[1], offset[1]);
      }
      const uint8_t* p = bytes + (row + i) * rowBytes + at * (kCodesPerWord<kind> == 4 ? 2 : 1) / 2;
      const Vec first = scaleCode<kind>(decodeRun<kind>(p), scale[0], offset[0]);
      const Vec second = hasSecond ? scaleCode<kind>(decodeRun<kind>(p + rowBytes), scale[1], offset[1]) : zero();
      store(reinterpret_cast<float*>(out), A::join(first, second));
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
/// k0 must be a multiple of 8 * kPerStep.
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
      if (k % 8 == 0 && weights.columns % 64 == 0) return packCodesAlong<A, CodeKind::nf4>(weights, row, columns, nv, k0, k, out);
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
      if (whole && weights.columns % 64 == 0) return packCodesDown<A, CodeKind::nf4>(weights, column, columns, nv, row, k, out);
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
