// LinearLogProb(h, W..., labels, lossRows) -> logps, entropy, lse of the labelled rows under the output head, its gradient,
// and both in one pass where the incoming gradient is known beforehand. Logits exist for one block of rows at a time
// (192, or 96 in fp32). Products are bf16 with fp32 sums on AVX512-BF16, fp32 elsewhere and in strict mode; log-sum-exp
// in fp32, by panels of the vocabulary that are joined in order, so bits do not depend on the threads.
#include "linear_log_prob.h"

#include <memory>
#include <new>
#include <type_traits>

namespace espalier {
namespace {

/// Per row and panel of the vocabulary: largest logit, sum of e^(z - largest), sum of z e^(z - largest).
struct Partial {
  float top, sum, weighted;
};

/// One block after another: statistics, and what the gradient of the block needs.
template <class A> class HeadPass {
 public:
  HeadPass(Context& context, const HeadOptions& o, const HeadInputs& in) : context_(context), o_(o), in_(in) {
    rows_ = std::min(kHeadRows<A>, std::max<int64_t>(1, in.count));
    vocab_ = in.weights.rows, columns_ = in.weights.columns, panels_ = panelsOf(vocab_);
    width_ = roundUp(vocab_, kPanelColumns);
    map_ = {o.scale, o.softcap, in.inverseTemperature};
  }

  /// Fills logps, entropy and lse; with dLogps also dH.
  const char* forward(float* logps, float* entropy, float* lse, const float* dLogps, const Tensor& dH) {
    const bool fused = dLogps != nullptr;
    if (!allocate(true, fused, fused)) return "LinearLogProb: out of memory";
    for (int64_t first = 0; first < in_.count; first += rows_) {
      HeadBlock<A> block = start(first);
      const ProductPlan plan(block.rows, vocab_, block.steps(), 0, context_.threads());
      block.logits(context_, plan, workers_, [&](int64_t row, int64_t n, int64_t column, int64_t count, int64_t stride, const float* c) {
        for (int64_t i = 0; i < n; i++) reducePanel(block, row + i, column, count, c + i * stride, fused);
      });
      context_.parallelFor(block.rows, [&](int64_t row) { joinPanels(block, row, logps, entropy, lse); });
      if (!fused) continue;
      packGradient(block, [&](int64_t row, int64_t column, int64_t count, float* g) {
        // g = dLogps (1[label] - p) scale / T, p = e^(z - top) e^(top - lse)
        const int64_t m = block.first + row, panel = column / kPanelColumns;
        const int32_t label = in_.labels[m];
        const float weight = label < 0 ? 0.f : dLogps[m] * o_.scale * in_.inverseTemperature;
        const float factor = -weight * std::exp(partials_[row * panels_ + panel].top - lse[m]);
        for (int64_t j = 0; j < count; j += kLanes) store(g + j, loadKept(row, column + j) * factor);
        if (label >= column && label < column + count) g[label - column] += weight;
      });
      finishGradient(block);
    }
    if (fused) scatterRows(context_, in_, dRows_, dH);
    return nullptr;
  }

  /// dH from known lse and entropy, for any incoming gradients.
  const char* backward(const float* lse, const float* entropy, const float* dLogps, const float* dEntropy, const float* dLse, const Tensor& dH) {
    if (!allocate(false, true, true)) return "LinearLogProbGrad: out of memory";
    for (int64_t first = 0; first < in_.count; first += rows_) {
      HeadBlock<A> block = start(first);
      const ProductPlan plan(block.rows, vocab_, block.steps(), 0, context_.threads());
      block.logits(context_, plan, workers_, [&](int64_t row, int64_t n, int64_t column, int64_t count, int64_t stride, const float* c) {
        for (int64_t i = 0; i < n; i++) {
          // g = [dLogps (1[label] - p) + dLse p - dEntropy p (z - (lse - entropy))] dz/dx
          const int64_t m = block.first + row + i;
          const int32_t label = in_.labels[m];
          const float dl = label < 0 ? 0.f : dLogps[m], de = dEntropy ? dEntropy[m] : 0.f, ds = dLse ? dLse[m] : 0.f;
          const float mean = lse[m] - (de != 0.f ? entropy[m] : 0.f);
          for (int64_t j = 0; j < count; j += kLanes) {
            const Vec z = map_(load(c + i * stride + j)), p = exp(z - lse[m]);
            Vec g = p * (ds - dl - de * (z - mean)) * map_.slope(z);
            if (label >= column + j && label < column + j + kLanes) {
              const int lane = static_cast<int>(label - column - j);
              g[lane] += dl * map_.slope(z)[lane];
            }
            keep(row + i, column + j, count - j, g);
          }
        }
      });
      packGradient(block, [&](int64_t row, int64_t column, int64_t count, float* g) {
        for (int64_t j = 0; j < count; j += kLanes) store(g + j, loadKept(row, column + j));
      });
      finishGradient(block);
    }
    scatterRows(context_, in_, dRows_, dH);
    return nullptr;
  }

 private:
  using Kept = typename std::conditional<A::kPerStep == 2, bf16, float>::type;

  bool allocate(bool statistics, bool keepsLogits, bool gradient) {
    const int64_t threads = std::max(1, context_.threads());
    const ProductPlan down(rows_, columns_, stepsOf<A>(vocab_), 0, context_.threads());
    const ProductPlan along(rows_, vocab_, stepsOf<A>(columns_), 0, context_.threads());
    // Blocks shorter than rows_ may be cut otherwise, never larger.
    const int64_t worker = std::max(along.workerFloats(), down.workerFloats()) + kPanelColumns * kTileRows * tilesOf(rows_);
    int64_t used = 0;
    const auto carve = [&](int64_t floats) {
      const int64_t at = used;
      used += roundUp(floats, 16);
      return at;
    };
    const int64_t packedAt = carve(roundUp(rows_, kGroupRows) * stepsOf<A>(columns_)), gatheredAt = carve(rows_ * columns_);
    const int64_t workersAt = carve(worker * threads), partialsAt = carve(statistics ? rows_ * panels_ * 3 : 0);
    const int64_t labelAt = carve(rows_);
    const int64_t keptAt = carve(keepsLogits ? rows_ * width_ * static_cast<int64_t>(sizeof(Kept)) / 4 : 0);
    const int64_t gAt = carve(gradient ? roundUp(rows_, kGroupRows) * stepsOf<A>(width_) : 0);
    const int64_t dRowsAt = carve(gradient ? in_.count * columns_ : 0);
    auto* scratch = static_cast<float*>(context_.scratch(static_cast<size_t>(used) * 4));
    if (!scratch) return false;
    packed_ = reinterpret_cast<uint32_t*>(scratch + packedAt), gathered_ = scratch + gatheredAt, workers_ = scratch + workersAt;
    partials_ = reinterpret_cast<Partial*>(scratch + partialsAt), labelLogits_ = scratch + labelAt;
    kept_ = reinterpret_cast<Kept*>(scratch + keptAt), g_ = reinterpret_cast<uint32_t*>(scratch + gAt), dRows_ = scratch + dRowsAt;
    return true;
  }

  HeadBlock<A> start(int64_t first) {
    HeadBlock<A> block{&in_, first, std::min(rows_, in_.count - first), packed_};
    block.pack(context_, gathered_);
    return block;
  }

  void keep(int64_t row, int64_t column, int64_t n, Vec v) { storeUpTo(kept_ + row * width_ + column, n, v); }
  Vec loadKept(int64_t row, int64_t column) const { return load(kept_ + row * width_ + column); }

  void reducePanel(const HeadBlock<A>& block, int64_t row, int64_t column, int64_t count, const float* c, bool keeps) {
    alignas(64) float z[kPanelColumns];
    Vec highest = set1(-INFINITY);
    for (int64_t j = 0; j < count; j += kLanes) {
      const Vec v = map_(load(c + j));
      store(z + j, v);
      if (count - j >= kLanes) highest = max(highest, v);
      else
        for (int64_t l = 0; l < count - j; l++) highest[l] = std::max(highest[l], v[l]);
    }
    const float top = reduceMax(highest);
    Vec sum = zero(), weighted = zero();
    for (int64_t j = 0; j < count; j += kLanes) {
      const Vec v = loadUpTo(z + j, count - j);
      Vec e = exp(v - top);
      for (int64_t l = count - j; l < kLanes; l++) e[l] = 0.f;
      sum = sum + e;
      weighted = fma(v, e, weighted);
      if (keeps) keep(row, column + j, count - j, e);
    }
    partials_[row * panels_ + column / kPanelColumns] = {top, reduceAdd(sum), reduceAdd(weighted)};
    const int32_t label = in_.labels[block.first + row];
    if (label >= column && label < column + count) labelLogits_[row] = z[label - column];
  }

  void joinPanels(const HeadBlock<A>& block, int64_t row, float* logps, float* entropy, float* lse) const {
    const Partial* parts = partials_ + row * panels_;
    float top = -INFINITY;
    for (int64_t p = 0; p < panels_; p++) top = std::max(top, parts[p].top);
    double sum = 0, weighted = 0;
    for (int64_t p = 0; p < panels_; p++) {
      const double factor = std::exp(static_cast<double>(parts[p].top) - top);
      sum += parts[p].sum * factor;
      weighted += parts[p].weighted * factor;
    }
    const int64_t m = block.first + row;
    const double total = top + std::log(sum);
    lse[m] = static_cast<float>(total);
    if (entropy) entropy[m] = static_cast<float>(total - weighted / sum);
    if (logps) logps[m] = in_.labels[m] < 0 ? 0.f : static_cast<float>(labelLogits_[row] - total);
  }

  /// Packs the block's gradient of the logits as operand A; fill(row, column, count, out) gives a panel of one row.
  template <typename Fill> void packGradient(const HeadBlock<A>& block, Fill&& fill) {
    constexpr int64_t kSpan = 8 * kPanelColumns;
    const int64_t spans = (vocab_ + kSpan - 1) / kSpan, groups = (block.rows + kGroupRows - 1) / kGroupRows;
    const int64_t tileStride = stepsOf<A>(vocab_) * kTileRows;
    context_.parallelFor(groups * spans, [&](int64_t task) {
      const int64_t row = task / spans * kGroupRows, column = task % spans * kSpan, count = std::min(kSpan, vocab_ - column);
      const int64_t present = std::min<int64_t>(kGroupRows, block.rows - row);
      alignas(64) float g[kGroupRows * kSpan];
      for (int64_t i = 0; i < present; i++)
        for (int64_t c = 0; c < count; c += kPanelColumns)
          fill(row + i, column + c, std::min<int64_t>(kPanelColumns, count - c), g + i * kSpan + c);
      packRows<A>(g, kSpan, present, count, g_ + row * stepsOf<A>(vocab_) + column / A::kPerStep * kTileRows, tileStride);
    });
  }

  void finishGradient(const HeadBlock<A>& block) {
    const ProductPlan plan(block.rows, columns_, stepsOf<A>(vocab_), 0, context_.threads());
    block.gradient(context_, plan, g_, workers_, dRows_);
  }

  Context& context_;
  const HeadOptions& o_;
  const HeadInputs& in_;
  int64_t rows_, vocab_, columns_, panels_, width_;
  LogitMap map_;
  uint32_t *packed_ = nullptr, *g_ = nullptr;
  float *gathered_ = nullptr, *workers_ = nullptr, *labelLogits_ = nullptr, *dRows_ = nullptr;
  Partial* partials_ = nullptr;
  Kept* kept_ = nullptr;
};

class LinearLogProb : public Kernel {
 public:
  explicit LinearLogProb(const Attributes& a) : o_(a) {}
  const char* run(Context& context) noexcept override {
    HeadInputs in;
    if (const char* problem = readHead(context, o_, 7, in)) return problem;
    const Tensor logps = context.output(0, {in.count}), entropy = context.output(1, {in.count});
    Tensor lse = context.output(2, {in.count});
    if (!logps) return "LinearLogProb: no output";
    std::unique_ptr<float[]> own;
    if (!lse) {
      own.reset(new (std::nothrow) float[static_cast<size_t>(in.count) + 1]);
      if (!own) return "LinearLogProb: out of memory";
      lse.data = own.get();
    }
    const auto pass = [&](auto arithmetic) {
      using A = decltype(arithmetic);
      return HeadPass<A>(context, o_, in).forward(logps.as<float>(), entropy.as<float>(), lse.as<float>(), nullptr, {});
    };
    return o_.strict ? pass(Fp32{}) : pass(Fast{});
  }

 private:
  HeadOptions o_;
};

class LinearLogProbGrad : public Kernel {
 public:
  explicit LinearLogProbGrad(const Attributes& a) : o_(a) {}
  const char* run(Context& context) noexcept override {
    HeadInputs in;
    if (const char* problem = readHead(context, o_, 12, in)) return problem;
    const Tensor given[5] = {context.input(7), context.input(8), context.input(9), context.input(10), context.input(11)};
    for (int i = 0; i < 5; i++)
      if ((i < 3 && !given[i]) || (given[i] && (given[i].dtype != DType::f32 || given[i].size() != in.count)))
        return "LinearLogProbGrad: lse, entropy and incoming gradients must be float [M]";
    const Tensor dH = context.output(0, in.h.dims, 2);
    if (!dH) return "LinearLogProbGrad: no output";
    const auto pass = [&](auto arithmetic) {
      using A = decltype(arithmetic);
      return HeadPass<A>(context, o_, in).backward(given[0].as<const float>(), given[1].as<const float>(), given[2].as<const float>(),
                                                   given[3].as<const float>(), given[4].as<const float>(), dH);
    };
    return o_.strict ? pass(Fp32{}) : pass(Fast{});
  }

 private:
  HeadOptions o_;
};

class LinearLogProbFused : public Kernel {
 public:
  explicit LinearLogProbFused(const Attributes& a) : o_(a) {}
  const char* run(Context& context) noexcept override {
    HeadInputs in;
    if (const char* problem = readHead(context, o_, 8, in)) return problem;
    const Tensor dLogps = context.input(7);
    if (!isF32(dLogps) || dLogps.size() != in.count) return "LinearLogProbFused: dLogps must be float [M]";
    const Tensor logps = context.output(0, {in.count}), entropy = context.output(1, {in.count});
    Tensor lse = context.output(2, {in.count});
    const Tensor dH = context.output(3, in.h.dims, 2);
    if (!dH) return "LinearLogProbFused: no output for dH";
    std::unique_ptr<float[]> own(new (std::nothrow) float[2 * static_cast<size_t>(in.count) + 2]);
    if (!own) return "LinearLogProbFused: out of memory";
    if (!lse) lse.data = own.get();
    float* scores = entropy ? entropy.as<float>() : own.get() + in.count + 1;
    const auto pass = [&](auto arithmetic) -> const char* {
      using A = decltype(arithmetic);
      HeadPass<A> head(context, o_, in);
      return head.forward(logps.as<float>(), scores, lse.as<float>(), dLogps.as<const float>(), dH);
    };
    if (o_.softcap > 0) return "LinearLogProbFused: a softcap needs the logits in the gradient; use LinearLogProbGrad";
    return o_.strict ? pass(Fp32{}) : pass(Fast{});
  }

 private:
  HeadOptions o_;
};

// Only h and W0 are always there: the others follow absent parts of W.
const KernelDef defs[] = {
    {"LinearLogProb", 2, 8, 1, 3, {DType::f32, DType::f32, DType::f32}, [](const Attributes& a, DType) -> Kernel* { return new LinearLogProb(a); }},
    {"LinearLogProbGrad", 2, 13, 1, 1, {DType::none}, [](const Attributes& a, DType) -> Kernel* { return new LinearLogProbGrad(a); }},
    {"LinearLogProbFused", 2, 9, 0, 4, {DType::f32, DType::f32, DType::f32, DType::none},
     [](const Attributes& a, DType) -> Kernel* { return new LinearLogProbFused(a); }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
