// The forward pass of QuantLinear (see quant_linear.cc).
#pragma once
#include "quant_linear.h"

namespace espalier {

/// delta[row, :] = weight * scaling * B (A x) of the row's own slot, in fp32; 0 for rows of the base.
template <typename X>
void slotDeltas(Context& context, const LinearInputs& in, const X* x, int64_t row0, int64_t rows, float* delta, float* rankBuffer,
                int64_t maxRank) {
  const int64_t columns = in.weights.columns, out = in.weights.rows;
  forDynamic(context, rows, [&](int64_t worker, int64_t i) {
    const int64_t row = row0 + i;
    float* y = delta + i * out;
    memset(y, 0, static_cast<size_t>(out) * 4);
    Adapter adapter;
    if (in.rowSlot[row] < 0 || readSlot(in.slots, in.rowSlot[row], out, columns, adapter) || adapter.rank == 0) return;
    const float factor = adapter.scaling * (in.rowWeight ? in.rowWeight[row] : 1.f);
    float* t = rankBuffer + worker * maxRank;
    for (int64_t r = 0; r < adapter.rank; r++) {
      Vec sum = zero();
      for (int64_t k = 0; k < columns; k += kLanes)
        sum = fma(loadUpTo(adapter.a + r * columns + k, columns - k), loadUpTo(x + row * columns + k, columns - k), sum);
      t[r] = reduceAdd(sum) * factor;
    }
    for (int64_t n = 0; n < out; n++) {
      Vec sum = zero();
      for (int64_t r = 0; r < adapter.rank; r += kLanes)
        sum = fma(loadUpTo(adapter.b + n * adapter.rank + r, adapter.rank - r), loadUpTo(t + r, adapter.rank - r), sum);
      y[n] += reduceAdd(sum);
    }
  });
}

template <class A, typename X>
const char* runForward(Context& context, const LinearInputs& in, const X* x, const X* adapterX) noexcept {
  const Weights& weights = in.weights;
  const Adapter& adapter = in.adapter;
  const int64_t columns = weights.columns, out = weights.rows, rank = adapter.rank;
  const int64_t steps = stepsOf<A>(columns), tail = rank ? stepsOf<A>(rank) : 0;
  const int threads = std::max(1, context.threads());
  constexpr int64_t kBlock = kMaxBlockRows / kGroupRows * kGroupRows;
  const int64_t blockRows = std::min(in.rows, kBlock);
  const int64_t tileStride = (steps + tail) * kTileRows, groups = (blockRows + kGroupRows - 1) / kGroupRows;
  const auto workerFloatsOf = [&](int64_t rows) { return ProductPlan::workerFloats(RowBlocks(rows, threads), out, steps, tail, threads); };
  int64_t maxRank = 0;
  if (in.rowSlot)
    for (int64_t s = 0; s < in.slots.count; s++) maxRank = std::max(maxRank, in.slots.table[s * 8 + 2]);
  // A worker either packs rows (a group of adapterX, t of that group) or multiplies a panel.
  const int64_t thinFloats = (adapterX ? steps * kGroupRows : 0) + kGroupRows * rank;
  const int64_t workerFloats = roundUp(std::max({workerFloatsOf(blockRows), workerFloatsOf(in.rows % kBlock), thinFloats}), 16);

  Carver carver;
  const int64_t packedAt = carver.floats(groups * kTilesPerGroup * tileStride);
  const int64_t thinAt = carver.floats(rank ? ThinPanels::floats(rank, steps) : 0);
  const int64_t deltaAt = carver.floats(in.rowSlot ? blockRows * out : 0), rankAt = carver.floats(maxRank * threads);
  const int64_t workersAt = carver.floats(workerFloats * threads);
  auto* scratch = static_cast<float*>(context.scratch(carver.bytes()));
  if (!scratch) return "QuantLinear: out of memory";
  auto* packed = reinterpret_cast<uint32_t*>(scratch + packedAt);

  ThinPanels a{reinterpret_cast<uint32_t*>(scratch + thinAt), rank, steps};
  for (int64_t p = 0; rank && p < a.panels(); p++)
    packAlong<A>(adapter.a + p * kPanelColumns * columns, columns, columns, a.columnsOf(p), vectorsOf(a.columnsOf(p)), a.panel(p));

  for (int64_t row0 = 0; row0 < in.rows; row0 += kBlock) {
    const int64_t rows = std::min(kBlock, in.rows - row0);
    if (in.rowSlot) slotDeltas(context, in, adapterX ? adapterX : x, row0, rows, scratch + deltaAt, scratch + rankAt, std::max<int64_t>(maxRank, 0));
    const RowBlocks blocks(rows, threads);
    const auto planOf = [&](int64_t b) { return ProductPlan(blocks.size(b), out, steps, tail, blocks.threads(threads)); };
    const auto packGroup = [&](int64_t worker, int64_t b, int64_t g) {
      const int64_t first = blocks.first(b) + g * kGroupRows, row = row0 + first, present = std::min<int64_t>(kGroupRows, rows - first);
      uint32_t* group = packed + first / kTileRows * tileStride;
      packRows<A>(x + row * columns, columns, present, columns, group, tileStride);
      if (!rank) return;
      float* t = scratch + workersAt + worker * workerFloats;
      const uint32_t* source = group;
      int64_t sourceStride = tileStride;
      if (adapterX) {
        auto* other = reinterpret_cast<uint32_t*>(t + kGroupRows * rank);
        sourceStride = steps * kTileRows;
        packRows<A>(adapterX + row * columns, columns, present, columns, other, sourceStride);
        source = other;
      }
      // t = scaling x A^T: [group, rank], the last `tail` steps of the packed rows
      multiplyThin<A>(source, sourceStride, a, [&](int i) {
        return i < present ? adapter.scaling * (in.rowWeight ? in.rowWeight[row + i] : 1.f) : 0.f;
      }, t, rank);
      packRows<A>(t, rank, present, rank, group + steps * kTileRows, tileStride);
    };
    const auto multiply = [&](int64_t worker, int64_t b, int64_t task) {
      const int64_t first = blocks.first(b);
      runProductTask<A>(
          planOf(b), task, packed + first / kTileRows * tileStride, scratch + workersAt + worker * workerFloats,
          [&](int64_t n, int64_t count, int nv, int64_t step, int64_t length, bool last, uint32_t* to) {
            const int64_t k0 = step * A::kPerStep;
            packWeightsAlong<A>(weights, n, count, nv, k0, std::min(length * A::kPerStep, columns - k0), to);
            if (last && rank) packAlong<A>(adapter.b + n * rank, rank, rank, count, nv, to + length * nv * kLanes);
          },
          [&](int64_t tileRow, int64_t count, int64_t n, int64_t width, int64_t stride, const float* c) {
            for (int64_t i = 0; i < count; i++) {
              const int64_t row = row0 + first + tileRow + i, at = row * out + n;
              Finish finish;
              const float* factor = adapter.factor;
              if (in.rowSlot) {
                finish.delta = scratch + deltaAt + (first + tileRow + i) * out + n;
                Adapter own;
                if (in.rowSlot[row] >= 0 && !readSlot(in.slots, in.rowSlot[row], out, columns, own)) factor = own.factor;
              }
              if (factor) finish.factor = factor + n;
              if (in.bias) finish.bias = in.bias + n;
              if (in.residual) finish.residual = in.residual + at;
              finishRow(in.y, at, c + i * stride, finish, width);
            }
          });
    };
    forStages(context, blocks.count, 0, [&](int64_t b) { return StageCounts{blocks.groups(b), planOf(b).tasks()}; }, packGroup, multiply,
              [](int64_t, int64_t) {});
  }
  return nullptr;
}

}  // namespace espalier
