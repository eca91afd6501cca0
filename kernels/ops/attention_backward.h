// The backward pass of Attention (see attention.cc): dV = P^T dO, dS = P (dO V^T - D) scale, dQ = dS K, dK = dS^T Q,
// D = rows of dO . O; P = e^(scale S - lse) is recomputed block by block.
#pragma once
#include "attention_tiles.h"

namespace espalier {

struct AttentionGradInputs {
  Tensor q, k, v, out, lse, dOut, dQ, dK, dV;
  Documents documents;
};

/// The queries of a long document are cut into parts of about equal work (a causal triangle), for enough tasks where kv
/// heads are few: part p ends before block edge(p + 1). The cut depends on the document's length and the heads alone; dK
/// and dV of the parts, each as large as k, are added in order.
struct Parts {
  int64_t blocks, count;
  Parts(int64_t blockCount, int64_t kvHeads)
      : blocks(blockCount), count(blockCount > 6 && kvHeads <= 4 ? 4 : blockCount > 2 && kvHeads <= 8 ? 2 : 1) {}
  int64_t edge(int64_t p) const {
    constexpr int64_t kTenths[3][5] = {{0, 10}, {0, 7, 10}, {0, 5, 7, 9, 10}};  // about 10 sqrt(p / count)
    return (blocks * kTenths[count / 2][p] + 5) / 10;
  }
};

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
  const int64_t partBlocks = std::max(Parts(blocks, o.kvHeads).edge(1), std::min<int64_t>(blocks, 5));  // the longest part of any document
  int64_t used = 0;
  const auto carve = [&](int64_t floats) {
    const int64_t at = used;
    used += roundUp(floats, 16);
    return at;
  };
  const int64_t queryAlongAt = carve(partBlocks * shape.alongSize()), gradAlongAt = carve(partBlocks * shape.alongSize());
  const int64_t queryDownAt = carve(partBlocks * shape.downSize()), gradDownAt = carve(partBlocks * shape.downSize());
  const int64_t dQAt = carve(partBlocks * kBlockPanels * sumSize), lseAt = carve(partBlocks * kAttentionBlock), deltaAt = carve(partBlocks * kAttentionBlock);
  const int64_t keysAt = carve(shape.rowsSize()), valuesAt = carve(shape.rowsSize()), keyColumnsAt = carve(shape.columnsSize());
  const int64_t pAt = carve(kAttentionBlock * kAttentionPanel), dSAt = carve(kAttentionBlock * kAttentionPanel);
  const int64_t pRowsAt = carve(tiles * shape.blockTile), dSRowsAt = carve(tiles * shape.blockTile);
  const int64_t weightAt = carve(shape.blockSteps * kAttentionPanel), perWorker = used;
  const int64_t workersAt = carve(perWorker * (std::max(1, context.threads()) - 1)) - perWorker;
  // dK and dV of every part, [part][kvHead][block][tile]: the heads of a group add to them one after the other.
  const int64_t maxParts = Parts(blocks, o.kvHeads).count, blockSums = tiles * shape.tileSums(), partSums = o.kvHeads * documents.blocks * blockSums;
  const int64_t dKsAt = carve(maxParts * partSums), dVsAt = carve(maxParts * partSums);
  const int64_t placesAt = carve(documents.blocks * static_cast<int64_t>(sizeof(BlockPlace) / 4));
  auto* scratch = static_cast<float*>(context.scratch(static_cast<size_t>(used) * 4));
  if (!scratch) return "AttentionGrad: out of memory";
  float *dKs = scratch + dKsAt, *dVs = scratch + dVsAt;
  auto* places = reinterpret_cast<BlockPlace*>(scratch + placesAt);
  listBlocks(documents, places);
  const float factor = o.scale * kLog2E;
  const int64_t outBytes = in.out.dtype == DType::f32 ? 4 : 2;

  forDynamic(context, documents.count * o.kvHeads * maxParts, [&](int64_t worker, int64_t task) {
    const int64_t part = maxParts - 1 - task % maxParts, kvHead = task / maxParts % o.kvHeads, d = task / maxParts / o.kvHeads;
    const int64_t start = documents.starts[d], length = documents.lengthOf(d);
    const Parts parts(documents.blocksOf(d), o.kvHeads);
    if (length == 0 || part >= parts.count) return;
    const int64_t firstBlock = parts.edge(part), lastBlock = parts.edge(part + 1);
    int64_t firstIndex = 0;  // of the document's blocks among all
    for (int64_t e = 0; e < d; e++) firstIndex += documents.blocksOf(e);
    const int64_t firstQuery = firstBlock * kAttentionBlock, lastQuery = std::min(length, lastBlock * kAttentionBlock);
    float* base = scratch + (worker ? workersAt + worker * perWorker : 0);
    const auto dwords = [&](int64_t at) { return reinterpret_cast<uint32_t*>(base + at); };
    uint32_t *queryAlong = dwords(queryAlongAt), *gradAlong = dwords(gradAlongAt), *queryDown = dwords(queryDownAt), *gradDown = dwords(gradDownAt);
    uint32_t *keys = dwords(keysAt), *values = dwords(valuesAt), *keyColumns = dwords(keyColumnsAt), *weights = dwords(weightAt);
    uint32_t *pRows = dwords(pRowsAt), *dSRows = dwords(dSRowsAt);
    float *dQ = base + dQAt, *lse = base + lseAt, *delta = base + deltaAt, *p = base + pAt, *dS = base + dSAt;

    for (int64_t h = kvHead * group; h < (kvHead + 1) * group; h++) {
      // Block b of the queries lies at b - firstBlock in every buffer.
      for (int64_t b = firstBlock; b < lastBlock; b++) {
        const int64_t row = b * kAttentionBlock, n = std::min(kAttentionBlock, length - row), from = (start + row) * ldQ + h * o.headDim, to = b - firstBlock;
        for (int64_t i = 0; i < kAttentionBlock; i++) {
          float *ownLse = lse + to * kAttentionBlock + i, *ownDelta = delta + to * kAttentionBlock + i;
          *ownLse = *ownDelta = 0;  // lanes past the end: q and dO are 0 there
          if (i >= n) continue;
          *ownLse = in.lse.as<const float>()[(start + row + i) * o.heads + h];
          const int64_t at = from + i * ldQ;
          if (i + 8 < n)  // rows are far apart: the hardware does not foresee them
            for (int64_t c = 0; c < o.headDim; c += 16) __builtin_prefetch(in.out.as<char>() + (at + 8 * ldQ + c) * outBytes), __builtin_prefetch(dOut + at + 8 * ldQ + c);
          Vec sum = zero();
          for (int64_t c = 0; c < o.headDim; c += kLanes) {
            const int64_t left = o.headDim - c;
            const Vec y = in.out.dtype == DType::f32 ? loadUpTo(in.out.as<const float>() + at + c, left) : loadUpTo(in.out.as<const bf16>() + at + c, left);
            sum = fma(loadUpTo(dOut + at + c, left), y, sum);
          }
          *ownDelta = reduceAdd(sum);
        }
        shape.packAlongOf(q + from, ldQ, n, queryAlong + to * shape.alongSize());
        shape.packAlongOf(dOut + from, ldQ, n, gradAlong + to * shape.alongSize());
        shape.packDownOf(q + from, ldQ, n, queryDown + to * shape.downSize());
        shape.packDownOf(dOut + from, ldQ, n, gradDown + to * shape.downSize());
      }
      memset(dQ, 0, static_cast<size_t>((lastBlock - firstBlock) * kBlockPanels * sumSize) * 4);

      for (int64_t k0 = 0; k0 < lastQuery; k0 += kAttentionBlock) {
        const int64_t count = std::min(kAttentionBlock, length - k0), from = (start + k0) * ldK + kvHead * o.headDim;
        shape.packRowsOf(k + from, ldK, count, keys);
        shape.packRowsOf(v + from, ldK, count, values);
        shape.packColumnsOf(k + from, ldK, count, keyColumns);
        const int64_t sumsAt = part * partSums + (kvHead * documents.blocks + firstIndex + k0 / kAttentionBlock) * blockSums;
        float *dK = dKs + sumsAt, *dV = dVs + sumsAt;
        if (h == kvHead * group) {
          memset(dK, 0, static_cast<size_t>(blockSums) * 4);
          memset(dV, 0, static_cast<size_t>(blockSums) * 4);
        }
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
          // Panels outside: one stays in the L1 cache while the tiles pass.
          const int64_t steps = stepsOf<A>(rows);
          const auto addRows = [&](const uint32_t* from, const uint32_t* down, float* sums) {
            for (int64_t c = 0; c < o.headDim; c += kHeadPanel)
              for (int64_t t = 0; t * kTileRows < count; t++) {
                const int64_t firstStep = std::max<int64_t>(0, k0 + t * kTileRows - q0) / A::kPerStep;
                if (firstStep >= steps) break;
                shape.addRows(from + t * shape.blockTile, down + at * shape.downSize(), c, firstStep, steps, sums + t * shape.tileSums());
              }
          };
          addRows(pRows, gradDown, dV);
          addRows(dSRows, queryDown, dK);
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
    }
  });

  context.parallelFor(documents.blocks * o.kvHeads, [&](int64_t task) {
    const int64_t index = task % documents.blocks, kvHead = task / documents.blocks;
    const BlockPlace& place = places[index];
    const Parts parts(documents.blocksOf(place.document), o.kvHeads);
    const int64_t row = place.block * kAttentionBlock, to = (documents.starts[place.document] + row) * ldK + kvHead * o.headDim;
    const int64_t from = (kvHead * documents.blocks + index) * blockSums;
    for (int64_t i = 0; i < std::min(kAttentionBlock, documents.lengthOf(place.document) - row); i++)
      for (int64_t c = 0; c < o.headDim; c += kLanes) {
        const int64_t panel = c / kHeadPanel * kHeadPanel, width = shape.vectorsOf(panel) * kLanes, n = o.headDim - c;
        const int64_t own = from + i / kTileRows * shape.tileSums() + panel * kTileRows + i % kTileRows * width + c - panel;
        Vec key = zero(), value = zero();
        for (int64_t p = 0; p < parts.count; p++) {
          if (parts.edge(p + 1) <= place.block) continue;  // its queries come before these keys
          key = key + load(dKs + p * partSums + own);
          value = value + load(dVs + p * partSums + own);
        }
        key = key * o.scale;
        if (in.dK.dtype == DType::f32) storeUpTo(in.dK.as<float>() + to + i * ldK + c, n, key), storeUpTo(in.dV.as<float>() + to + i * ldK + c, n, value);
        else storeUpTo(in.dK.as<bf16>() + to + i * ldK + c, n, key), storeUpTo(in.dV.as<bf16>() + to + i * ldK + c, n, value);
      }
  });
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
