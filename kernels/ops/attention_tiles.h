// What the attention kernels share: documents, the blocks they are cut into, and packing of head slices.
#pragma once
#include "activation.h"
#include "exponential.h"
#include "gemm.h"

namespace espalier {

/// Queries and keys of one block: a multiple of every group of rows (16, 6, 4) and of every panel (32, 16, 8). Blocks start
/// at multiples of it within their document, so a row's sums never depend on other rows or documents.
constexpr int64_t kAttentionBlock = 96;
/// Queries of a panel, one per lane.
constexpr int kAttentionVectors = 2;
constexpr int64_t kAttentionPanel = kAttentionVectors * kLanes;
/// Columns of a head that are multiplied together: two vectors divide 32 and 64 evenly.
constexpr int64_t kHeadPanel = 2 * kLanes;
constexpr int64_t kBlockPanels = kAttentionBlock / kAttentionPanel;
constexpr float kHidden = -1e30f;  // score of a key that nobody sees

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
  int64_t count = 0, tokens = 0, longest = 0, blocks = 0;

  int64_t lengthOf(int64_t d) const { return starts[d + 1] - starts[d]; }
  int64_t blocksOf(int64_t d) const { return (lengthOf(d) + kAttentionBlock - 1) / kAttentionBlock; }
};

/// One of the blocks of all documents.
struct BlockPlace {
  int64_t document, block;
};
/// Writes one place for each of documents.blocks.
inline void listBlocks(const Documents& documents, BlockPlace* out) {
  for (int64_t d = 0; d < documents.count; d++)
    for (int64_t b = 0; b < documents.blocksOf(d); b++) *out++ = {d, b};
}

inline const char* readDocuments(const Tensor& cuSeqlens, int64_t tokens, Documents& out) {
  if (!cuSeqlens || cuSeqlens.dtype != DType::i32 || cuSeqlens.size() < 2) return "Attention: cuSeqlens must be int32 [documents + 1]";
  out.starts = cuSeqlens.as<const int32_t>();
  out.count = cuSeqlens.size() - 1;
  out.tokens = tokens;
  if (out.starts[0] != 0 || out.starts[out.count] != tokens) return "Attention: cuSeqlens must run from 0 to N";
  for (int64_t d = 0; d < out.count; d++) {
    if (out.starts[d + 1] < out.starts[d]) return "Attention: cuSeqlens must not decrease";
    out.longest = std::max(out.longest, out.lengthOf(d));
    out.blocks += out.blocksOf(d);
  }
  return nullptr;
}

inline const char* checkHeads(const AttentionOptions& o, const Tensor& q, const Tensor& k, const Tensor& v) {
  if (!isActivation(q) || !isActivation(k) || !isActivation(v)) return "Attention: q, k and v must be float or bfloat16";
  if (q.dtype != k.dtype || q.dtype != v.dtype) return "Attention: q, k and v must be of one type";
  if (o.heads < 1 || o.kvHeads < 1 || o.heads % o.kvHeads || o.headDim < 1 || !(o.scale > 0)) return "Attention: num_heads must be a multiple of num_kv_heads, head_dim and scale positive";
  if (q.rank != 2 || k.rank != 2 || v.rank != 2 || q.dims[1] != o.heads * o.headDim || k.dims[1] != o.kvHeads * o.headDim ||
      v.dims[1] != k.dims[1] || k.dims[0] != q.dims[0] || v.dims[0] != q.dims[0])
    return "Attention: q must be [N, H*Dh], k and v [N, K*Dh]";
  return nullptr;
}

/// Packed shapes of one head. Scores are products with keys as rows and queries as lanes, so a softmax runs down the
/// lanes and needs no sum across them.
template <class A> struct HeadShape {
  int64_t dim, steps, tile;       // Dh; steps along it; dwords of one tile of rows
  int64_t blockSteps, blockTile;  // the same along a block of queries or keys
  explicit HeadShape(int64_t headDim)
      : dim(headDim), steps(stepsOf<A>(headDim)), tile(steps * kTileRows), blockSteps(stepsOf<A>(kAttentionBlock)),
        blockTile(blockSteps * kTileRows) {}

  // Sizes in dwords, per block of kAttentionBlock rows of the head.
  int64_t rowsSize() const { return kAttentionBlock * steps; }                      // operand A: tiles of its rows
  int64_t columnsSize() const { return roundUp(dim, kGroupRows) * blockSteps; }     // operand A: tiles of its columns
  int64_t alongSize() const { return kAttentionBlock * steps; }                     // operand B: panels of its rows
  int64_t downSize() const { return roundUp(dim, kLanes) * blockSteps; }            // operand B: panels of its columns
  int64_t sumRows() const { return std::max(roundUp(dim, kTileRows), roundUp(dim, kLanes)); }  // rows of a transposed sum

  template <typename T> void packRowsOf(const T* x, int64_t ld, int64_t n, uint32_t* out) const {
    for (int64_t row = 0; row < n; row += kGroupRows)
      packRows<A>(x + row * ld, ld, std::min<int64_t>(kGroupRows, n - row), dim, out + row * steps, tile);
  }
  template <typename T> void packColumnsOf(const T* x, int64_t ld, int64_t n, uint32_t* out) const {
    for (int64_t g = 0; g < dim; g += kGroupRows)
      for (int64_t i = 0; i < n; i += A::kPerStep) {
        const T* first = x + i * ld + g;
        const Vec v = A::across(first, i + A::kPerStep - 1 < n ? first + (A::kPerStep - 1) * ld : nullptr, std::min<int64_t>(kLanes, dim - g));
        for (int t = 0; t < kTilesPerGroup; t++)
          storeTile(reinterpret_cast<float*>(out + (g / kTileRows + t) * blockTile + i / A::kPerStep * kTileRows), v, t);
      }
  }
  template <typename T> void packAlongOf(const T* x, int64_t ld, int64_t n, uint32_t* out) const {
    for (int64_t row = 0; row < n; row += kAttentionPanel)
      packAlong<A>(x + row * ld, ld, dim, std::min(kAttentionPanel, n - row), kAttentionVectors, out + row * steps);
  }
  template <typename T> void packDownOf(const T* x, int64_t ld, int64_t n, uint32_t* out) const {
    for (int64_t c = 0; c < dim; c += kHeadPanel)
      packDown<A>(x + c, ld, n, std::min(kHeadPanel, dim - c), vectorsOf(c), out + c * blockSteps);
  }
  int vectorsOf(int64_t column) const { return dim - column > kLanes ? 2 : 1; }

  /// c[key][kAttentionPanel] = keys . queries for the first n keys (whole tiles).
  void scores(const uint32_t* keys, const uint32_t* queries, int64_t n, float* c) const {
    for (int64_t t = 0; t * kTileRows < n; t++)
      multiplyTile<A>(keys + t * tile, queries, kAttentionVectors, steps, c + t * kTileRows * kAttentionPanel);
  }
  /// sums[Dh][kAttentionPanel] += columns . weights over the first n steps of a block.
  void addTransposed(const uint32_t* columns, const uint32_t* weights, int64_t n, float* sums) const {
    for (int64_t t = 0; t * kTileRows < dim; t++)
      multiplyTile<A>(columns + t * blockTile, weights, kAttentionVectors, n, sums + t * kTileRows * kAttentionPanel, true);
  }
  /// Columns [c, c + kHeadPanel) of a tile's sums, [panel of Dh][kTileRows][width], += rows . down over steps
  /// [first, last) of a block.
  void addRows(const uint32_t* rows, const uint32_t* down, int64_t c, int64_t first, int64_t last, float* sums) const {
    const int nv = vectorsOf(c);
    const uint32_t *panel = down + c * blockSteps + first * nv * kLanes, *from = rows + first * kTileRows;
    multiplyTile<A>(from, panel, nv, last - first, sums + c * kTileRows, true);
  }
  int64_t tileSums() const { return roundUp(dim, kLanes) * kTileRows; }

  /// to[query][Dh] (ld apart) = transpose of sums[Dh][kAttentionPanel], each query times its lane of factor.
  template <typename T> void storeTransposed(const float* sums, const Vec* factor, int64_t queries, T* to, int64_t ld) const {
    for (int64_t v = 0; v * kLanes < queries; v++)
      for (int64_t c = 0; c < dim; c += kLanes) {
        Vec r[kLanes];
        for (int i = 0; i < kLanes; i++) r[i] = load(sums + (c + i) * kAttentionPanel + v * kLanes) * factor[v];
        transpose(r);
        for (int64_t i = 0; i < kLanes && v * kLanes + i < queries; i++) storeUpTo(to + (v * kLanes + i) * ld + c, dim - c, r[i]);
      }
  }
};

/// The positions of a panel's queries in their document, and which of them see a key.
struct Sight {
  IVec query[kAttentionVectors];
  IVec limit[kAttentionVectors];  // keys at or before this position are out of the window
  Sight(int64_t firstQuery, int64_t window) {
    for (int v = 0; v < kAttentionVectors; v++)
      for (int l = 0; l < kLanes; l++) {
        const int64_t position = firstQuery + v * kLanes + l;
        query[v][l] = static_cast<int32_t>(position);
        limit[v][l] = static_cast<int32_t>(window > 0 ? position - window : -1);
      }
  }
  ESPALIER_INLINE IVec mask(int v, int64_t key) const {
    const IVec k = set1i(static_cast<int32_t>(key));
    return (query[v] >= k) & (limit[v] < k);
  }
  /// Whether queries [first, last] all see keys [k0, k0 + n).
  static bool isWhole(int64_t first, int64_t last, int64_t k0, int64_t n, int64_t window) {
    return k0 + n - 1 <= first && (window == 0 || last - k0 < window);
  }
};

}  // namespace espalier
