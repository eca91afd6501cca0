// The backward pass of Attention (see attention.cc): dV = P^T dO, dS = P (dO V^T - D) scale, dQ = dS K, dK = dS^T Q,
// D = rows of dO . O.
#pragma once
#include "attention_tiles.h"

namespace espalier {

struct AttentionGradInputs {
  Tensor q, k, v, out, lse, dOut, dQ, dK, dV;
  Documents documents;
};

template <class A, typename T, typename D>
const char* attendBackwardTyped(Context& context, const AttentionOptions& o, const AttentionGradInputs& in, const T* q, const T* k,
                                const T* v, const D* dOut) {
  constexpr int64_t kTiles = kAttentionBlock / kTileRows;
  const HeadLayout<A> layout(o.headDim);
  const Documents& documents = in.documents;
  const int64_t ldQ = o.heads * o.headDim, ldK = o.kvHeads * o.headDim, group = o.heads / o.kvHeads;
  const int64_t tileStride = stepsOf<A>(kAttentionBlock) * kTileRows;
  const int64_t longest = roundUp(std::max<int64_t>(1, documents.longest), kAttentionBlock), blocks = longest / kAttentionBlock;
  int64_t used = 0;
  const auto carve = [&](int64_t floats) {
    const int64_t at = used;
    used += roundUp(floats, 16);
    return at;
  };
  const int64_t queryRowsAt = carve(layout.rowFloats(longest)), gradRowsAt = carve(layout.rowFloats(longest));
  const int64_t queryDownAt = carve(blocks * layout.downFloats()), gradDownAt = carve(blocks * layout.downFloats());
  const int64_t dQAt = carve(layout.sumFloats(longest)), dKAt = carve(layout.sumFloats(kAttentionBlock));
  const int64_t dVAt = carve(layout.sumFloats(kAttentionBlock)), deltaAt = carve(longest);
  const int64_t keyAlongAt = carve(layout.alongFloats()), valueAlongAt = carve(layout.alongFloats());
  const int64_t keyDownAt = carve(layout.downFloats()), pAt = carve(kAttentionBlock * kAttentionBlock);
  const int64_t dSAt = carve(kAttentionBlock * kAttentionBlock), packedAt = carve(kTiles * tileStride);
  const int64_t perWorker = used, threads = std::max(1, context.threads());
  // dK and dV of every query head; the heads of a group are added afterwards, in order.
  const int64_t headFloats = documents.tokens * o.heads * o.headDim;
  auto* scratch = static_cast<float*>(context.scratch(static_cast<size_t>(perWorker * threads + 2 * headFloats) * 4));
  if (!scratch) return "AttentionGrad: out of memory";
  float *dKs = scratch + perWorker * threads, *dVs = dKs + headFloats;
  const float* lse = in.lse.as<const float>();

  forDynamic(context, documents.count * o.heads, [&](int64_t worker, int64_t task) {
    const int64_t d = task / o.heads, h = task % o.heads, kvHead = h / group;
    const int64_t start = documents.starts[d], length = documents.starts[d + 1] - start;
    if (length == 0) return;
    float* base = scratch + worker * perWorker;
    const auto packedAtBase = [&](int64_t at) { return reinterpret_cast<uint32_t*>(base + at); };
    uint32_t *queryRows = packedAtBase(queryRowsAt), *gradRows = packedAtBase(gradRowsAt), *queryDown = packedAtBase(queryDownAt);
    uint32_t *gradDown = packedAtBase(gradDownAt), *keyAlong = packedAtBase(keyAlongAt), *valueAlong = packedAtBase(valueAlongAt);
    uint32_t *keyDown = packedAtBase(keyDownAt), *packed = packedAtBase(packedAt);
    float *dQ = base + dQAt, *dK = base + dKAt, *dV = base + dVAt, *delta = base + deltaAt, *p = base + pAt, *dS = base + dSAt;
    const T* headQ = q + start * ldQ + h * o.headDim;
    const D* headD = dOut + start * ldQ + h * o.headDim;
    layout.packRowsOf(headQ, ldQ, length, queryRows);
    layout.packRowsOf(headD, ldQ, length, gradRows);
    for (int64_t b = 0; b * kAttentionBlock < length; b++) {
      const int64_t row = b * kAttentionBlock, n = std::min(kAttentionBlock, length - row);
      layout.packDownOf(headQ + row * ldQ, ldQ, n, queryDown + b * layout.downFloats());
      layout.packDownOf(headD + row * ldQ, ldQ, n, gradDown + b * layout.downFloats());
    }
    memset(dQ, 0, static_cast<size_t>(layout.sumFloats(roundUp(length, kAttentionBlock))) * 4);
    for (int64_t i = 0; i < length; i++) {
      const int64_t at = (start + i) * ldQ + h * o.headDim;
      Vec sum = zero();
      for (int64_t c = 0; c < o.headDim; c += kLanes) {
        const int64_t n = o.headDim - c;
        const Vec y = in.out.dtype == DType::f32 ? loadUpTo(in.out.as<const float>() + at + c, n) : loadUpTo(in.out.as<const bf16>() + at + c, n);
        sum = fma(loadUpTo(headD + i * ldQ + c, n), y, sum);
      }
      delta[i] = reduceAdd(sum);
    }

    for (int64_t k0 = 0; k0 < length; k0 += kAttentionBlock) {
      const int64_t keys = std::min(kAttentionBlock, length - k0), width = roundUp(keys, kLanes), keySteps = stepsOf<A>(keys);
      const T *headK = k + (start + k0) * ldK + kvHead * o.headDim, *headV = v + (start + k0) * ldK + kvHead * o.headDim;
      layout.packAlongOf(headK, ldK, keys, keyAlong);
      layout.packAlongOf(headV, ldK, keys, valueAlong);
      layout.packDownOf(headK, ldK, keys, keyDown);
      for (int64_t q0 = k0; q0 < length; q0 += kAttentionBlock) {
        if (o.window > 0 && q0 - (k0 + keys - 1) >= o.window) break;
        const int64_t rows = std::min(kAttentionBlock, length - q0), rowSteps = stepsOf<A>(rows);
        const uint32_t *tilesQ = queryRows + q0 * layout.steps, *tilesD = gradRows + q0 * layout.steps;
        for (int64_t tile = 0; tile * kTileRows < rows; tile++) {
          float *pTile = p + tile * kTileRows * kAttentionBlock, *dTile = dS + tile * kTileRows * kAttentionBlock;
          scoreTile<A>(layout, tilesQ + tile * layout.tileStride, keyAlong, keys, pTile);
          scoreTile<A>(layout, tilesD + tile * layout.tileStride, valueAlong, keys, dTile);
          for (int64_t r = 0; r < kTileRows; r++) {
            const int64_t row = q0 + tile * kTileRows + r;
            float *pRow = pTile + r * kAttentionBlock, *dRow = dTile + r * kAttentionBlock;
            const Visible visible(row, k0, keys, o.window);
            if (row >= length || visible.none()) {
              memset(pRow, 0, static_cast<size_t>(kAttentionBlock) * 4);
              memset(dRow, 0, static_cast<size_t>(kAttentionBlock) * 4);
              continue;
            }
            const bool whole = visible.lo == 0 && visible.hi >= width;
            const Vec shift = set1(lse[(start + row) * o.heads + h]), correction = set1(delta[row]);
            for (int64_t c = 0; c < width; c += kLanes) {
              Vec e = exp(load(pRow + c) * o.scale - shift);
              if (!whole) e = select(visible.mask(c), e, zero());
              store(pRow + c, e);
              store(dRow + c, e * (load(dRow + c) - correction) * o.scale);
            }
          }
        }
        const bool first = q0 == k0;
        const int64_t block = q0 / kAttentionBlock;
        packTransposed<A>(p, rows, keys, packed);
        for (int64_t tile = 0; tile * kTileRows < keys; tile++)
          layout.multiplyDown(packed + tile * tileStride, gradDown + block * layout.downFloats(), rowSteps, dV + tile * kTileRows * layout.dimWidth, !first);
        packTransposed<A>(dS, rows, keys, packed);
        for (int64_t tile = 0; tile * kTileRows < keys; tile++)
          layout.multiplyDown(packed + tile * tileStride, queryDown + block * layout.downFloats(), rowSteps, dK + tile * kTileRows * layout.dimWidth, !first);
        for (int64_t row = 0; row < rows; row += kGroupRows)
          packRows<A>(dS + row * kAttentionBlock, kAttentionBlock, kGroupRows, keys, packed + row / kTileRows * tileStride, tileStride);
        for (int64_t tile = 0; tile * kTileRows < rows; tile++)
          layout.multiplyDown(packed + tile * tileStride, keyDown, keySteps, dQ + (q0 + tile * kTileRows) * layout.dimWidth, true);
      }
      for (int64_t i = 0; i < keys; i++) {
        const int64_t tileAt = i / kTileRows * kTileRows * layout.dimWidth;
        const int64_t to = ((start + k0 + i) * o.heads + h) * o.headDim;
        layout.forRow(dK + tileAt, i % kTileRows, [&](int64_t c, int64_t n, float* sum) { storeUpTo(dKs + to + c, n, load(sum)); });
        layout.forRow(dV + tileAt, i % kTileRows, [&](int64_t c, int64_t n, float* sum) { storeUpTo(dVs + to + c, n, load(sum)); });
      }
    }
    for (int64_t i = 0; i < length; i++) {
      const int64_t to = (start + i) * ldQ + h * o.headDim;
      layout.forRow(dQ + i / kTileRows * kTileRows * layout.dimWidth, i % kTileRows, [&](int64_t c, int64_t n, float* sum) {
        if (in.dQ.dtype == DType::f32) storeUpTo(in.dQ.as<float>() + to + c, n, load(sum));
        else storeUpTo(in.dQ.as<bf16>() + to + c, n, load(sum));
      });
    }
  });

  forBlocks(context, documents.tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      for (int64_t g = 0; g < o.kvHeads; g++)
        for (int64_t c = 0; c < o.headDim; c += kLanes) {
          const int64_t n = o.headDim - c, from = (i * o.heads + g * group) * o.headDim + c, to = i * ldK + g * o.headDim + c;
          Vec key = zero(), value = zero();
          for (int64_t j = 0; j < group; j++) {
            key = key + loadUpTo(dKs + from + j * o.headDim, n);
            value = value + loadUpTo(dVs + from + j * o.headDim, n);
          }
          if (in.dK.dtype == DType::f32) storeUpTo(in.dK.as<float>() + to, n, key), storeUpTo(in.dV.as<float>() + to, n, value);
          else storeUpTo(in.dK.as<bf16>() + to, n, key), storeUpTo(in.dV.as<bf16>() + to, n, value);
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
