// Arithmetic of one row or head that both an operator of its own and the operators that it is fused into do.
#pragma once
#include "activation.h"
#include "exponential.h"

namespace espalier {

/// out = x / sqrt(mean(x^2) + eps) * weight
inline void normalizeRow(const float* x, const float* weight, int64_t width, float eps, float* out) {
  const float inverse = 1.0f / std::sqrt(dotElements(x, x, width) / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < width; i++) out[i] = x[i] * inverse * weight[i];
}

ESPALIER_INLINE Vec logistic(Vec x) { return 1.f / (1.f + boundedExp(-x)); }

/// out = silu(gate) * up; `out` has room for whole vectors.
template <typename T> inline void gateRow(const T* gate, const T* up, int64_t width, float* out) {
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vec x = loadUpTo(gate + i, width - i);
    store(out + i, x * logistic(x) * loadUpTo(up + i, width - i));
  }
}

/// Rotates the pairs (i, i + dim / 2) of a head by their angles; `sign` -1 turns back.
template <typename T, typename U> inline void rotateHead(const T* x, U* y, const float* cosine, const float* sine, int64_t dim, float sign = 1.f) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t left = half - i;
    const Vec a = loadUpTo(x + i, left), b = loadUpTo(x + half + i, left), c = loadUpTo(cosine + i, left), s = loadUpTo(sine + i, left) * sign;
    storeUpTo(y + i, left, a * c - b * s);
    storeUpTo(y + half + i, left, b * c + a * s);
  }
}

}  // namespace espalier
