// What LinearLogProb, its gradient and their fusion share: inputs, and passes over the vocabulary for a block of rows.
#pragma once
#include "activation.h"
#include "pack_weights.h"
#include "panel_product.h"

namespace espalier {

struct HeadOptions {
  explicit HeadOptions(const Attributes& a)
      : format(a.integer("format", 0)), block(a.integer("block", 32)), strict(a.integer("strict", 0) != 0),
        scale(a.number("scale", 1.f)), softcap(a.number("softcap", 0.f)) {}
  int64_t format, block;
  bool strict;
  float scale, softcap;
};

struct HeadInputs {
  Weights weights;
  Tensor h;
  const int32_t *labels = nullptr, *rows = nullptr;
  int64_t count = 0;  // M
  float inverseTemperature = 1.f;
};

inline const char* readHead(Context& context, const HeadOptions& o, int temperatureAt, HeadInputs& in) {
  in.h = context.input(0);
  if (const char* problem = readWeights(context, 1, o.format, o.block, in.weights)) return problem;
  if (!isActivation(in.h) || in.h.rank != 2 || in.h.dims[1] != in.weights.columns) return "LinearLogProb: h must be [N, D]";
  const Tensor labels = context.input(5), rows = context.input(6), temperature = context.input(temperatureAt);
  if (!labels || !rows || labels.dtype != DType::i32 || rows.dtype != DType::i32 || labels.size() != rows.size())
    return "LinearLogProb: labels and lossRows must be int32 [M]";
  in.labels = labels.as<const int32_t>(), in.rows = rows.as<const int32_t>(), in.count = labels.size();
  for (int64_t m = 0; m < in.count; m++) {
    if (in.rows[m] < 0 || in.rows[m] >= in.h.dims[0]) return "LinearLogProb: lossRows names a row that h lacks";
    if (in.labels[m] >= in.weights.rows) return "LinearLogProb: a label is outside the vocabulary";
    if (m > 0 && in.rows[m] < in.rows[m - 1]) return "LinearLogProb: lossRows must not decrease";
  }
  if (temperature) {
    if (temperature.dtype != DType::f32 || temperature.size() != 1) return "LinearLogProb: temperature must be float [1]";
    const float t = temperature.as<const float>()[0];
    if (!(t > 0)) return "LinearLogProb: temperature must be above 0";
    in.inverseTemperature = 1.f / t;
  }
  return nullptr;
}

/// Rows whose logits are alive at a time: enough to spread the unpacking of a panel of the vocabulary thin.
template <class A> constexpr int64_t kHeadRows = A::kPerStep == 2 ? 192 : 96;

ESPALIER_INLINE Vec tanhOf(Vec x) { return 1.f - 2.f / (exp(2.f * x) + 1.f); }

/// z = scale x, capped, over the temperature; `slope` becomes dz/dx.
struct LogitMap {
  float scale, softcap, inverseTemperature;
  ESPALIER_INLINE Vec operator()(Vec x) const {
    Vec z = x * scale;
    if (softcap > 0) z = tanhOf(z * (1.f / softcap)) * softcap;
    return z * inverseTemperature;
  }
  ESPALIER_INLINE Vec slope(Vec z) const {
    if (softcap <= 0) return set1(scale * inverseTemperature);
    const Vec ratio = z * (1.f / (inverseTemperature * softcap));
    return (1.f - ratio * ratio) * (scale * inverseTemperature);
  }
};

/// A block of rows of h, packed; gathers rows `rows[0..n)`.
template <class A> struct HeadBlock {
  const HeadInputs* in;
  int64_t first, rows;  // of M
  uint32_t* packed;
  int64_t steps() const { return stepsOf<A>(in->weights.columns); }

  void pack(Context& context, float* gathered) {
    const int64_t columns = in->weights.columns;
    context.parallelFor((rows + kGroupRows - 1) / kGroupRows, [&](int64_t g) {
      const int64_t row = g * kGroupRows, present = std::min<int64_t>(kGroupRows, rows - row);
      for (int64_t i = 0; i < present; i++)
        loadElements(in->h, in->rows[first + row + i] * columns, columns, gathered + (row + i) * columns);
      packRows<A>(gathered + row * columns, columns, present, columns, packed + row * steps(), steps() * kTileRows);
    });
  }

  /// done(row, rows, column, columns, stride, c) for every tile of logits before the map.
  template <typename Done> void logits(Context& context, const ProductPlan& plan, float* workers, Done&& done) const {
    const Weights& weights = in->weights;
    forDynamic(context, plan.tasks(), [&](int64_t worker, int64_t task) {
      runProductTask<A>(
          plan, task, packed, workers + worker * plan.workerFloats(),
          [&](int64_t n, int64_t count, int nv, int64_t step, int64_t length, bool, uint32_t* to) {
            const int64_t k0 = step * A::kPerStep;
            packWeightsAlong<A>(weights, n, count, nv, k0, std::min(length * A::kPerStep, weights.columns - k0), to);
          },
          done);
    });
  }

  /// dRows[row, :] = g . W, g packed as operand A over the vocabulary.
  void gradient(Context& context, const ProductPlan& plan, const uint32_t* g, float* workers, float* dRows) const {
    const Weights& weights = in->weights;
    forDynamic(context, plan.tasks(), [&](int64_t worker, int64_t task) {
      runProductTask<A>(
          plan, task, g, workers + worker * plan.workerFloats(),
          [&](int64_t column, int64_t count, int nv, int64_t step, int64_t length, bool, uint32_t* to) {
            const int64_t k0 = step * A::kPerStep;
            packWeightsDown<A>(weights, column, count, nv, k0, std::min(length * A::kPerStep, weights.rows - k0), to);
          },
          [&](int64_t row, int64_t n, int64_t column, int64_t columns, int64_t stride, const float* c) {
            for (int64_t i = 0; i < n; i++)
              std::memcpy(dRows + (first + row + i) * weights.columns + column, c + i * stride, static_cast<size_t>(columns) * 4);
          });
    });
  }
};

/// dH: rows without a label are 0, a row that several labels read gets their sum in order.
inline void scatterRows(Context& context, const HeadInputs& in, const float* dRows, const Tensor& dH) {
  const int64_t columns = in.weights.columns;
  forBlocks(context, in.h.dims[0], 16, [&](int64_t begin, int64_t end) {
    alignas(64) float sum[kChunk];
    int64_t m = std::lower_bound(in.rows, in.rows + in.count, begin) - in.rows;
    for (int64_t row = begin; row < end; row++) {
      int64_t last = m;
      while (last < in.count && in.rows[last] == row) last++;
      for (int64_t c = 0; c < columns; c += kChunk) {
        const int64_t n = std::min(kChunk, columns - c);
        std::memset(sum, 0, static_cast<size_t>(n) * 4);
        for (int64_t i = m; i < last; i++)
          for (int64_t j = 0; j < n; j++) sum[j] += dRows[i * columns + c + j];
        storeElements(dH, row * columns + c, n, sum);
      }
      m = last;
    }
  });
}

}  // namespace espalier
