// Activations as rows of f32, whatever they are stored as, and what every op here checks and shares.
// Loops are written over fixed lanes or short chunks so that the compiler's vectors serve each instruction set.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../simd.h"
#include "loops.h"

namespace espalier {

/// Elements that elementwise kernels convert at a time; a multiple of every vector width that stays in the L1 cache.
constexpr int64_t kChunk = 512;

inline bool isActivation(const Tensor& t) { return t.data && (t.dtype == DType::f32 || t.dtype == DType::bf16); }

inline int64_t lastDim(const Tensor& t) { return t.rank > 0 ? t.dims[t.rank - 1] : 1; }

inline bool sameShape(const Tensor& a, const Tensor& b) {
  if (a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; i++)
    if (a.dims[i] != b.dims[i]) return false;
  return true;
}

inline bool isF32(const Tensor& t) { return t.data && t.dtype == DType::f32; }

/// n elements from `offset` as f32.
inline void loadElements(const Tensor& t, int64_t offset, int64_t n, float* out) {
  if (t.dtype == DType::f32) {
    std::memcpy(out, t.as<const float>() + offset, static_cast<size_t>(n) * 4);
  } else {
    const bf16* p = t.as<const bf16>() + offset;
    for (int64_t i = 0; i < n; i += kLanes) storeUpTo(out + i, n - i, loadUpTo(p + i, n - i));
  }
}

inline void storeElements(const Tensor& t, int64_t offset, int64_t n, const float* in) {
  if (t.dtype == DType::f32) {
    std::memcpy(t.as<float>() + offset, in, static_cast<size_t>(n) * 4);
  } else {
    bf16* p = t.as<bf16>() + offset;
    for (int64_t i = 0; i < n; i += kLanes) storeUpTo(p + i, n - i, loadUpTo(in + i, n - i));
  }
}

/// A view of activations that costs nothing when they are f32: `load` returns a pointer to n floats, in place or in
/// the caller's buffer.
inline const float* viewElements(const Tensor& t, int64_t offset, int64_t n, float* buffer) {
  if (t.dtype == DType::f32) return t.as<const float>() + offset;
  loadElements(t, offset, n, buffer);
  return buffer;
}

/// Sum of a[i] * b[i], in one order whatever the caller's thread.
inline float dotElements(const float* a, const float* b, int64_t n) {
  Vec even = zero(), odd = zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    even = fma(load(a + i), load(b + i), even);
    odd = fma(load(a + i + kLanes), load(b + i + kLanes), odd);
  }
  for (; i < n; i += kLanes) even = fma(loadUpTo(a + i, n - i), loadUpTo(b + i, n - i), even);
  return reduceAdd(even + odd);
}

}  // namespace espalier
