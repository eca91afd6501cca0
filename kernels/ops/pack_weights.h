// Weight panels for the packed product (gemm.h), dequantized on the way. Along: y = x W^T, a panel's columns are rows of
// W. Down: dX = dY W, a panel's columns are columns of W and k runs over its rows. Both read the same bytes.
#pragma once
#include "dequant.h"
#include "gemm.h"

namespace espalier {

/// out[step][nv * kLanes]: rows [row, row + columns) of W as columns, k over W's columns [k0, k0 + k).
/// k0 must be a multiple of 64.
template <class A>
inline void packWeightsAlong(const Weights& weights, int64_t row, int64_t columns, int nv, int64_t k0, int64_t k, uint32_t* out) {
  constexpr int64_t kChunk = 64;
  static_assert(kChunk % (kLanes * A::kPerStep) == 0, "whole vectors of steps");
  alignas(64) float values[kLanes * kChunk];
  const int64_t width = static_cast<int64_t>(nv) * kLanes;
  for (int v = 0; v < nv; v++) {
    const int64_t present = columns - v * kLanes < kLanes ? columns - v * kLanes : kLanes;
    for (int64_t c = 0; c < k; c += kChunk) {
      const int64_t n = k - c < kChunk ? k - c : kChunk;
      for (int64_t i = 0; i < present; i++) dequantizeRow(weights, row + v * kLanes + i, k0 + c, n, values + i * kChunk);
      for (int64_t e = 0; e < n; e += kLanes * A::kPerStep) {
        Vec r[kLanes];
        for (int i = 0; i < kLanes; i++) r[i] = i < present ? A::steps(values + i * kChunk + e, n - e) : zero();
        transpose(r);
        const int64_t first = (c + e) / A::kPerStep, left = stepsOf<A>(n - e);
        for (int j = 0; j < kLanes && j < left; j++)
          store(reinterpret_cast<float*>(out + (first + j) * width + v * kLanes), r[j]);
      }
    }
  }
}

/// out[step][nv * kLanes]: W's columns [column, column + columns), k over its rows [row, row + k).
template <class A>
inline void packWeightsDown(const Weights& weights, int64_t column, int64_t columns, int nv, int64_t row, int64_t k, uint32_t* out) {
  alignas(64) float values[2][kPanelColumns];
  for (int64_t i = 0; i < k; i += A::kPerStep) {
    for (int p = 0; p < A::kPerStep && i + p < k; p++) dequantizeRow(weights, row + i + p, column, columns, values[p]);
    packDown<A>(values[0], kPanelColumns, k - i < A::kPerStep ? 1 : A::kPerStep, columns, nv, out);
    out += static_cast<int64_t>(nv) * kLanes;
  }
}

}  // namespace espalier
