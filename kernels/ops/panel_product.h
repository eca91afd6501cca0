// The blocked product over packed operands: tasks are (block of rows) x (panel of columns); a task packs its panel, chunk
// of k by chunk, into its worker's cache and runs every tile of its rows over it. k chunks depend on k alone, sums go on
// in the same fp32 chain from chunk to chunk, so neither the threads nor the number of rows touch a bit.
#pragma once
#include <algorithm>

#include "gemm.h"

namespace espalier {

/// Steps of a panel that are packed at a time: 192 KB of L2 (AVX-512), 18 KB of L1 (others).
constexpr int64_t kMaxChunkSteps = kLanes == 16 ? 1024 : 288;
/// Rows whose packed form is alive at a time.
constexpr int64_t kMaxBlockRows = 1024;

/// How a product of given size is cut.
struct ProductPlan {
  int64_t rows, columns, steps, tail;  // steps of k, then `tail` more (the adapter's)
  int64_t chunkSteps, chunks, panels, blockRows, blocks;

  ProductPlan(int64_t rowCount, int64_t columnCount, int64_t stepCount, int64_t tailSteps, int threads)
      : rows(rowCount), columns(columnCount), steps(stepCount), tail(tailSteps) {
    chunks = std::max<int64_t>(1, (steps + kMaxChunkSteps - 1) / kMaxChunkSteps);
    chunkSteps = std::max<int64_t>(roundUp((steps + chunks - 1) / chunks, 32), 32);
    panels = panelsOf(columns);
    // Enough tasks for every thread: split the rows where panels are few.
    const int64_t wanted = 2 * static_cast<int64_t>(threads);
    const int64_t split = std::max<int64_t>(1, std::min((wanted + panels - 1) / panels, rows / 64));
    blockRows = std::max<int64_t>(kGroupRows, roundUp((rows + split - 1) / split, kGroupRows));
    if (chunks > 1) blockRows = std::min<int64_t>(blockRows, roundUp(512, kGroupRows));
    blocks = (rows + blockRows - 1) / blockRows;
  }
  int64_t tasks() const { return panels * blocks; }
  int64_t panelFloats() const { return (std::min(chunkSteps, std::max<int64_t>(steps, 1)) + tail) * kPanelColumns; }
  int64_t sumFloats() const { return (chunks > 1 ? tilesOf(blockRows) : 1) * kTileRows * kPanelColumns; }
  /// Scratch of one worker, in floats (a multiple of 16).
  int64_t workerFloats() const { return roundUp(panelFloats() + sumFloats(), 16); }
};

/// Runs task `task` of the plan. a: packed rows, tiles of (steps + tail) steps.
/// pack(column, columns, nv, step, count, withTail, out) packs steps [step, step + count), then the tail if told.
/// done(row, rows, column, columns, stride, c) takes finished rows of C, `stride` floats apart.
template <class A, typename Pack, typename Done>
inline void runProductTask(const ProductPlan& plan, int64_t task, const uint32_t* a, float* scratch, Pack&& pack, Done&& done) {
  const int64_t panel = task / plan.blocks, block = task % plan.blocks;
  const int64_t column = panel * kPanelColumns, columns = std::min<int64_t>(kPanelColumns, plan.columns - column);
  const int nv = vectorsOf(columns);
  const int64_t width = static_cast<int64_t>(nv) * kLanes, tileStride = (plan.steps + plan.tail) * kTileRows;
  const int64_t firstTile = block * plan.blockRows / kTileRows;
  const int64_t lastTile = std::min(tilesOf(plan.rows), (block + 1) * plan.blockRows / kTileRows);
  auto* packed = reinterpret_cast<uint32_t*>(scratch);
  float* sums = scratch + plan.panelFloats();
  for (int64_t chunk = 0; chunk < plan.chunks; chunk++) {
    const int64_t step = chunk * plan.chunkSteps, count = std::max<int64_t>(0, std::min(plan.chunkSteps, plan.steps - step));
    const bool last = chunk + 1 == plan.chunks;
    pack(column, columns, nv, step, count, last, packed);
    const int64_t length = count + (last ? plan.tail : 0);
    for (int64_t tile = firstTile; tile < lastTile; tile++) {
      float* c = plan.chunks > 1 ? sums + (tile - firstTile) * kTileRows * width : sums;
      multiplyTile<A>(a + tile * tileStride + step * kTileRows, packed, nv, length, c, chunk > 0);
      if (last) done(tile * kTileRows, std::min<int64_t>(kTileRows, plan.rows - tile * kTileRows), column, columns, width, c);
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

/// out[row][column] (ld floats a row, kGroupRows rows) = scale[row] * (group . thin)
template <class A, typename Scale>
inline void multiplyThin(const uint32_t* group, int64_t tileStride, const ThinPanels& thin, Scale&& scale, float* out, int64_t ld) {
  alignas(64) float c[kGroupRows * kPanelColumns];
  for (int64_t p = 0; p < thin.panels(); p++) {
    const int64_t columns = thin.columnsOf(p);
    const int nv = vectorsOf(columns);
    multiplyGroup<A>(group, tileStride, thin.panel(p), nv, thin.steps, c);
    for (int i = 0; i < kGroupRows; i++) {
      const Vec factor = set1(scale(i));
      for (int64_t j = 0; j < columns; j += kLanes)
        storeUpTo(out + i * ld + p * kPanelColumns + j, columns - j, load(c + i * nv * kLanes + j) * factor);
    }
  }
}

}  // namespace espalier
