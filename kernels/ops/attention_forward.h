// The forward pass of Attention (see attention.cc).
#pragma once
#include "attention_tiles.h"

namespace espalier {

/// Running maximum and sum of a panel of queries, in units of raw scores.
struct PanelState {
  Vec top[kAttentionVectors], total[kAttentionVectors];
};

/// Scores c[key][kAttentionPanel] of n keys from position k0 become weights 2^((c - top) * factor), packed as operand B in
/// `packed`; the state takes them in. Returns in `decay` what the sums so far shrink by; false: by nothing.
template <class A, bool isMasked>
ESPALIER_INLINE bool weighPanel(float* c, int64_t n, int64_t k0, const Sight& sight, float factor, PanelState& state, Vec* decay,
                                uint32_t* packed) {
  constexpr int kV = kAttentionVectors;
  Vec top[kV], other[kV], total[kV] = {}, shift[kV];
  for (int v = 0; v < kV; v++) top[v] = other[v] = state.top[v];
  const auto score = [&](int64_t j, int v) {
    const Vec x = load(c + j * kAttentionPanel + v * kLanes);
    return isMasked ? select(sight.mask(v, k0 + j), x, set1(kHidden)) : x;
  };
  int64_t j = 0;
  for (; j + 2 <= n; j += 2)
    for (int v = 0; v < kV; v++) top[v] = larger(top[v], score(j, v)), other[v] = larger(other[v], score(j + 1, v));
  for (; j < n; j++)
    for (int v = 0; v < kV; v++) top[v] = larger(top[v], score(j, v));
  bool isHigher = false;
  for (int v = 0; v < kV; v++) {
    top[v] = larger(top[v], other[v]);
    decay[v] = exp2Of<A>((state.top[v] - top[v]) * factor);
    const IVec changed = top[v] != state.top[v];
    for (int l = 0; l < kLanes; l++) isHigher |= changed[l] != 0;
    state.top[v] = top[v];
    shift[v] = top[v] * -factor;
  }
  const auto weight = [&](int64_t i, int v) {
    Vec x = fma(load(c + i * kAttentionPanel + v * kLanes), set1(factor), shift[v]);
    if (!isMasked) return exp2Of<A>(x);
    x = -larger(set1(0.f), -x);  // a query that has seen nothing has no maximum yet
    return select(sight.mask(v, k0 + i), exp2Of<A>(x), zero());
  };
  for (int64_t i = 0; i < n; i += A::kPerStep)
    for (int v = 0; v < kV; v++) {
      const Vec first = weight(i, v);
      const Vec second = A::kPerStep == 2 && i + 1 < n ? weight(i + 1, v) : zero();
      total[v] = total[v] + (first + second);
      store(reinterpret_cast<float*>(packed + i / A::kPerStep * kAttentionPanel + v * kLanes), A::join(first, second));
    }
  for (int v = 0; v < kV; v++) state.total[v] = fma(state.total[v], decay[v], total[v]);
  return isHigher;
}

template <class A, typename T>
const char* attendTyped(Context& context, const AttentionOptions& o, const Documents& documents, const T* q, const T* k, const T* v,
                        const Tensor& out, const Tensor& lse) {
  const HeadShape<A> shape(o.headDim);
  const int64_t ldQ = o.heads * o.headDim, ldK = o.kvHeads * o.headDim, group = o.heads / o.kvHeads, blocks = documents.blocks;
  int64_t used = 0;
  const auto carve = [&](int64_t floats) {
    const int64_t at = used;
    used += roundUp(floats, 16);
    return at;
  };
  const int64_t queryAt = carve(kAttentionPanel * shape.steps), scoreAt = carve(kAttentionBlock * kAttentionPanel);
  const int64_t weightAt = carve(shape.blockSteps * kAttentionPanel), sumAt = carve(shape.sumRows() * kAttentionPanel), perWorker = used;
  const int64_t workersAt = carve(perWorker * (std::max(1, context.threads()) - 1)) - perWorker;
  const int64_t keysAt = carve(blocks * o.kvHeads * shape.rowsSize()), valuesAt = carve(blocks * o.kvHeads * shape.columnsSize());
  const int64_t placesAt = carve(blocks * static_cast<int64_t>(sizeof(BlockPlace) / 4));
  auto* scratch = static_cast<float*>(context.scratch(static_cast<size_t>(used) * 4));
  if (!scratch) return "Attention: out of memory";
  auto *keys = reinterpret_cast<uint32_t*>(scratch + keysAt), *values = reinterpret_cast<uint32_t*>(scratch + valuesAt);
  auto* places = reinterpret_cast<BlockPlace*>(scratch + placesAt);
  listBlocks(documents, places);

  // Keys and values packed once, [kvHead][block]; every query block of the group's heads reads them.
  context.parallelFor(blocks * o.kvHeads, [&](int64_t task) {
    const BlockPlace& place = places[task % blocks];
    const int64_t row = place.block * kAttentionBlock, from = (documents.starts[place.document] + row) * ldK + task / blocks * o.headDim;
    const int64_t n = std::min(kAttentionBlock, documents.lengthOf(place.document) - row);
    shape.packRowsOf(k + from, ldK, n, keys + task * shape.rowsSize());
    shape.packColumnsOf(v + from, ldK, n, values + task * shape.columnsSize());
  });

  // One task per query block of a head; the longest, at a document's end, come first.
  const float factor = o.scale * kLog2E;
  forDynamic(context, blocks * o.heads, [&](int64_t worker, int64_t task) {
    const int64_t h = task / blocks, index = blocks - 1 - task % blocks, d = places[index].document, ownBlock = places[index].block;
    const int64_t start = documents.starts[d], length = documents.lengthOf(d), firstIndex = h / group * blocks + index - ownBlock;
    float* base = scratch + (worker ? workersAt + worker * perWorker : 0);
    auto *queries = reinterpret_cast<uint32_t*>(base + queryAt), *weights = reinterpret_cast<uint32_t*>(base + weightAt);
    float *c = base + scoreAt, *sums = base + sumAt;
    for (int64_t q0 = ownBlock * kAttentionBlock; q0 < std::min(length, (ownBlock + 1) * kAttentionBlock); q0 += kAttentionPanel) {
      const int64_t rows = std::min(kAttentionPanel, length - q0), at = (start + q0) * ldQ + h * o.headDim;
      shape.packAlongOf(q + at, ldQ, rows, queries);
      memset(sums, 0, static_cast<size_t>(shape.sumRows() * kAttentionPanel) * 4);
      const Sight sight(q0, o.window);
      PanelState state;
      for (int i = 0; i < kAttentionVectors; i++) state.top[i] = set1(kHidden), state.total[i] = zero();
      const int64_t firstBlock = o.window > 0 ? std::max<int64_t>(0, q0 - o.window + 1) / kAttentionBlock : 0;
      for (int64_t b = firstBlock; b <= ownBlock; b++) {
        const int64_t k0 = b * kAttentionBlock, n = std::min(kAttentionBlock, q0 + rows - k0);
        shape.scores(keys + (firstIndex + b) * shape.rowsSize(), queries, n, c);
        Vec decay[kAttentionVectors];
        const bool isHigher = Sight::isWhole(q0, q0 + rows - 1, k0, n, o.window)
                                  ? weighPanel<A, false>(c, n, k0, sight, factor, state, decay, weights)
                                  : weighPanel<A, true>(c, n, k0, sight, factor, state, decay, weights);
        if (isHigher && b > firstBlock)
          for (int64_t i = 0; i < o.headDim; i++)
            for (int j = 0; j < kAttentionVectors; j++) {
              float* sum = sums + i * kAttentionPanel + j * kLanes;
              store(sum, load(sum) * decay[j]);
            }
        shape.addTransposed(values + (firstIndex + b) * shape.columnsSize(), weights, stepsOf<A>(n), sums);
      }
      Vec inverse[kAttentionVectors];
      for (int i = 0; i < kAttentionVectors; i++) inverse[i] = 1.f / state.total[i];
      if (out.dtype == DType::f32) shape.storeTransposed(sums, inverse, rows, out.as<float>() + at, ldQ);
      else shape.storeTransposed(sums, inverse, rows, out.as<bf16>() + at, ldQ);
      if (lse)
        for (int64_t i = 0; i < rows; i++)
          lse.as<float>()[(start + q0 + i) * o.heads + h] =
              state.top[i / kLanes][i % kLanes] * o.scale + std::log(state.total[i / kLanes][i % kLanes]);
    }
  });
  return nullptr;
}

template <class A>
const char* attend(Context& context, const AttentionOptions& o, const Documents& documents, const Tensor& q, const Tensor& k,
                   const Tensor& v, const Tensor& out, const Tensor& lse) {
  if (q.dtype == DType::f32)
    return attendTyped<A>(context, o, documents, q.as<const float>(), k.as<const float>(), v.as<const float>(), out, lse);
  return attendTyped<A>(context, o, documents, q.as<const bf16>(), k.as<const bf16>(), v.as<const bf16>(), out, lse);
}

}  // namespace espalier
