// The paged cache as the kernels lay it out: per kv head blocks of 32 tokens, so that a head's neighbouring blocks are one
// run of bytes; in each the keys as operand "panel" of q K^T and the values as that of p V, in 32-bit steps of one float or
// two 16-bit numbers (gemm.h):
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
};

/// cacheTypes of the op's record.
enum class CacheType : int64_t { f32 = 0, bf16 = 1, int8 = 2 };

struct PagedCache {
  CacheType type = CacheType::bf16;
  Tensor keys, values, keyScales, valueScales;
  int64_t blocks = 0, headDim = 0;
  bool isBytes() const { return type == CacheType::int8; }
  int64_t entriesOf(int64_t block, int64_t head) const { return (head * blocks + block) * kCacheBlock * headDim; }
  int64_t scalesOf(int64_t block, int64_t head) const { return (head * blocks + block) * kCacheBlock; }
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

/// Writes key and value of one token, `dim` entries each, into its place. The other half of a step that it opens was
/// somebody else's and becomes 0, since 0 times it must be 0.
template <typename E> inline void placeToken(E* keys, E* values, const E* k, const E* v, int64_t t, int64_t dim) {
  if constexpr (sizeof(E) == 4) {
    for (int64_t d = 0; d < dim; d++) keys[keyAt<1>(t, d)] = k[d];
    memcpy(values + valueAt<1>(t, 0, dim), v, static_cast<size_t>(dim) * sizeof(E));
  } else {
    E pair[2];
    for (int64_t d = 0; d < dim; d += 2) memcpy(keys + keyAt<2>(t, d), k + d, 2 * sizeof(E));
    E* to = values + valueAt<2>(t, 0, dim) - t % 2;
    if (t % 2)
      for (int64_t d = 0; d < dim; d++) to[2 * d + 1] = v[d];
    else
      for (int64_t d = 0; d < dim; d++) {
        pair[0] = v[d], pair[1] = E{};
        memcpy(to + 2 * d, pair, sizeof pair);
      }
  }
}

/// x as bytes, with the half that scales them.
inline uint16_t roundToBytes(const float* x, int64_t dim, int8_t* out) {
  float top = 0;
  for (int64_t d = 0; d < dim; d++) top = std::max(top, std::fabs(x[d]));
  const uint16_t half = floatToHalf(top / 127.f);
  const float scale = halfToFloat(half), inverse = scale > 0 ? 1.f / scale : 0.f;
  for (int64_t d = 0; d < dim; d++) out[d] = static_cast<int8_t>(std::nearbyint(std::max(-127.f, std::min(127.f, x[d] * inverse))));
  return half;
}

/// One token's key and value, at elements `at` of k and v, into block and place t. `buffer` holds 4 dim floats.
inline void writeToken(const PagedCache& c, int64_t block, int64_t head, int64_t t, const Tensor& k, const Tensor& v, int64_t at, float* buffer) {
  const int64_t base = c.entriesOf(block, head), dim = c.headDim;
  if (c.type == CacheType::f32) {
    placeToken(c.keys.as<float>() + base, c.values.as<float>() + base, viewElements(k, at, dim, buffer), viewElements(v, at, dim, buffer + dim), t, dim);
  } else if (c.type == CacheType::bf16) {
    const auto narrowed = [&](const Tensor& x, float* to) {
      if (x.dtype == DType::bf16) return x.as<const bf16>() + at;
      auto* out = reinterpret_cast<bf16*>(to);
      for (int64_t d = 0; d < dim; d += kLanes) storeUpTo(out + d, dim - d, loadUpTo(x.as<const float>() + at + d, dim - d));
      return static_cast<const bf16*>(out);
    };
    placeToken(c.keys.as<bf16>() + base, c.values.as<bf16>() + base, narrowed(k, buffer), narrowed(v, buffer + dim), t, dim);
  } else {
    auto* bytes = reinterpret_cast<int8_t*>(buffer + 2 * dim);
    const int64_t place = c.scalesOf(block, head) + t;
    c.keyScales.as<uint16_t>()[place] = roundToBytes(viewElements(k, at, dim, buffer), dim, bytes);
    c.valueScales.as<uint16_t>()[place] = roundToBytes(viewElements(v, at, dim, buffer + dim), dim, bytes + dim);
    placeToken(c.keys.as<int8_t>() + base, c.values.as<int8_t>() + base, bytes, bytes + dim, t, dim);
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
