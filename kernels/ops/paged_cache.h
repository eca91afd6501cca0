// The paged cache as the kernels lay it out: blocks of 32 tokens, per block and kv head the keys as operand "panel" of
// q K^T and the values as that of p V, in 32-bit steps of one float or two 16-bit numbers (gemm.h):
//   keys   [Dh steps][32 tokens]     values [32 tokens in steps][Dh]
// int8 keeps the order of the 16-bit pairs, one byte an element, with a half scale per token and kv head.
#pragma once
#include "activation.h"
#include "gemm.h"

namespace espalier {

constexpr int64_t kCacheBlock = 32;

/// Two bf16 per step on every instruction set: one dot product, or two multiply-adds of the halves.
struct PairDot {
  static constexpr int kPerStep = 2;
  static ESPALIER_INLINE Vec step(Vec sum, uint32_t a, Vec b) {
#if defined(ESPALIER_ISA_AVX512BF16)
    return Bf16::step(sum, a, b);
#else
    const UVec bits = reinterpret_cast<UVec>(b);
    sum = fma(set1(floatOf(a << 16)), reinterpret_cast<Vec>(bits << 16), sum);
    return fma(set1(floatOf(a & 0xffff0000u)), reinterpret_cast<Vec>(bits & 0xffff0000u), sum);
#endif
  }
  static uint32_t join(float first, float second) {
    return static_cast<uint32_t>(narrow(first).bits) | static_cast<uint32_t>(narrow(second).bits) << 16;
  }
};

/// One float per step; see PairDot.
struct SingleDot : Fp32 {
  static uint32_t join(float first, float) { return bitsOf(first); }
};

/// cacheTypes of the op's record.
enum class CacheType : int64_t { f32 = 0, bf16 = 1, int8 = 2 };

struct PagedCache {
  CacheType type = CacheType::bf16;
  Tensor keys, values, keyScales, valueScales;
  int64_t kvHeads = 0, headDim = 0;
  bool isBytes() const { return type == CacheType::int8; }
  int64_t entriesOf(int64_t block, int64_t head) const { return (block * kvHeads + head) * kCacheBlock * headDim; }
  int64_t scalesOf(int64_t block, int64_t head) const { return (block * kvHeads + head) * kCacheBlock; }
};

/// Where element d of token t lies among the keys of a block, and among its values; P elements a step.
template <int P> ESPALIER_INLINE int64_t keyAt(int64_t t, int64_t d) { return (d / P * kCacheBlock + t) * P + d % P; }
template <int P> ESPALIER_INLINE int64_t valueAt(int64_t t, int64_t d, int64_t headDim) { return (t / P * headDim + d) * P + t % P; }

/// Half from float, to nearest even; for scales, which are positive and in range.
inline uint16_t floatToHalf(float x) {
  const uint32_t u = bitsOf(x);
  const int32_t exponent = static_cast<int32_t>(u >> 23) - 112;
  if (exponent >= 31) return 0x7bff;
  if (exponent <= 0) {  // a subnormal half: rounded in units of 2^-24
    const float units = x * 16777216.f;
    return static_cast<uint16_t>(std::nearbyint(units));
  }
  const uint32_t rounded = u + 0xfff + ((u >> 13) & 1);
  return static_cast<uint16_t>((static_cast<uint32_t>((rounded >> 23) - 112) << 10) | ((rounded >> 13) & 0x3ff));
}

/// Writes key and value of one token into its place.
template <int P> inline void writeToken(const PagedCache& c, int64_t block, int64_t head, int64_t t, const float* k, const float* v) {
  const int64_t base = c.entriesOf(block, head), dim = c.headDim;
  const auto put2 = [&](auto* keys, auto* values, auto&& key, auto&& value) {
    for (int64_t d = 0; d < dim; d++) {
      keys[base + keyAt<P>(t, d)] = key(k[d]);
      values[base + valueAt<P>(t, d, dim)] = value(v[d]);
      // The other half of the step was somebody else's: 0 times it must be 0.
      if (P == 2 && t % 2 == 0) values[base + valueAt<P>(t + 1, d, dim)] = value(0.f);
    }
  };
  if (c.isBytes()) {
    const auto scaleOf = [&](const float* x, uint16_t* scales) {
      float top = 0;
      for (int64_t d = 0; d < dim; d++) top = std::max(top, std::fabs(x[d]));
      const uint16_t half = floatToHalf(top / 127.f);
      scales[c.scalesOf(block, head) + t] = half;
      const float scale = halfToFloat(half);
      return scale > 0 ? 1.f / scale : 0.f;
    };
    const float kInverse = scaleOf(k, c.keyScales.as<uint16_t>()), vInverse = scaleOf(v, c.valueScales.as<uint16_t>());
    const auto round = [](float x, float inverse) { return static_cast<int8_t>(std::nearbyint(std::max(-127.f, std::min(127.f, x * inverse)))); };
    put2(c.keys.as<int8_t>(), c.values.as<int8_t>(), [&](float x) { return round(x, kInverse); }, [&](float x) { return round(x, vInverse); });
  } else if (P == 2) {
    put2(c.keys.as<bf16>(), c.values.as<bf16>(), [](float x) { return narrow(x); }, [](float x) { return narrow(x); });
  } else {
    put2(c.keys.as<float>(), c.values.as<float>(), [](float x) { return x; }, [](float x) { return x; });
  }
}

/// A block's keys or values as steps: where they lie, or 8-bit ones widened (exactly) into `buffer`.
inline const uint32_t* stepsOfBlock(const PagedCache& c, const Tensor& t, int64_t block, int64_t head, uint32_t* buffer) {
  const int64_t base = c.entriesOf(block, head), count = kCacheBlock * c.headDim;
  if (!c.isBytes()) return reinterpret_cast<const uint32_t*>(t.as<const char>() + base * (c.type == CacheType::f32 ? 4 : 2));
  const auto* from = t.as<const int8_t>() + base;
  auto* to = reinterpret_cast<bf16*>(buffer);
  for (int64_t i = 0; i < count; i += kLanes) store(to + i, load(from + i));
  return buffer;
}

}  // namespace espalier
