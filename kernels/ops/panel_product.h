// The blocked product over packed operands: tasks are (block of rows) x (group of panels of columns); a task packs its
// panels, chunk of k by chunk, into its worker's cache and runs every tile of its rows over them, a few tiles at a time
// so that a tile comes from the outer cache once per group. k chunks depend on k alone, sums go on in the same fp32 chain
// from chunk to chunk, so neither the threads nor the number of rows touch a bit.
#pragma once
#include <algorithm>

#include "gemm.h"
#include "loops.h"

namespace espalier {

/// Steps of a panel that are packed at a time: up to 192 KB of L2 (AVX-512), 18 KB of L1 (others).
constexpr int64_t kMaxChunkSteps = kLanes == 16 ? 1024 : 288;
/// Rows whose packed form is alive at a time.
constexpr int64_t kMaxBlockRows = 1024;
/// Bytes of packed rows that one group of panels keeps in L2, and those that pass through it cheaply.
constexpr int64_t kHotRowBytes = 160 << 10, kCheapRowBytes = 3 << 20;

/// Rows of a block at least: a block unpacks the weights for itself.
constexpr int64_t kMinBlockRows = 256;
static_assert(kMaxBlockRows / kMinBlockRows <= kMaxStageBlocks, "as many blocks as forStages takes");

/// The rows of a product, up to kMaxBlockRows of them, in up to a block per thread (forStages gives each a thread of its own).
struct RowBlocks {
  int64_t rows, count, blockRows;
  RowBlocks(int64_t rowCount, int threads)
      : rows(rowCount), count(std::max<int64_t>(1, std::min<int64_t>(threads, rowCount / kMinBlockRows))),
        blockRows(std::max<int64_t>(kGroupRows, roundUp((rowCount + count - 1) / count, kGroupRows))) {}
  int64_t first(int64_t block) const { return block * blockRows; }
  int64_t size(int64_t block) const { return std::max<int64_t>(0, std::min(blockRows, rows - first(block))); }
  /// Row groups of a block, each kTilesPerGroup tiles.
  int64_t groups(int64_t block) const { return (size(block) + kGroupRows - 1) / kGroupRows; }
  /// Threads that work on a block.
  int threads(int all) const { return static_cast<int>((all + count - 1) / count); }
};

/// How a product of given size is cut.
struct ProductPlan {
  int64_t rows, columns, steps, tail;  // steps of k, then `tail` more (the adapter's)
  int64_t chunkSteps, chunks, groupPanels, groups, blockRows, blocks, hotTiles;

  ProductPlan(int64_t rowCount, int64_t columnCount, int64_t stepCount, int64_t tailSteps, int threads)
      : rows(rowCount), columns(columnCount), steps(stepCount), tail(tailSteps) {
    // Narrow panels, or rows that do not fit the caches: several panels a visit.
    const bool deep = rows * steps * 4 > kCheapRowBytes;
    const int64_t mostSteps = kLanes == 16 && deep ? kMaxChunkSteps / 2 : kMaxChunkSteps;
    groupPanels = deep ? (kLanes == 16 ? 2 : 48 / kPanelColumns) : 1;
    chunks = std::max<int64_t>(1, (steps + mostSteps - 1) / mostSteps);
    chunkSteps = std::max<int64_t>(roundUp((steps + chunks - 1) / chunks, 32), 32);
    groups = (panelsOf(columns) + groupPanels - 1) / groupPanels;
    // Enough tasks for every thread: split the rows where panels are few.
    const int64_t wanted = 2 * static_cast<int64_t>(threads);
    const int64_t split = std::max<int64_t>(1, std::min((wanted + groups - 1) / groups, rows / 64));
    blockRows = std::max<int64_t>(kGroupRows, roundUp((rows + split - 1) / split, kGroupRows));
    if (chunks > 1) blockRows = std::min<int64_t>(blockRows, roundUp(512, kGroupRows));
    blocks = (rows + blockRows - 1) / blockRows;
    hotTiles = std::max<int64_t>(1, kHotRowBytes / (chunkSteps * kTileRows * 4));
  }
  int64_t tasks() const { return groups * blocks; }
  /// Of one packed panel.
  int64_t panelFloats() const { return (std::min(chunkSteps, std::max<int64_t>(steps, 1)) + tail) * kPanelColumns; }
  /// Of the sums that wait for the next chunk (or for their epilogue), per panel.
  int64_t sumFloats() const { return (chunks > 1 ? tilesOf(blockRows) : 1) * kTileRows * kPanelColumns; }
  /// Scratch of one worker, in floats (a multiple of 16).
  int64_t workerFloats() const { return roundUp(groupPanels * (panelFloats() + sumFloats()), 16); }
  /// Of one that works on any block of a product.
  static int64_t workerFloats(const RowBlocks& blocks, int64_t columns, int64_t steps, int64_t tail, int threads) {
    int64_t most = 0;
    for (int64_t b = 0; b < blocks.count; b++)
      most = std::max(most, ProductPlan(blocks.size(b), columns, steps, tail, blocks.threads(threads)).workerFloats());
    return most;
  }
};

/// Runs task `task` of the plan. a: packed rows, tiles of (steps + tail) steps.
/// pack(column, columns, nv, step, count, withTail, out) packs steps [step, step + count), then the tail if told.
/// done(row, rows, column, columns, stride, c) takes finished rows of C, `stride` floats apart.
template <class A, typename Pack, typename Done>
inline void runProductTask(const ProductPlan& plan, int64_t task, const uint32_t* a, float* scratch, Pack&& pack, Done&& done) {
  const int64_t firstPanel = task / plan.blocks * plan.groupPanels, block = task % plan.blocks;
  const int64_t panels = std::min(plan.groupPanels, panelsOf(plan.columns) - firstPanel);
  const int64_t tileStride = (plan.steps + plan.tail) * kTileRows;
  const int64_t firstTile = block * plan.blockRows / kTileRows;
  const int64_t lastTile = std::min(tilesOf(plan.rows), (block + 1) * plan.blockRows / kTileRows);
  auto* packed = reinterpret_cast<uint32_t*>(scratch);
  float* sums = scratch + plan.groupPanels * plan.panelFloats();
  for (int64_t chunk = 0; chunk < plan.chunks; chunk++) {
    const int64_t step = chunk * plan.chunkSteps, count = std::max<int64_t>(0, std::min(plan.chunkSteps, plan.steps - step));
    const bool last = chunk + 1 == plan.chunks;
    const int64_t length = count + (last ? plan.tail : 0);
    for (int64_t p = 0; p < panels; p++) {
      const int64_t column = (firstPanel + p) * kPanelColumns, columns = std::min<int64_t>(kPanelColumns, plan.columns - column);
      pack(column, columns, vectorsOf(columns), step, count, last, packed + p * plan.panelFloats());
    }
    for (int64_t hot = firstTile; hot < lastTile; hot += plan.hotTiles)
      for (int64_t p = 0; p < panels; p++) {
        const int64_t column = (firstPanel + p) * kPanelColumns, columns = std::min<int64_t>(kPanelColumns, plan.columns - column);
        const int nv = vectorsOf(columns);
        const int64_t width = static_cast<int64_t>(nv) * kLanes;
        for (int64_t tile = hot; tile < std::min(lastTile, hot + plan.hotTiles); tile++) {
          float* c = sums + p * plan.sumFloats() + (plan.chunks > 1 ? (tile - firstTile) * kTileRows * width : 0);
          multiplyTile<A>(a + tile * tileStride + step * kTileRows, packed + p * plan.panelFloats(), nv, length, c, chunk > 0);
          if (last) done(tile * kTileRows, std::min<int64_t>(kTileRows, plan.rows - tile * kTileRows), column, columns, width, c);
        }
      }
  }
}

/// A small matrix of `width` <= a few panels packed once and used by every group of rows (an adapter's A or B).
struct ThinPanels {
  uint32_t* data = nullptr;
  int64_t width = 0, steps = 0;
  static int64_t floats(int64_t width, int64_t steps) { return panelsOf(width) * kPanelColumns * steps; }
  int64_t panels() const { return panelsOf(width); }
  int64_t columnsOf(int64_t panel) const { return std::min<int64_t>(kPanelColumns, width - panel * kPanelColumns); }
  uint32_t* panel(int64_t p) const { return data + p * kPanelColumns * steps; }
};

/// out[row][column] (ld floats a row, kGroupRows rows) = scale[row] * (rows . thin); multiply(panel, nv, c) makes a product.
template <typename Multiply, typename Scale>
inline void multiplyThinBy(Multiply&& multiply, const ThinPanels& thin, Scale&& scale, float* out, int64_t ld) {
  alignas(64) float c[kGroupRows * kPanelColumns];
  for (int64_t p = 0; p < thin.panels(); p++) {
    const int64_t columns = thin.columnsOf(p);
    const int nv = vectorsOf(columns);
    multiply(thin.panel(p), nv, c);
    for (int i = 0; i < kGroupRows; i++) {
      const Vec factor = set1(scale(i));
      for (int64_t j = 0; j < columns; j += kLanes)
        storeUpTo(out + i * ld + p * kPanelColumns + j, columns - j, load(c + i * nv * kLanes + j) * factor);
    }
  }
}
/// The same of a packed group.
template <class A, typename Scale>
inline void multiplyThin(const uint32_t* group, int64_t tileStride, const ThinPanels& thin, Scale&& scale, float* out, int64_t ld) {
  multiplyThinBy([&](const uint32_t* panel, int nv, float* c) { multiplyGroup<A>(group, tileStride, panel, nv, thin.steps, c); }, thin,
                 scale, out, ld);
}

}  // namespace espalier
