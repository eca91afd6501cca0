// What the attention kernels share: documents, the blocks they are cut into, and packing of head slices.
#pragma once
#include "activation.h"
#include "gemm.h"

namespace espalier {

/// Queries and keys of one tile. A multiple of every group of rows (16, 6, 4) and panel (48, 16, 12). Tiles start at
/// multiples of it within their document, so a row's sums never depend on other rows or documents.
constexpr int64_t kAttentionBlock = 96;

struct AttentionOptions {
  explicit AttentionOptions(const Attributes& attributes)
      : heads(attributes.integer("num_heads", 1)), kvHeads(attributes.integer("num_kv_heads", 1)),
        headDim(attributes.integer("head_dim", 64)), window(attributes.integer("window", 0)),
        scale(attributes.number("scale", 1.f)), strict(attributes.integer("strict", 0) != 0) {}
  int64_t heads, kvHeads, headDim, window;
  float scale;
  bool strict;
};

/// Documents of a packed batch, from cumulative lengths that have been checked.
struct Documents {
  const int32_t* starts = nullptr;
  int64_t count = 0, tokens = 0, longest = 0;
};

inline const char* readDocuments(const Tensor& cuSeqlens, int64_t tokens, Documents& out) {
  if (!cuSeqlens || cuSeqlens.dtype != DType::i32 || cuSeqlens.size() < 2) return "Attention: cuSeqlens must be int32 [documents + 1]";
  out.starts = cuSeqlens.as<const int32_t>();
  out.count = cuSeqlens.size() - 1;
  out.tokens = tokens;
  if (out.starts[0] != 0 || out.starts[out.count] != tokens) return "Attention: cuSeqlens must run from 0 to N";
  for (int64_t d = 0; d < out.count; d++) {
    if (out.starts[d + 1] < out.starts[d]) return "Attention: cuSeqlens must not decrease";
    out.longest = std::max<int64_t>(out.longest, out.starts[d + 1] - out.starts[d]);
  }
  return nullptr;
}

inline const char* checkHeads(const AttentionOptions& o, const Tensor& q, const Tensor& k, const Tensor& v) {
  if (!isActivation(q) || !isActivation(k) || !isActivation(v)) return "Attention: q, k and v must be float or bfloat16";
  if (q.dtype != k.dtype || q.dtype != v.dtype) return "Attention: q, k and v must be of one type";
  if (o.heads < 1 || o.kvHeads < 1 || o.heads % o.kvHeads || o.headDim < 1) return "Attention: num_heads must be a multiple of num_kv_heads";
  if (q.rank != 2 || k.rank != 2 || v.rank != 2 || q.dims[1] != o.heads * o.headDim || k.dims[1] != o.kvHeads * o.headDim ||
      v.dims[1] != k.dims[1] || k.dims[0] != q.dims[0] || v.dims[0] != q.dims[0])
    return "Attention: q must be [N, H*Dh], k and v [N, K*Dh]";
  return nullptr;
}

/// Layout of packed head slices: rows [n, Dh] as operand A, panels over Dh or over keys as operand B, sums of C.
template <class A> struct HeadLayout {
  int64_t dim, steps, tileStride, dimPanels, dimWidth;
  explicit HeadLayout(int64_t headDim)
      : dim(headDim), steps(stepsOf<A>(headDim)), tileStride(stepsOf<A>(headDim) * kTileRows), dimPanels(panelsOf(headDim)),
        dimWidth(roundUp(headDim, kLanes)) {}
  int64_t columnsOf(int64_t panel) const { return std::min<int64_t>(kPanelColumns, dim - panel * kPanelColumns); }
  /// Floats of n rows packed as operand A.
  int64_t rowFloats(int64_t n) const { return roundUp(n, kGroupRows) * steps; }
  /// Floats of one block of keys packed along: columns are keys.
  int64_t alongFloats() const { return kAttentionBlock * steps; }
  /// Floats of one block packed down: columns are Dh.
  int64_t downFloats() const { return stepsOf<A>(kAttentionBlock) * dimPanels * kPanelColumns; }
  /// Floats of the sums of n rows by Dh, tile by tile.
  int64_t sumFloats(int64_t n) const { return roundUp(n, kTileRows) * dimWidth; }

  template <typename T> void packRowsOf(const T* x, int64_t ld, int64_t n, uint32_t* out) const {
    for (int64_t row = 0; row < n; row += kGroupRows)
      packRows<A>(x + row * ld, ld, std::min<int64_t>(kGroupRows, n - row), dim, out + row * steps, tileStride);
  }
  template <typename T> void packAlongOf(const T* x, int64_t ld, int64_t n, uint32_t* out) const {
    for (int64_t p = 0; p < panelsOf(n); p++) {
      const int64_t columns = std::min<int64_t>(kPanelColumns, n - p * kPanelColumns);
      packAlong<A>(x + p * kPanelColumns * ld, ld, dim, columns, kMaxVectors, out + p * kPanelColumns * steps);
    }
  }
  template <typename T> void packDownOf(const T* x, int64_t ld, int64_t n, uint32_t* out) const {
    for (int64_t p = 0; p < dimPanels; p++)
      packDown<A>(x + p * kPanelColumns, ld, n, columnsOf(p), vectorsOf(columnsOf(p)), out + p * kPanelColumns * stepsOf<A>(kAttentionBlock));
  }
  /// sums[tile] (=, or += ) tile . block packed down, over `stepCount` steps.
  void multiplyDown(const uint32_t* tile, const uint32_t* block, int64_t stepCount, float* sums, bool accumulate) const {
    for (int64_t p = 0; p < dimPanels; p++)
      multiplyTile<A>(tile, block + p * kPanelColumns * stepsOf<A>(kAttentionBlock), vectorsOf(columnsOf(p)), stepCount,
                      sums + p * kPanelColumns * kTileRows, accumulate);
  }
  /// Calls f(column, vector of sums) for the row of a tile's sums.
  template <typename F> void forRow(float* sums, int64_t row, F&& f) const {
    for (int64_t p = 0; p < dimPanels; p++) {
      const int64_t columns = columnsOf(p), width = vectorsOf(columns) * kLanes;
      float* at = sums + p * kPanelColumns * kTileRows + row * width;
      for (int64_t c = 0; c < columns; c += kLanes) f(p * kPanelColumns + c, std::min<int64_t>(kLanes, columns - c), at + c);
    }
  }
};

/// Scores of one tile of rows against a block of keys: s[row][kAttentionBlock].
template <class A>
inline void scoreTile(const HeadLayout<A>& layout, const uint32_t* tile, const uint32_t* along, int64_t keys, float* s) {
  alignas(64) float c[kTileRows * kPanelColumns];
  for (int64_t p = 0; p < panelsOf(keys); p++) {
    multiplyTile<A>(tile, along + p * kPanelColumns * layout.steps, kMaxVectors, layout.steps, c);
    for (int r = 0; r < kTileRows; r++)
      for (int v = 0; v < kMaxVectors; v++)
        store(s + r * kAttentionBlock + p * kPanelColumns + v * kLanes, load(c + (r * kMaxVectors + v) * kLanes));
  }
}

/// Packs x^T as operand A: rows are the columns of x (row-major, kAttentionBlock floats a row), steps run down its n rows.
template <class A> inline void packTransposed(const float* x, int64_t n, int64_t columns, uint32_t* out) {
  const int64_t tileStride = stepsOf<A>(kAttentionBlock) * kTileRows;
  for (int64_t g = 0; g < columns; g += kGroupRows)
    for (int64_t i = 0; i < n; i += A::kPerStep) {
      const float* first = x + i * kAttentionBlock + g;
      const Vec v = A::across(first, i + A::kPerStep - 1 < n ? first + (A::kPerStep - 1) * kAttentionBlock : nullptr,
                              std::min<int64_t>(kGroupRows, columns - g));
      for (int t = 0; t < kTilesPerGroup; t++)
        storeTile(reinterpret_cast<float*>(out + (g / kTileRows + t) * tileStride + i / A::kPerStep * kTileRows), v, t);
    }
}

/// The keys [lo, hi) of a block from key k0 that query i (positions in the document) sees.
struct Visible {
  int64_t lo, hi;
  Visible(int64_t i, int64_t k0, int64_t keys, int64_t window)
      : lo(window > 0 ? std::max<int64_t>(0, i - window + 1 - k0) : 0), hi(std::min<int64_t>(keys, i - k0 + 1)) {}
  /// -1 where lane c + lane is visible.
  ESPALIER_INLINE IVec mask(int64_t c) const {
    IVec lane;
    for (int l = 0; l < kLanes; l++) lane[l] = static_cast<int32_t>(c) + l;
    return (lane >= set1i(static_cast<int32_t>(lo))) & (lane < set1i(static_cast<int32_t>(hi)));
  }
  bool none() const { return hi <= lo; }
};

}  // namespace espalier
