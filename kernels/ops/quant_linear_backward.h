// The backward pass of QuantLinear (see quant_linear.cc). With t = scaling x A^T and u = scaling dY B:
//   dX = dXin + dY W + u A (the last term goes to dAdapterX instead when the adapter had its own input)
//   dA += u^T x, dB += dY^T t
#pragma once
#include "quant_linear.h"

namespace espalier {

/// Register tile of u^T z: ranks x vectors of columns. Sixteen ranks are whole tiles on every instruction set.
constexpr int kGramRanks = kLanes == 16 ? 16 : 4, kGramVectors = kLanes == 16 ? 1 : 3;
/// Columns of one task.
constexpr int64_t kGramColumns = 48;
static_assert(kGramColumns % (kGramVectors * kLanes) == 0, "whole tiles");

/// c[kGramRanks][kGramVectors * kLanes] = sum over rows of u[row, r] z[row, column]; z's columns are joined to steps on
/// the way. u: [row steps][uWidth] as packDown leaves it. `whole`: all columns of the tile are there.
template <class A, bool whole, typename Z>
inline void multiplyGram(const uint32_t* u, int64_t uWidth, const Z* z, int64_t ld, int64_t rows, int64_t columns, float* c) {
  Vec sum[kGramRanks][kGramVectors] = {};
  for (int64_t i = 0; i < rows; i += A::kPerStep, u += uWidth, z += A::kPerStep * ld) {
    const Z* second = i + A::kPerStep - 1 < rows ? z + (A::kPerStep - 1) * ld : nullptr;
    Vec column[kGramVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kGramVectors; v++) {
      const int64_t left = whole ? kLanes : columns - v * kLanes;
      column[v] = left <= 0 ? zero() : A::across(z + v * kLanes, second ? second + v * kLanes : nullptr, left);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kGramRanks; r++)
#pragma GCC unroll 4
      for (int v = 0; v < kGramVectors; v++) sum[r][v] = A::step(sum[r][v], u[r], column[v]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < kGramRanks; r++)
#pragma GCC unroll 4
    for (int v = 0; v < kGramVectors; v++) store(c + (r * kGramVectors + v) * kLanes, sum[r][v]);
}

/// add(r, column, sums, count) for every rank and run of columns of u^T z; z starts at the task's first column.
template <class A, typename Z, typename Add>
inline void runGramTask(const uint32_t* u, int64_t uWidth, int64_t rank, const Z* z, int64_t ld, int64_t rows, int64_t columns, Add&& add) {
  constexpr int64_t kWidth = kGramVectors * kLanes;
  alignas(64) float c[kGramRanks * kWidth];
  for (int64_t j = 0; j < columns; j += kWidth) {
    const int64_t count = std::min(kWidth, columns - j);
    for (int64_t r = 0; r < rank; r += kGramRanks) {
      if (count == kWidth) multiplyGram<A, true>(u + r, uWidth, z + j, ld, rows, count, c);
      else multiplyGram<A, false>(u + r, uWidth, z + j, ld, rows, count, c);
      for (int64_t i = 0; i < kGramRanks && r + i < rank; i++) add(r + i, j, c + i * kWidth, count);
    }
  }
}

template <class A, typename X, typename Y>
const char* runBackward(Context& context, const LinearGradInputs& in, const X* x, const Y* dY) noexcept {
  const Weights& weights = in.weights;
  const Adapter& adapter = in.adapter;
  const int64_t columns = weights.columns, out = weights.rows;
  const bool wantsAdapterX = in.dAdapterX && adapter.rank > 0, wantsDX = static_cast<bool>(in.dX);
  if (in.dAdapterX && !adapter.rank) memset(in.dAdapterX.data, 0, static_cast<size_t>(in.rows * columns) * (in.dAdapterX.dtype == DType::f32 ? 4 : 2));
  const int64_t rank = in.gradient || wantsDX || wantsAdapterX ? adapter.rank : 0;
  const bool wantsGradient = in.gradient && rank;
  const X* adapterX = in.adapterX ? in.adapterX.as<const X>() : x;
  const int64_t ySteps = stepsOf<A>(out), xSteps = stepsOf<A>(columns);
  // u takes part in dX only when the adapter shares X; its packed form is kept for dAdapterX too.
  const int64_t tail = rank ? stepsOf<A>(rank) : 0, mainTail = in.adapterX ? 0 : tail;
  const int threads = std::max(1, context.threads());
  constexpr int64_t kBlock = kMaxBlockRows / kGroupRows * kGroupRows;
  const int64_t blockRows = std::min(in.rows, kBlock), groups = (blockRows + kGroupRows - 1) / kGroupRows;
  const int64_t tileStride = (ySteps + mainTail) * kTileRows, otherStride = tail * kTileRows;
  const int64_t rankWidth = roundUp(rank, kLanes), mSteps = stepsOf<A>(blockRows);
  const auto workerFloatsOf = [&](int64_t rows) {
    const RowBlocks blocks(rows, threads);
    return std::max(ProductPlan::workerFloats(blocks, columns, ySteps, mainTail, threads), ProductPlan::workerFloats(blocks, columns, 0, tail, threads));
  };
  const int64_t workerFloats = roundUp(std::max({workerFloatsOf(blockRows), workerFloatsOf(in.rows % kBlock), xSteps * kGroupRows}), 16);
  Carver carver;
  const int64_t packedAt = carver.floats(groups * kTilesPerGroup * tileStride);
  const int64_t otherAt = carver.floats(in.adapterX ? groups * kTilesPerGroup * otherStride : 0);
  const int64_t aAt = carver.floats(rank ? ThinPanels::floats(rank, xSteps) : 0), bAt = carver.floats(rank ? ThinPanels::floats(rank, ySteps) : 0);
  const int64_t tAt = carver.floats(groups * kGroupRows * rank), uAt = carver.floats(groups * kGroupRows * rank);
  const int64_t tPackedAt = carver.floats(mSteps * rankWidth), uPackedAt = carver.floats(mSteps * rankWidth);
  const int64_t workersAt = carver.floats(workerFloats * threads);
  auto* scratch = static_cast<float*>(context.scratch(carver.bytes()));
  if (!scratch) return "QuantLinearGrad: out of memory";
  auto* packed = reinterpret_cast<uint32_t*>(scratch + packedAt);
  auto* packedU = in.adapterX ? reinterpret_cast<uint32_t*>(scratch + otherAt) : packed + ySteps * kTileRows;
  const int64_t uStride = in.adapterX ? otherStride : tileStride;
  float *t = scratch + tAt, *u = scratch + uAt;
  auto *tPacked = reinterpret_cast<uint32_t*>(scratch + tPackedAt), *uPacked = reinterpret_cast<uint32_t*>(scratch + uPackedAt);

  ThinPanels a{reinterpret_cast<uint32_t*>(scratch + aAt), rank, xSteps}, b{reinterpret_cast<uint32_t*>(scratch + bAt), rank, ySteps};
  for (int64_t p = 0; rank && p < a.panels(); p++) {
    const int64_t r = p * kPanelColumns, count = a.columnsOf(p);
    if (wantsGradient) packAlong<A>(adapter.a + r * columns, columns, columns, count, vectorsOf(count), a.panel(p));
    packDown<A>(adapter.b + r, rank, out, count, vectorsOf(count), b.panel(p));
  }
  const auto packA = [&](int64_t k, int64_t count, int nv, uint32_t* to) { packDown<A>(adapter.a + k, columns, rank, count, nv, to); };

  for (int64_t row0 = 0; row0 < in.rows; row0 += kBlock) {
    const int64_t rows = std::min(kBlock, in.rows - row0);
    const RowBlocks blocks(rows, threads);
    const auto packGroup = [&](int64_t worker, int64_t block, int64_t g) {
      const int64_t first = blocks.first(block) + g * kGroupRows, row = row0 + first, present = std::min<int64_t>(kGroupRows, rows - first);
      uint32_t* group = packed + first / kTileRows * tileStride;
      packRows<A>(dY + row * out, out, present, out, group, tileStride);
      if (!rank) return;
      const auto scale = [&](int) { return adapter.scaling; };
      multiplyThin<A>(group, tileStride, b, scale, u + first * rank, rank);
      packRows<A>(u + first * rank, rank, present, rank, packedU + first / kTileRows * uStride, uStride);
      if (!wantsGradient) return;
      bool isDone = false;
      if constexpr (kRowsAreSteps<A, X>)
        if ((isDone = rank <= kLanes && present == kGroupRows && columns % A::kPerStep == 0))
          multiplyThinBy([&](const uint32_t* panel, int, float* c) {
            multiplyRowsInPlace<A>(reinterpret_cast<const uint32_t*>(adapterX + row * columns), columns / A::kPerStep, panel, xSteps, c);
          }, a, scale, t + first * rank, rank);
      if (!isDone) {
        auto* own = reinterpret_cast<uint32_t*>(scratch + workersAt + worker * workerFloats);
        packRows<A>(adapterX + row * columns, columns, present, columns, own, xSteps * kTileRows);
        multiplyThin<A>(own, xSteps * kTileRows, a, scale, t + first * rank, rank);
      }
      for (int64_t m = first / A::kPerStep; m < stepsOf<A>(first + present); m++)
        for (int64_t r = 0; r < rank; r += kLanes) {
          const int64_t at = m * A::kPerStep, has = std::min<int64_t>(A::kPerStep, rows - at), width = std::min<int64_t>(kLanes, rank - r);
          packDown<A>(t + at * rank + r, rank, has, width, 1, tPacked + m * rankWidth + r);
          packDown<A>(u + at * rank + r, rank, has, width, 1, uPacked + m * rankWidth + r);
        }
    };
    const auto planOf = [&](int64_t b) { return ProductPlan(blocks.size(b), columns, ySteps, mainTail, blocks.threads(threads)); };
    const auto otherPlanOf = [&](int64_t b) { return ProductPlan(blocks.size(b), columns, 0, tail, blocks.threads(threads)); };
    const auto mainTasks = [&](int64_t b) { return wantsDX ? planOf(b).tasks() : 0; };
    const auto otherTasks = [&](int64_t b) { return wantsAdapterX ? otherPlanOf(b).tasks() : 0; };
    const auto finish = [&](const Tensor& to, const float* added, int64_t first) {
      return [&, added, first](int64_t tileRow, int64_t count, int64_t k, int64_t width, int64_t stride, const float* c) {
        for (int64_t i = 0; i < count; i++) {
          const int64_t at = (row0 + first + tileRow + i) * columns + k;
          finishRow(to, at, c + i * stride, {nullptr, nullptr, nullptr, added ? added + at : nullptr}, width);
        }
      };
    };
    const auto multiply = [&](int64_t worker, int64_t block, int64_t task) {
      float* own = scratch + workersAt + worker * workerFloats;
      const int64_t first = blocks.first(block), tile = first / kTileRows, mains = mainTasks(block);
      if (task < mains) {
        return runProductTask<A>(
            planOf(block), task, packed + tile * tileStride, own,
            [&](int64_t k, int64_t count, int nv, int64_t step, int64_t length, bool last, uint32_t* to) {
              const int64_t n = step * A::kPerStep;
              packWeightsDown<A>(weights, k, count, nv, n, std::min(length * A::kPerStep, out - n), to);
              if (last && mainTail) packA(k, count, nv, to + length * nv * kLanes);
            },
            finish(in.dX, in.dXin, first));
      }
      runProductTask<A>(
          otherPlanOf(block), task - mains, packedU + tile * uStride, own,
          [&](int64_t k, int64_t count, int nv, int64_t, int64_t, bool, uint32_t* to) { packA(k, count, nv, to); },
          finish(in.dAdapterX, nullptr, first));
    };
    const int64_t aTasks = wantsGradient ? (columns + kGramColumns - 1) / kGramColumns : 0;
    const int64_t bTasks = wantsGradient ? (out + kGramColumns - 1) / kGramColumns : 0;
    const auto addGradient = [&](int64_t, int64_t task) {
      if (task < aTasks) {
        const int64_t k = task * kGramColumns, count = std::min(kGramColumns, columns - k);
        return runGramTask<A>(uPacked, rankWidth, rank, adapterX + row0 * columns + k, columns, rows, count,
                              [&](int64_t r, int64_t j, const float* c, int64_t width) {
                                float* g = in.gradient + r * columns + k + j;  // dA [rank, K]
                                for (int64_t l = 0; l < width; l++) g[l] += c[l];
                              });
      }
      task -= aTasks;
      const int64_t n = task * kGramColumns, count = std::min(kGramColumns, out - n);
      runGramTask<A>(tPacked, rankWidth, rank, dY + row0 * out + n, out, rows, count,
                     [&](int64_t r, int64_t j, const float* c, int64_t width) {
                       float* g = in.gradient + in.bAt + (n + j) * rank + r;  // dB [out, rank]
                       for (int64_t l = 0; l < width; l++) g[l * rank] += c[l];
                     });
    };
    forStages(context, blocks.count, aTasks + bTasks,
              [&](int64_t b) { return StageCounts{blocks.groups(b), mainTasks(b) + otherTasks(b)}; }, packGroup, multiply, addGradient);
  }
  return nullptr;
}

}  // namespace espalier
