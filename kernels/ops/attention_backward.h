// The backward pass of Attention (see attention.cc): dV = P^T dO, dS = P (dO V^T - D) scale, dQ = dS K, dK = dS^T Q,
// D = rows of dO . O; P = e^(scale S - lse) is recomputed block by block.
#pragma once
#include "attention_tiles.h"

namespace espalier {

struct AttentionGradInputs {
  Tensor q, k, v, out, lse, dOut, dQ, dK, dV;
  Documents documents;
};

/// Longer documents are two tasks a head: queries before and after about 0.7 of them, of equal work in a causal triangle.
/// dK and dV of both are added in order.
constexpr int64_t kSplitLength = 2 * kAttentionBlock;
inline int64_t splitBlock(int64_t length) {
  const int64_t blocks = (length + kAttentionBlock - 1) / kAttentionBlock;
  return length > kSplitLength ? (blocks * 7 + 5) / 10 : 0;
}

/// Rows `c` (scores) become P and rows `d` (dO V^T) become dS / scale for n keys from position k0; dS is packed too, as
/// operand B.
template <class A, bool isMasked>
ESPALIER_INLINE void differentiatePanel(float* c, float* d, int64_t n, int64_t k0, const Sight& sight, float factor, const float* lse,
                                        const float* delta, uint32_t* packed) {
  constexpr int kV = kAttentionVectors;
  Vec shift[kV], correction[kV];
  for (int v = 0; v < kV; v++) shift[v] = load(lse + v * kLanes) * -kLog2E, correction[v] = load(delta + v * kLanes);
  const auto one = [&](int64_t j, int v) {
    const int64_t at = j * kAttentionPanel + v * kLanes;
    Vec p = exp2Of<A>(fma(load(c + at), set1(factor), shift[v]));
    if (isMasked) p = select(sight.mask(v, k0 + j), p, zero());
    const Vec dS = p * (load(d + at) - correction[v]);
    store(c + at, p);
    store(d + at, dS);
    return dS;
  };
  for (int64_t j = 0; j < n; j += A::kPerStep)
    for (int v = 0; v < kV; v++) {
      const Vec first = one(j, v);
      const Vec second = A::kPerStep == 2 && j + 1 < n ? one(j + 1, v) : zero();
      store(reinterpret_cast<float*>(packed + j / A::kPerStep * kAttentionPanel + v * kLanes), A::join(first, second));
    }
}

template <class A, typename T, typename D>
const char* attendBackwardTyped(Context& context, const AttentionOptions& o, const AttentionGradInputs& in, const T* q, const T* k,
                                const T* v, const D* dOut) {
  const HeadShape<A> shape(o.headDim);
  const Documents& documents = in.documents;
  const int64_t ldQ = o.heads * o.headDim, ldK = o.kvHeads * o.headDim, group = o.heads / o.kvHeads;
  const int64_t blocks = std::max<int64_t>(1, (documents.longest + kAttentionBlock - 1) / kAttentionBlock);
  const int64_t tiles = kAttentionBlock / kTileRows, sumSize = shape.sumRows() * kAttentionPanel;
  int64_t used = 0;
  const auto carve = [&](int64_t floats) {
    const int64_t at = used;
    used += roundUp(floats, 16);
    return at;
  };
  const int64_t queryAlongAt = carve(blocks * shape.alongSize()), gradAlongAt = carve(blocks * shape.alongSize());
  const int64_t queryDownAt = carve(blocks * shape.downSize()), gradDownAt = carve(blocks * shape.downSize());
  const int64_t dQAt = carve(blocks * kBlockPanels * sumSize), lseAt = carve(blocks * kAttentionBlock), deltaAt = carve(blocks * kAttentionBlock);
  const int64_t keysAt = carve(shape.rowsSize()), valuesAt = carve(shape.rowsSize()), keyColumnsAt = carve(shape.columnsSize());
  const int64_t dKAt = carve(tiles * shape.tileSums()), dVAt = carve(tiles * shape.tileSums());
  const int64_t pAt = carve(kAttentionBlock * kAttentionPanel), dSAt = carve(kAttentionBlock * kAttentionPanel);
  const int64_t pRowsAt = carve(tiles * shape.blockTile), dSRowsAt = carve(tiles * shape.blockTile);
  const int64_t weightAt = carve(shape.blockSteps * kAttentionPanel), perWorker = used;
  const int64_t workersAt = carve(perWorker * (std::max(1, context.threads()) - 1)) - perWorker;
  // dK and dV of every query head and part; the parts of a group are added afterwards, in order.
  const int64_t parts = documents.longest > kSplitLength ? 2 : 1, headFloats = documents.tokens * ldQ;
  const int64_t dKsAt = carve(parts * headFloats), dVsAt = carve(parts * headFloats);
  auto* scratch = static_cast<float*>(context.scratch(static_cast<size_t>(used) * 4));
  if (!scratch) return "AttentionGrad: out of memory";
  float *dKs = scratch + dKsAt, *dVs = scratch + dVsAt;
  const float factor = o.scale * kLog2E;

  forDynamic(context, documents.count * o.heads * parts, [&](int64_t worker, int64_t task) {
    const int64_t part = task % parts, h = task / parts % o.heads, d = task / parts / o.heads, kvHead = h / group;
    const int64_t start = documents.starts[d], length = documents.lengthOf(d), split = splitBlock(length);
    const int64_t firstBlock = part ? split : 0, lastBlock = part || split == 0 ? documents.blocksOf(d) : split;
    if (length == 0 || (part && split == 0)) return;
    const int64_t firstQuery = firstBlock * kAttentionBlock, lastQuery = std::min(length, lastBlock * kAttentionBlock);
    float* base = scratch + (worker ? workersAt + worker * perWorker : 0);
    const auto dwords = [&](int64_t at) { return reinterpret_cast<uint32_t*>(base + at); };
    uint32_t *queryAlong = dwords(queryAlongAt), *gradAlong = dwords(gradAlongAt), *queryDown = dwords(queryDownAt), *gradDown = dwords(gradDownAt);
    uint32_t *keys = dwords(keysAt), *values = dwords(valuesAt), *keyColumns = dwords(keyColumnsAt), *weights = dwords(weightAt);
    uint32_t *pRows = dwords(pRowsAt), *dSRows = dwords(dSRowsAt);
    float *dQ = base + dQAt, *lse = base + lseAt, *delta = base + deltaAt, *dK = base + dKAt, *dV = base + dVAt, *p = base + pAt, *dS = base + dSAt;

    // Block b of the queries lies at b - firstBlock in every buffer.
    for (int64_t b = firstBlock; b < lastBlock; b++) {
      const int64_t row = b * kAttentionBlock, n = std::min(kAttentionBlock, length - row), from = (start + row) * ldQ + h * o.headDim, to = b - firstBlock;
      shape.packAlongOf(q + from, ldQ, n, queryAlong + to * shape.alongSize());
      shape.packAlongOf(dOut + from, ldQ, n, gradAlong + to * shape.alongSize());
      shape.packDownOf(q + from, ldQ, n, queryDown + to * shape.downSize());
      shape.packDownOf(dOut + from, ldQ, n, gradDown + to * shape.downSize());
      for (int64_t i = 0; i < kAttentionBlock; i++) {
        float *ownLse = lse + to * kAttentionBlock + i, *ownDelta = delta + to * kAttentionBlock + i;
        *ownLse = *ownDelta = 0;  // lanes past the end: q and dO are 0 there
        if (i >= n) continue;
        *ownLse = in.lse.as<const float>()[(start + row + i) * o.heads + h];
        const int64_t at = from + i * ldQ;
        Vec sum = zero();
        for (int64_t c = 0; c < o.headDim; c += kLanes) {
          const int64_t left = o.headDim - c;
          const Vec y = in.out.dtype == DType::f32 ? loadUpTo(in.out.as<const float>() + at + c, left) : loadUpTo(in.out.as<const bf16>() + at + c, left);
          sum = fma(loadUpTo(dOut + at + c, left), y, sum);
        }
        *ownDelta = reduceAdd(sum);
      }
    }
    memset(dQ, 0, static_cast<size_t>((lastBlock - firstBlock) * kBlockPanels * sumSize) * 4);

    for (int64_t k0 = 0; k0 < lastQuery; k0 += kAttentionBlock) {
      const int64_t count = std::min(kAttentionBlock, length - k0), from = (start + k0) * ldK + kvHead * o.headDim;
      shape.packRowsOf(k + from, ldK, count, keys);
      shape.packRowsOf(v + from, ldK, count, values);
      shape.packColumnsOf(k + from, ldK, count, keyColumns);
      memset(dK, 0, static_cast<size_t>(tiles * shape.tileSums()) * 4);
      memset(dV, 0, static_cast<size_t>(tiles * shape.tileSums()) * 4);
      for (int64_t b = std::max(firstBlock, k0 / kAttentionBlock); b < lastBlock; b++) {
        const int64_t q0 = b * kAttentionBlock, at = b - firstBlock, rows = std::min(kAttentionBlock, length - q0);
        if (o.window > 0 && q0 - (k0 + count - 1) >= o.window) break;
        for (int64_t r = 0; r < rows; r += kAttentionPanel) {
          // Keys past the panel's last query are seen by none of it.
          const int64_t first = q0 + r, last = std::min(length, first + kAttentionPanel) - 1, n = std::min(count, last + 1 - k0);
          shape.scores(keys, queryAlong + at * shape.alongSize() + r * shape.steps, n, p);
          shape.scores(values, gradAlong + at * shape.alongSize() + r * shape.steps, n, dS);
          const float *panelLse = lse + at * kAttentionBlock + r, *panelDelta = delta + at * kAttentionBlock + r;
          if (Sight::isWhole(first, last, k0, n, o.window))
            differentiatePanel<A, false>(p, dS, n, k0, Sight(first, o.window), factor, panelLse, panelDelta, weights);
          else differentiatePanel<A, true>(p, dS, n, k0, Sight(first, o.window), factor, panelLse, panelDelta, weights);
          shape.addTransposed(keyColumns, weights, stepsOf<A>(n), dQ + (at * kBlockPanels + r / kAttentionPanel) * sumSize);
          for (int64_t g = 0; g < n; g += kGroupRows) {
            const int64_t to = g / kTileRows * shape.blockTile + stepsOf<A>(r) * kTileRows, present = std::min<int64_t>(kGroupRows, n - g);
            packRows<A>(p + g * kAttentionPanel, kAttentionPanel, present, kAttentionPanel, pRows + to, shape.blockTile);
            packRows<A>(dS + g * kAttentionPanel, kAttentionPanel, present, kAttentionPanel, dSRows + to, shape.blockTile);
          }
        }
        // A tile of keys is seen from its first key on; panels before that were not computed for it.
        const int64_t steps = stepsOf<A>(rows);
        for (int64_t t = 0; t * kTileRows < count; t++) {
          const int64_t firstStep = std::max<int64_t>(0, k0 + t * kTileRows - q0) / A::kPerStep;
          if (firstStep >= steps) break;
          shape.addRows(pRows + t * shape.blockTile, gradDown + at * shape.downSize(), firstStep, steps, dV + t * shape.tileSums());
          shape.addRows(dSRows + t * shape.blockTile, queryDown + at * shape.downSize(), firstStep, steps, dK + t * shape.tileSums());
        }
      }
      for (int64_t i = 0; i < count; i++)
        for (int64_t c = 0; c < o.headDim; c += kLanes) {
          const int64_t panel = c / kAttentionPanel * kAttentionPanel, width = shape.vectorsOf(panel) * kLanes;
          const int64_t own = i / kTileRows * shape.tileSums() + panel * kTileRows + i % kTileRows * width + c - panel;
          const int64_t to = part * headFloats + (start + k0 + i) * ldQ + h * o.headDim + c;
          storeUpTo(dKs + to, o.headDim - c, load(dK + own) * o.scale);
          storeUpTo(dVs + to, o.headDim - c, load(dV + own));
        }
    }
    Vec scales[kAttentionVectors];
    for (int i = 0; i < kAttentionVectors; i++) scales[i] = set1(o.scale);
    for (int64_t row = firstQuery; row < lastQuery; row += kAttentionPanel) {
      const float* sums = dQ + (row - firstQuery) / kAttentionPanel * sumSize;
      const int64_t n = std::min(kAttentionPanel, lastQuery - row), to = (start + row) * ldQ + h * o.headDim;
      if (in.dQ.dtype == DType::f32) shape.storeTransposed(sums, scales, n, in.dQ.as<float>() + to, ldQ);
      else shape.storeTransposed(sums, scales, n, in.dQ.as<bf16>() + to, ldQ);
    }
  });

  for (int64_t d = 0; d < documents.count; d++) {
    const int64_t start = documents.starts[d], length = documents.lengthOf(d), split = splitBlock(length) * kAttentionBlock;
    forBlocks(context, length, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        for (int64_t g = 0; g < o.kvHeads; g++)
          for (int64_t c = 0; c < o.headDim; c += kLanes) {
            const int64_t n = o.headDim - c, from = (start + i) * ldQ + g * group * o.headDim + c, to = (start + i) * ldK + g * o.headDim + c;
            Vec key = zero(), value = zero();
            const auto add = [&](int64_t at) {
              for (int64_t j = 0; j < group; j++) {
                key = key + loadUpTo(dKs + at + j * o.headDim, n);
                value = value + loadUpTo(dVs + at + j * o.headDim, n);
              }
            };
            if (split == 0 || i < split) add(from);
            if (split > 0) add(headFloats + from);
            if (in.dK.dtype == DType::f32) storeUpTo(in.dK.as<float>() + to, n, key), storeUpTo(in.dV.as<float>() + to, n, value);
            else storeUpTo(in.dK.as<bf16>() + to, n, key), storeUpTo(in.dV.as<bf16>() + to, n, value);
          }
    });
  }
  return nullptr;
}

template <class A> const char* attendBackward(Context& context, const AttentionOptions& o, const AttentionGradInputs& in) {
  const auto typed = [&](auto* q, auto* k, auto* v) {
    if (in.dOut.dtype == DType::f32) return attendBackwardTyped<A>(context, o, in, q, k, v, in.dOut.as<const float>());
    return attendBackwardTyped<A>(context, o, in, q, k, v, in.dOut.as<const bf16>());
  };
  if (in.q.dtype == DType::f32) return typed(in.q.as<const float>(), in.k.as<const float>(), in.v.as<const float>());
  return typed(in.q.as<const bf16>(), in.k.as<const bf16>(), in.v.as<const bf16>());
}

}  // namespace espalier
