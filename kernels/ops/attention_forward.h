// The forward pass of Attention (see attention.cc).
#pragma once
#include "attention_tiles.h"

namespace espalier {

template <class A, typename T>
const char* attendTyped(Context& context, const AttentionOptions& o, const Documents& documents, const T* q, const T* k, const T* v,
                        const Tensor& out, const Tensor& lse) {
  constexpr int64_t kTiles = kAttentionBlock / kTileRows;
  const HeadLayout<A> layout(o.headDim);
  const int64_t ldQ = o.heads * o.headDim, ldK = o.kvHeads * o.headDim, group = o.heads / o.kvHeads;
  const int64_t pTileStride = stepsOf<A>(kAttentionBlock) * kTileRows;
  const int64_t queryAt = 0, keyAt = queryAt + roundUp(layout.rowFloats(kAttentionBlock), 16),
                valueAt = keyAt + roundUp(layout.alongFloats(), 16), scoreAt = valueAt + roundUp(layout.downFloats(), 16),
                packedAt = scoreAt + kAttentionBlock * kAttentionBlock, sumAt = packedAt + kTiles * pTileStride,
                stateAt = sumAt + roundUp(layout.sumFloats(kAttentionBlock), 16), perWorker = stateAt + 2 * kAttentionBlock;
  auto* scratch = static_cast<float*>(context.scratch(static_cast<size_t>(perWorker * std::max(1, context.threads())) * 4));
  if (!scratch) return "Attention: out of memory";

  // The latest blocks of a document are the longest work: tasks run from its end.
  const int64_t blocksPerDocument = (documents.longest + kAttentionBlock - 1) / kAttentionBlock;
  const int64_t tasks = blocksPerDocument * o.heads * documents.count;
  forDynamic(context, tasks, [&](int64_t worker, int64_t task) {
    const int64_t h = task % o.heads, d = task / o.heads % documents.count;
    const int64_t block = blocksPerDocument - 1 - task / o.heads / documents.count;
    const int64_t start = documents.starts[d], length = documents.starts[d + 1] - start, q0 = block * kAttentionBlock;
    if (q0 >= length) return;
    const int64_t rows = std::min(kAttentionBlock, length - q0), kvHead = h / group;
    float* base = scratch + worker * perWorker;
    auto* queries = reinterpret_cast<uint32_t*>(base + queryAt);
    auto* keys = reinterpret_cast<uint32_t*>(base + keyAt);
    auto* values = reinterpret_cast<uint32_t*>(base + valueAt);
    auto* packed = reinterpret_cast<uint32_t*>(base + packedAt);
    float *s = base + scoreAt, *sums = base + sumAt, *top = base + stateAt, *total = top + kAttentionBlock;
    layout.packRowsOf(q + (start + q0) * ldQ + h * o.headDim, ldQ, rows, queries);
    memset(sums, 0, static_cast<size_t>(layout.sumFloats(kAttentionBlock)) * 4);
    for (int64_t r = 0; r < kAttentionBlock; r++) top[r] = -INFINITY, total[r] = 0;

    const int64_t firstKey = o.window > 0 ? std::max<int64_t>(0, q0 - o.window + 1) / kAttentionBlock * kAttentionBlock : 0;
    for (int64_t k0 = firstKey; k0 < q0 + rows; k0 += kAttentionBlock) {
      const int64_t count = std::min(kAttentionBlock, q0 + rows - k0);
      layout.packAlongOf(k + (start + k0) * ldK + kvHead * o.headDim, ldK, count, keys);
      layout.packDownOf(v + (start + k0) * ldK + kvHead * o.headDim, ldK, count, values);
      const int64_t width = roundUp(count, kLanes), steps = stepsOf<A>(count);
      for (int64_t tile = 0; tile * kTileRows < rows; tile++) {
        scoreTile<A>(layout, queries + tile * layout.tileStride, keys, count, s + tile * kTileRows * kAttentionBlock);
        for (int64_t r = 0; r < kTileRows; r++) {
          const int64_t row = tile * kTileRows + r;
          float* p = s + row * kAttentionBlock;
          const Visible visible(q0 + row, k0, count, o.window);
          if (row >= rows || visible.none()) {
            memset(p, 0, static_cast<size_t>(kAttentionBlock) * 4);
            continue;
          }
          // p = e^(s scale - top), the sums so far brought to the new top
          Vec highest = set1(-INFINITY);
          const bool whole = visible.lo == 0 && visible.hi >= width;
          for (int64_t c = 0; c < width; c += kLanes) {
            Vec x = load(p + c) * o.scale;
            if (!whole) x = select(visible.mask(c), x, set1(-INFINITY));
            store(p + c, x);
            highest = max(highest, x);
          }
          const float newTop = std::max(top[row], reduceMax(highest));
          Vec added = zero();
          for (int64_t c = 0; c < width; c += kLanes) {
            const Vec e = exp(load(p + c) - newTop);
            store(p + c, e);
            added = added + e;
          }
          if (newTop != top[row]) {
            const float factor = total[row] == 0 ? 0.f : exp(set1(top[row] - newTop))[0];
            total[row] *= factor;
            layout.forRow(sums + tile * kTileRows * layout.dimWidth, r, [&](int64_t, int64_t, float* at) { store(at, load(at) * factor); });
            top[row] = newTop;
          }
          total[row] += reduceAdd(added);
        }
      }
      for (int64_t row = 0; row < rows; row += kGroupRows)
        packRows<A>(s + row * kAttentionBlock, kAttentionBlock, kGroupRows, count, packed + row / kTileRows * pTileStride, pTileStride);
      for (int64_t tile = 0; tile * kTileRows < rows; tile++)
        layout.multiplyDown(packed + tile * pTileStride, values, steps, sums + tile * kTileRows * layout.dimWidth, true);
    }
    for (int64_t row = 0; row < rows; row++) {
      const float inverse = 1.f / total[row];
      const int64_t at = (start + q0 + row) * ldQ + h * o.headDim;
      layout.forRow(sums + row / kTileRows * kTileRows * layout.dimWidth, row % kTileRows, [&](int64_t c, int64_t n, float* sum) {
        const Vec y = load(sum) * inverse;
        if (out.dtype == DType::f32) storeUpTo(out.as<float>() + at + c, n, y);
        else storeUpTo(out.as<bf16>() + at + c, n, y);
      });
      if (lse) lse.as<float>()[(start + q0 + row) * o.heads + h] = top[row] + std::log(total[row]);
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
