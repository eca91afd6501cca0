// The head's loop over the vocabulary, shared by LinearLogProb, its gradient and their fusion (linear_log_prob.cc).
// For a tile of up to kHeadRows rows: for each chunk of the vocabulary, panels of W are dequantized once, both ways
// round, while the chunk before is multiplied; then per block of rows the chunk's logits S = h W^T are computed, turned
// into weights E of the chunk's words, and O += E W. A fusion carries a running maximum as flash attention does
// (arXiv 2205.14135 with W for both keys and values), so no logits outlive their chunk. Sums run along the chunks in
// fp32 per element, in one order: bits depend on a row and W alone, not on threads or on the other rows.
#pragma once
#include "activation.h"
#include "pack_weights.h"
#include "quant_linear.h"

namespace espalier {

enum class HeadMode { forward, gradient, fused };

constexpr int64_t kHeadRows = 1024 / kGroupRows * kGroupRows;
constexpr int64_t kHeadBlock = (64 + kGroupRows - 1) / kGroupRows * kGroupRows;  // rows of one task
constexpr int64_t kChunkPanels = 480 / kPanelColumns;
constexpr int64_t kChunkColumns = kChunkPanels * kPanelColumns;
static_assert(kChunkColumns % 2 == 0, "pairs of words must not cross chunks");
/// Steps of a panel that stay in the L1 cache while the tiles of a block pass over it.
constexpr int64_t kHeadSteps = kLanes == 16 ? 144 : 288;
constexpr float kAbsent = -1e15f;  // logit of a column past the vocabulary: its square is finite, so that 0 times that is 0

struct HeadInputs {
  Weights weights;
  Tensor h;
  int64_t rows = 0;             // M
  const int32_t* labels = nullptr;
  const int32_t* lossRows = nullptr;
  const float* lse = nullptr;       // gradient
  const float* entropy = nullptr;   // gradient
  const float* dLogps = nullptr;    // gradient, fused
  const float* dEntropy = nullptr;  // gradient
  const float* dLse = nullptr;      // gradient
  float scale = 1, softcap = 0, inverseTemperature = 1;
  float* logps = nullptr;       // forward, fused: may be null
  float* entropyOut = nullptr;
  float* lseOut = nullptr;
  Tensor dH;
};

/// What is known of one row so far.
struct HeadRow {
  float top;               // running maximum of the logits
  float labelLogit, labelSlope;
  double sum, moment;      // of e^(x - top) and (x - top) e^(x - top)
};

/// c[tile][kTileRows][nv * kLanes] (= or +=) tiles . panel
template <class A>
inline void multiplyBlock(const uint32_t* a, int64_t tileStride, int64_t tiles, const uint32_t* panel, int nv, int64_t steps, float* c,
                          bool accumulate) {
  const int64_t width = static_cast<int64_t>(nv) * kLanes;
  for (int64_t s = 0; s < steps; s += kHeadSteps)
    for (int64_t tile = 0; tile < tiles; tile++)
      multiplyTile<A>(a + tile * tileStride + s * kTileRows, panel + s * width, nv, std::min(kHeadSteps, steps - s), c + tile * kTileRows * width,
                      accumulate || s > 0);
}

template <class A, HeadMode mode> class HeadLoop {
 public:
  HeadLoop(Context& context, const HeadInputs& in)
      : context_(context), in_(in), columns_(in.weights.columns), vocabulary_(in.weights.rows), steps_(stepsOf<A>(columns_)),
        hasGradient_(mode != HeadMode::forward && in.dH) {}

  const char* run() noexcept {
    const int64_t rows = std::min(in_.rows, kHeadRows), tiles = tilesOf(rows + kGroupRows - 1);
    const int64_t workers = std::max(1, context_.threads());
    Carver carver;
    const int64_t packedAt = carver.floats(tiles * steps_ * kTileRows);
    const int64_t sumsAt = carver.floats(hasGradient_ ? tiles * kTileRows * panelsOf(columns_) * kPanelColumns : 0);
    const int64_t alongAt = carver.floats(2 * kChunkPanels * alongFloats());
    const int64_t downAt = carver.floats(hasGradient_ ? 2 * panelsOf(columns_) * downFloats() : 0);
    const int64_t rowAt = carver.floats(rows * static_cast<int64_t>(sizeof(HeadRow) / sizeof(float)));
    const int64_t workerFloats = roundUp(std::max(kHeadBlock * kChunkColumns * 2, kGroupRows * columns_), 16);
    const int64_t workersAt = carver.floats(workers * workerFloats);
    auto* scratch = static_cast<float*>(context_.scratch(carver.bytes()));
    if (!scratch) return "LinearLogProb: out of memory";
    packed_ = reinterpret_cast<uint32_t*>(scratch + packedAt);
    sums_ = scratch + sumsAt;
    along_ = reinterpret_cast<uint32_t*>(scratch + alongAt);
    down_ = reinterpret_cast<uint32_t*>(scratch + downAt);
    state_ = reinterpret_cast<HeadRow*>(scratch + rowAt);
    const auto workerAt = [&](int64_t worker) { return scratch + workersAt + worker * workerFloats; };

    if (hasGradient_) {
      const int64_t bytes = in_.dH.size() * (in_.dH.dtype == DType::f32 ? 4 : 2);
      forBlocks(context_, bytes, 1 << 18, [&](int64_t begin, int64_t end) { memset(in_.dH.as<char>() + begin, 0, static_cast<size_t>(end - begin)); });
    }
    const int64_t chunks = (vocabulary_ + kChunkColumns - 1) / kChunkColumns;
    for (row0_ = 0; row0_ < in_.rows; row0_ += kHeadRows) {
      rows_ = std::min(kHeadRows, in_.rows - row0_);
      const int64_t groups = (rows_ + kGroupRows - 1) / kGroupRows, blocks = (rows_ + kHeadBlock - 1) / kHeadBlock;
      // The first chunk is packed beside the rows, every other beside the products of the chunk before.
      forDynamic(context_, groups + packTasks(0), [&](int64_t worker, int64_t task) {
        if (task < groups) packGroup(task, workerAt(worker));
        else packWeights(0, task - groups);
      });
      for (int64_t chunk = 0; chunk < chunks; chunk++)
        forDynamic(context_, blocks + (chunk + 1 < chunks ? packTasks(chunk + 1) : 0), [&](int64_t worker, int64_t task) {
          if (task < blocks) multiply(chunk, task, workerAt(worker));
          else packWeights(chunk + 1, task - blocks);
        });
      context_.parallelFor(blocks, [&](int64_t block) {
        for (int64_t row = block * kHeadBlock; row < std::min(rows_, (block + 1) * kHeadBlock); row++) finish(row);
      });
    }
    return nullptr;
  }

 private:
  int64_t alongFloats() const { return steps_ * kPanelColumns; }
  int64_t downFloats() const { return stepsOf<A>(kChunkColumns) * kPanelColumns; }
  int64_t chunkColumns(int64_t chunk) const { return std::min(kChunkColumns, vocabulary_ - chunk * kChunkColumns); }
  int64_t packTasks(int64_t chunk) const { return panelsOf(chunkColumns(chunk)) + (hasGradient_ ? panelsOf(columns_) : 0); }
  uint32_t* alongPanel(int64_t chunk, int64_t p) const { return along_ + (chunk % 2 * kChunkPanels + p) * alongFloats(); }
  uint32_t* downPanel(int64_t chunk, int64_t p) const { return down_ + (chunk % 2 * panelsOf(columns_) + p) * downFloats(); }
  /// Panel p of O: [tile][kTileRows][width of p]
  float* sumsOf(int64_t p, int64_t tile) const {
    const int64_t tiles = tilesOf(rows_ + kGroupRows - 1), width = static_cast<int64_t>(vectorsOf(columns_ - p * kPanelColumns)) * kLanes;
    return sums_ + (p * tiles * kPanelColumns + tile * width) * kTileRows;
  }

  void packGroup(int64_t group, float* buffer) {
    const int64_t first = group * kGroupRows, present = std::min<int64_t>(kGroupRows, rows_ - first);
    for (int64_t i = 0; i < present; i++) {
      loadElements(in_.h, in_.lossRows[row0_ + first + i] * columns_, columns_, buffer + i * columns_);
      HeadRow& row = state_[first + i];
      row = {-INFINITY, 0, 0, 0, 0};
    }
    packRows<A>(buffer, columns_, present, columns_, packed_ + group * kTilesPerGroup * steps_ * kTileRows, steps_ * kTileRows);
  }

  void packWeights(int64_t chunk, int64_t task) {
    const int64_t word = chunk * kChunkColumns, count = chunkColumns(chunk), panels = panelsOf(count);
    if (task < panels) {
      const int64_t columns = std::min<int64_t>(kPanelColumns, count - task * kPanelColumns);
      packWeightsAlong<A>(in_.weights, word + task * kPanelColumns, columns, vectorsOf(columns), 0, columns_, alongPanel(chunk, task));
    } else {
      const int64_t p = task - panels, columns = std::min<int64_t>(kPanelColumns, columns_ - p * kPanelColumns);
      packWeightsDown<A>(in_.weights, p * kPanelColumns, columns, vectorsOf(columns), word, count, downPanel(chunk, p));
    }
  }

  void multiply(int64_t chunk, int64_t block, float* buffer) {
    const int64_t first = block * kHeadBlock, present = std::min(kHeadBlock, rows_ - first);
    const int64_t tiles = tilesOf(present), firstTile = first / kTileRows, tileStride = steps_ * kTileRows;
    const int64_t count = chunkColumns(chunk), panels = panelsOf(count), blockTiles = kHeadBlock / kTileRows;
    float* logits = buffer;  // [panel][tile][kTileRows][width of the panel]
    for (int64_t p = 0; p < panels; p++)
      multiplyBlock<A>(packed_ + firstTile * tileStride, tileStride, tiles, alongPanel(chunk, p), vectorsOf(count - p * kPanelColumns), steps_,
                       logits + p * blockTiles * kTileRows * kPanelColumns, false);
    for (int64_t row = 0; row < present; row++) weigh(chunk, first + row, logits, row);
    if (!hasGradient_) return;
    // E as packed rows: tiles of [steps of the chunk][kTileRows].
    auto* weights = reinterpret_cast<uint32_t*>(buffer + kHeadBlock * kChunkColumns);
    const int64_t weightStride = stepsOf<A>(kChunkColumns) * kTileRows;
    for (int64_t p = 0; p < panels; p++) {
      const int64_t width = static_cast<int64_t>(vectorsOf(count - p * kPanelColumns)) * kLanes;
      for (int64_t tile = 0; tile < tiles; tile += kTilesPerGroup)
        packRows<A>(logits + (p * blockTiles * kPanelColumns + tile * width) * kTileRows, width, present - tile * kTileRows, width,
                    weights + tile * weightStride + p * stepsOf<A>(kPanelColumns) * kTileRows, weightStride);
    }
    for (int64_t p = 0; p < panelsOf(columns_); p++)
      multiplyBlock<A>(weights, weightStride, tiles, downPanel(chunk, p), vectorsOf(columns_ - p * kPanelColumns), stepsOf<A>(count),
                       sumsOf(p, firstTile), chunk > 0);
  }

  /// Turns the chunk's products of one row into logits, takes them into the row's statistics and leaves the row of E.
  void weigh(int64_t chunk, int64_t row, float* logits, int64_t rowInBlock) {
    const int64_t count = chunkColumns(chunk), panels = panelsOf(count), blockTiles = kHeadBlock / kTileRows;
    const int64_t tile = rowInBlock / kTileRows, inTile = rowInBlock % kTileRows;
    const float scale = in_.softcap > 0 ? in_.scale : in_.scale * in_.inverseTemperature;
    const auto segment = [&](int64_t p, int64_t& width) {
      width = static_cast<int64_t>(vectorsOf(count - p * kPanelColumns)) * kLanes;
      return logits + p * blockTiles * kTileRows * kPanelColumns + (tile * kTileRows + inTile) * width;
    };
    HeadRow& state = state_[row];
    Vec top = set1(kAbsent);
    for (int64_t p = 0; p < panels; p++) {
      int64_t width;
      float* x = segment(p, width);
      for (int64_t j = 0; j < width; j += kLanes) {
        Vec v = load(x + j) * scale;
        if (in_.softcap > 0) v = in_.softcap * tanh(v / in_.softcap) * in_.inverseTemperature;
        store(x + j, v);
      }
      for (int64_t j = count - p * kPanelColumns; j < width; j++) x[j] = kAbsent;
      for (int64_t j = 0; j < width; j += kLanes) top = max(top, load(x + j));
    }
    const int64_t label = in_.labels[row0_ + row], inChunk = label - chunk * kChunkColumns;
    float* atLabel = nullptr;
    if (label >= 0 && inChunk >= 0 && inChunk < count) {
      int64_t width;
      atLabel = segment(inChunk / kPanelColumns, width) + inChunk % kPanelColumns;
      state.labelLogit = *atLabel;
      state.labelSlope = slope(*atLabel);
    }
    if constexpr (mode == HeadMode::gradient) {
      // dx = p (-dLogp + dLse - dEntropy (x - lse + entropy)), and + dLogp at the label
      const int64_t m = row0_ + row;
      const float lse = in_.lse[m], dLogp = label >= 0 ? in_.dLogps[m] : 0.f, dEntropy = in_.dEntropy ? in_.dEntropy[m] : 0.f;
      const Vec constant = set1((in_.dLse ? in_.dLse[m] : 0.f) - dLogp + (dEntropy != 0 ? dEntropy * (lse - in_.entropy[m]) : 0.f));
      for (int64_t p = 0; p < panels; p++) {
        int64_t width;
        float* x = segment(p, width);
        for (int64_t j = 0; j < width; j += kLanes) {
          const Vec v = load(x + j);
          store(x + j, exp(v - lse) * fma(v, set1(-dEntropy), constant) * slope(v));
        }
      }
      if (atLabel) {
        const float e = -std::expm1(state.labelLogit - lse);  // 1 - p
        const float rest = constant[0] + dLogp - dEntropy * state.labelLogit;
        *atLabel = (dLogp * e + (1.f - e) * rest) * state.labelSlope;
      }
    } else {
      const float chunkTop = reduceMax(top);
      if (chunkTop > state.top) {
        const double shift = static_cast<double>(state.top) - static_cast<double>(chunkTop);
        const bool isFirst = chunk == 0;
        const double factor = isFirst ? 0.0 : std::exp(shift);
        state.moment = isFirst ? 0.0 : factor * (state.moment + state.sum * shift);
        state.sum *= factor;
        state.top = chunkTop;
        if (hasGradient_ && !isFirst) rescale(row, static_cast<float>(factor));
      }
      Vec sum = zero(), moment = zero();
      for (int64_t p = 0; p < panels; p++) {
        int64_t width;
        float* x = segment(p, width);
        for (int64_t j = 0; j < width; j += kLanes) {
          const Vec v = load(x + j), d = v - state.top, e = exp(d);
          sum = sum + e;
          moment = fma(e, d, moment);
          if (mode == HeadMode::fused) store(x + j, e * slope(v));
        }
      }
      state.sum += static_cast<double>(reduceAdd(sum));
      state.moment += static_cast<double>(reduceAdd(moment));
      // The label's own share is added at the end in fp32: 1 - p would drown in the rounding of E.
      if (mode == HeadMode::fused && atLabel) *atLabel = 0;
    }
  }

  /// d(capped logit) / d(logit) of x = softcap * tanh(.) / temperature
  template <typename T> T slope(T x) const {
    if (!(in_.softcap > 0)) return x * 0.f + 1.f;
    const T t = x * (1.f / (in_.inverseTemperature * in_.softcap));
    return 1.f - t * t;
  }

  void rescale(int64_t row, float factor) {
    for (int64_t p = 0; p < panelsOf(columns_); p++) {
      const int64_t width = static_cast<int64_t>(vectorsOf(columns_ - p * kPanelColumns)) * kLanes;
      float* o = sumsOf(p, row / kTileRows) + row % kTileRows * width;
      for (int64_t j = 0; j < width; j += kLanes) store(o + j, load(o + j) * factor);
    }
  }

  void finish(int64_t row) {
    const HeadRow& state = state_[row];
    const int64_t m = row0_ + row, label = in_.labels[m];
    float own = 0, factor = in_.scale * in_.inverseTemperature;
    if constexpr (mode != HeadMode::gradient) {
      const double logSum = std::log(state.sum), lse = static_cast<double>(state.top) + logSum;
      const double logp = label >= 0 ? static_cast<double>(state.labelLogit) - lse : 0.0;
      if (in_.logps) in_.logps[m] = static_cast<float>(logp);
      if (in_.entropyOut) in_.entropyOut[m] = static_cast<float>(logSum - state.moment / state.sum);
      if (in_.lseOut) in_.lseOut[m] = static_cast<float>(lse);
      if (!hasGradient_) return;
      // dlogit = dLogp (1[label] - p): `own` for the label itself, -dLogp / sum for O, which leaves it out
      const float dLogp = label >= 0 ? in_.dLogps[m] * factor : 0.f;
      own = -static_cast<float>(std::expm1(logp)) * dLogp * state.labelSlope;
      factor = static_cast<float>(-static_cast<double>(dLogp) / state.sum);
    }
    alignas(64) float w[kPanelColumns], out[kPanelColumns];
    for (int64_t p = 0; p < panelsOf(columns_); p++) {
      const int64_t column = p * kPanelColumns, count = std::min<int64_t>(kPanelColumns, columns_ - column);
      const int64_t width = static_cast<int64_t>(vectorsOf(count)) * kLanes;
      const float* o = sumsOf(p, row / kTileRows) + row % kTileRows * width;
      if (own != 0) dequantizeRow(in_.weights, label, column, count, w);
      for (int64_t j = 0; j < width; j += kLanes) {
        const Vec v = load(o + j) * factor;
        store(out + j, own != 0 ? fma(load(w + j), set1(own), v) : v);
      }
      storeElements(in_.dH, in_.lossRows[m] * columns_ + column, count, out);
    }
  }

  static Vec tanh(Vec x) {
    // 1 - 2 / (e^2x + 1), by a series where that cancels
    const Vec big = 1.f - 2.f / (exp(x * 2.f) + 1.f), y = x * x;
    Vec small = set1(-5.70498872745e-3f);  // Cephes tanhf
    small = fma(small, y, set1(2.06390887954e-2f));
    small = fma(small, y, set1(-5.37397155531e-2f));
    small = fma(small, y, set1(1.33314422036e-1f));
    small = fma(small, y, set1(-3.33332819422e-1f));
    return select(abs(x) < set1(0.625f), fma(small * y, x, x), big);
  }

  Context& context_;
  const HeadInputs& in_;
  const int64_t columns_, vocabulary_, steps_;
  const bool hasGradient_;
  int64_t row0_ = 0, rows_ = 0;
  uint32_t *packed_ = nullptr, *along_ = nullptr, *down_ = nullptr;
  float* sums_ = nullptr;
  HeadRow* state_ = nullptr;
};

}  // namespace espalier
