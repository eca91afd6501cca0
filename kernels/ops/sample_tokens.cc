// SampleTokens: the next token of every row, its log-probability under the raw logits, and the likeliest alternatives. The
// order and the draw are those of the op's record (sample-tokens.ts): penalties, bias, mask; temperature, top-k, top-p,
// min-p as one threshold on logit / T; then the largest logit / T + Gumbel noise, keyed by (seed, position, token).
#include <limits>

#include "activation.h"
#include "counter_random.h"
#include "exponential.h"

namespace espalier {
namespace {

constexpr int64_t kColumns = 8, kMaxTop = 20, kMaskBits = 32;
constexpr float kDisallowed = -1e30f;

struct Edits {
  const int32_t *rows = nullptr, *tokens = nullptr;
  const float *counts = nullptr, *bias = nullptr;
  int64_t count = 0;
};

ESPALIER_INLINE UVec laneNumbers() {
  UVec v;
  for (int l = 0; l < kLanes; l++) v[l] = static_cast<uint32_t>(l);
  return v;
}

/// The first of the largest of n values; value(i, left) gives kLanes of them from i on.
template <typename Value> inline int64_t firstLargest(int64_t n, Value&& value) {
  Vec best = set1(-std::numeric_limits<float>::infinity());
  IVec where = set1i(0), at = reinterpret_cast<IVec>(laneNumbers());
  const IVec end = set1i(static_cast<int32_t>(n));
  for (int64_t i = 0; i < n; i += kLanes, at += kLanes) {
    const Vec v = value(i, n - i);
    const IVec higher = (v > best) & (at < end);
    best = select(higher, v, best);
    where = reinterpret_cast<IVec>(select(higher, reinterpret_cast<Vec>(at), reinterpret_cast<Vec>(where)));
  }
  int64_t first = where[0];
  float top = best[0];
  for (int l = 1; l < kLanes; l++)
    if (best[l] > top || (best[l] == top && where[l] < first)) top = best[l], first = where[l];
  return first;
}

/// max and log of the sum of exponentials of n logits.
inline void logSumExp(const float* x, int64_t n, float& top, float& lse) {
  Vec best = set1(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec v = i + kLanes <= n ? load(x + i) : load(x + std::max<int64_t>(0, n - kLanes));  // an overlap changes no maximum
    best = larger(best, v);
  }
  top = reduceMax(best);
  double sum = 0;
  const Vec shift = set1(-top);
  for (int64_t i = 0; i < n; i += 1024) {
    Vec part = zero();
    for (int64_t j = i; j < std::min(n, i + 1024); j += kLanes) {
      const Vec e = boundedExp(loadUpTo(x + j, n - j) + shift);
      if (n - j >= kLanes) part = part + e;
      else
        for (int64_t l = 0; l < n - j; l++) sum += e[l];
    }
    sum += reduceAdd(part);
  }
  lse = top + static_cast<float>(std::log(sum));
}

/// The smallest logit / T that top-k, top-p and min-p keep. `sorted` has room for n floats.
inline float keptThreshold(const float* z, int64_t n, float top, float topK, float topP, float minP, float* sorted) {
  float threshold = minP > 0 ? top + std::log(minP) : -std::numeric_limits<float>::infinity();
  const int64_t k = topK > 0 && topK < static_cast<float>(n) ? static_cast<int64_t>(topK) : n;
  const bool hasTopP = topP < 1;
  if (k == n && !hasTopP) return threshold;
  double total = 0;
  if (hasTopP && k == n)
    for (int64_t i = 0; i < n; i++) total += std::exp(static_cast<double>(z[i] - top));
  // Candidates: those near the top, further down until they suffice.
  int64_t count = 0;
  for (float width = 8;; width *= 4) {
    count = 0;
    double mass = 0;
    for (int64_t i = 0; i < n; i++)
      if (z[i] >= top - width) {
        sorted[count++] = z[i];
        if (total > 0) mass += std::exp(static_cast<double>(z[i] - top));
      }
    if (count == n || (k < n && count >= k) || (k == n && mass >= topP * total) || width > 1e30f) break;
  }
  std::sort(sorted, sorted + count, [](float a, float b) { return a > b; });
  if (k < n) {
    const float kth = sorted[std::min(k, count) - 1];
    threshold = std::max(threshold, kth);
    int64_t left = std::min(k, count);
    while (left < count && sorted[left] >= kth) left++;
    count = left;
    for (int64_t i = 0; hasTopP && i < count; i++) total += std::exp(static_cast<double>(sorted[i] - top));
  }
  if (!hasTopP) return threshold;
  double before = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < count; i++) {
    if (i > 0 && before >= topP * total) break;
    last = i;
    before += std::exp(static_cast<double>(sorted[i] - top));
  }
  return std::max(threshold, sorted[last]);
}

/// -log(-log(1 - w)), w from the hash of a token.
ESPALIER_INLINE Vec gumbel(uint32_t key, UVec token) {
  const Vec w = (__builtin_convertvector(hashStep(key, token), Vec) + 0.5f) * 2.3283064365386963e-10f;  // 2^-32
  const Vec series = w * fma(w, fma(w, set1(1.f / 3.f), set1(0.5f)), set1(1.f));
  const Vec far = -naturalLog(larger(set1(1e-37f), 1.f - w));
  return -naturalLog(select(w < set1(1e-3f), series, far));
}

class SampleTokens : public Kernel {
 public:
  const char* run(Context& context) noexcept override {
    const Tensor logits = context.input(0), sampling = context.input(1), seeds = context.input(2), positions = context.input(3),
                 editRows = context.input(4), editTokens = context.input(5), editCounts = context.input(6), editBias = context.input(7),
                 maskRows = context.input(8), allowed = context.input(9);
    if (!isF32(logits) || logits.rank != 2 || logits.dims[1] < kMaxTop) return "SampleTokens: logits must be float [R, V], V at least 20";
    const int64_t rows = logits.dims[0], vocab = logits.dims[1], words = (vocab + kMaskBits - 1) / kMaskBits;
    if (!isF32(sampling) || sampling.size() != rows * kColumns) return "SampleTokens: sampling must be float [R, 8]";
    if (!seeds || seeds.dtype != DType::i64 || seeds.size() != rows) return "SampleTokens: seeds must be int64 [R]";
    if (!positions || positions.dtype != DType::i32 || positions.size() != rows) return "SampleTokens: positions must be int32 [R]";
    if (!editRows || !editTokens || editRows.dtype != DType::i32 || editTokens.dtype != DType::i32 || !isF32(editCounts) || !isF32(editBias) ||
        editTokens.size() != editRows.size() || editBias.size() != editRows.size() || editCounts.size() != 2 * editRows.size())
      return "SampleTokens: edits must be int32 [E], int32 [E], float [E, 2] and float [E]";
    if (!maskRows || maskRows.dtype != DType::i32 || maskRows.size() != rows || !allowed || allowed.dtype != DType::i32 || allowed.rank != 2 ||
        allowed.dims[1] != words)
      return "SampleTokens: maskRows must be int32 [R] and allowed int32 [C, V/32]";
    const Edits edits{editRows.as<const int32_t>(), editTokens.as<const int32_t>(), editCounts.as<const float>(), editBias.as<const float>(), editRows.size()};
    for (int64_t e = 0; e < edits.count; e++)
      if (edits.rows[e] >= rows || (edits.rows[e] >= 0 && (edits.tokens[e] < 0 || edits.tokens[e] >= vocab))) return "SampleTokens: an edit names a row or token that is not there";
    for (int64_t r = 0; r < rows; r++)
      if (maskRows.as<const int32_t>()[r] >= allowed.dims[0]) return "SampleTokens: a row names a mask that is not there";
    const Tensor tokens = context.output(0, {rows}), logps = context.output(1, {rows}), topIds = context.output(2, {rows, kMaxTop}),
                 topLogps = context.output(3, {rows, kMaxTop});
    const int64_t span = (vocab + kLanes + 15) / 16 * 16;
    auto* scratch = static_cast<float*>(context.scratch(static_cast<size_t>(2 * span * std::max(1, context.threads())) * 4));
    if (!scratch) return "SampleTokens: out of memory";
    forDynamic(context, rows, [&](int64_t worker, int64_t row) {
      const float *raw = logits.as<const float>() + row * vocab, *options = sampling.as<const float>() + row * kColumns;
      float *own = scratch + worker * 2 * span, *sorted = own + span;
      float top, lse;
      logSumExp(raw, vocab, top, lse);
      const float temperature = options[0];
      const int32_t maskRow = maskRows.as<const int32_t>()[row];
      const float* x = edited(raw, vocab, row, options, edits, maskRow < 0 ? nullptr : allowed.as<const int32_t>() + maskRow * words, own);
      int64_t token;
      if (temperature == 0) {
        token = firstLargest(vocab, [&](int64_t i, int64_t left) { return loadUpTo(x + i, left); });
      } else {
        const Vec divisor = set1(std::fabs(temperature));
        for (int64_t i = 0; i < vocab; i += kLanes) storeUpTo(own + i, vocab - i, loadUpTo(x + i, vocab - i) / divisor);
        float highest = own[0];
        for (int64_t i = 1; i < vocab; i++) highest = std::max(highest, own[i]);
        const Vec threshold = set1(keptThreshold(own, vocab, highest, options[1], options[2], options[3], sorted));
        const auto seed = static_cast<uint64_t>(seeds.as<const int64_t>()[row]);
        uint32_t key = hashStep(hashStep(0u, static_cast<uint32_t>(seed)), static_cast<uint32_t>(seed >> 32));
        key = hashStep(hashStep(key, static_cast<uint32_t>(positions.as<const int32_t>()[row])), 0u);
        const UVec lanes = laneNumbers();
        token = firstLargest(vocab, [&](int64_t i, int64_t left) {
          const Vec z = loadUpTo(own + i, left);
          return select(z >= threshold, z + gumbel(key, lanes + static_cast<uint32_t>(i)), set1(2 * kDisallowed));
        });
      }
      if (tokens) tokens.as<int32_t>()[row] = static_cast<int32_t>(token);
      if (logps) logps.as<float>()[row] = raw[token] - lse;
      if (topIds && topLogps) likeliest(raw, vocab, lse, static_cast<int64_t>(options[7]), topIds.as<int32_t>() + row * kMaxTop, topLogps.as<float>() + row * kMaxTop);
    });
    return nullptr;
  }

 private:
  /// The row's logits after penalties, bias and mask; `raw` itself where nothing changes.
  static const float* edited(const float* raw, int64_t vocab, int64_t row, const float* options, const Edits& edits, const int32_t* mask, float* own) {
    bool isCopied = false;
    const auto copy = [&] {
      if (!isCopied) memcpy(own, raw, static_cast<size_t>(vocab) * 4);
      isCopied = true;
    };
    for (int64_t e = 0; e < edits.count; e++) {
      if (edits.rows[e] != row) continue;
      copy();
      float& x = own[edits.tokens[e]];
      const float seen = edits.counts[2 * e], generated = edits.counts[2 * e + 1];
      if (seen > 0) x = x > 0 ? x / options[4] : x * options[4];
      x -= options[5] * generated;
      if (generated > 0) x -= options[6];
      x += edits.bias[e];
    }
    if (mask) {
      copy();
      for (int64_t i = 0; i < vocab; i++)
        if (!(static_cast<uint32_t>(mask[i / kMaskBits]) >> (i % kMaskBits) & 1)) own[i] = kDisallowed;
    }
    return isCopied ? own : raw;
  }

  /// The `count` likeliest tokens, best first, the lower id of equals first; the rest of the places holds -1 and 0.
  static void likeliest(const float* x, int64_t vocab, float lse, int64_t count, int32_t* ids, float* logps) {
    count = std::max<int64_t>(0, std::min(count, kMaxTop));
    float best[kMaxTop + 1];
    int64_t found = 0;
    for (int64_t i = 0; count > 0 && i < vocab; i++) {
      if (found == count && !(x[i] > best[count - 1])) continue;
      int64_t at = found < count ? found++ : count - 1;
      for (; at > 0 && x[i] > best[at - 1]; at--) best[at] = best[at - 1], ids[at] = ids[at - 1];
      best[at] = x[i];
      ids[at] = static_cast<int32_t>(i);
    }
    for (int64_t i = 0; i < kMaxTop; i++) {
      logps[i] = i < found ? best[i] - lse : 0.f;
      if (i >= found) ids[i] = -1;
    }
  }
};

const KernelDef kSampleTokensDefs[] = {
    {"SampleTokens", 1, 10, 0, 4, {DType::i32, DType::f32, DType::i32, DType::f32},
     [](const Attributes&, DType) -> Kernel* { return new SampleTokens(); }},
};
ESPALIER_REGISTER(kSampleTokensDefs);

}  // namespace
}  // namespace espalier
