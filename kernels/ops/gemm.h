// Building blocks of every matrix product: C[rows, columns] = A[rows, k] . B[k, columns], fp32 accumulation.
// Operands are packed as 32-bit "steps" of the k axis: one float (Fp32) or a pair of bf16 (Bf16, AVX512-BF16 only).
//   packed A: tiles of kTileRows rows, [steps][kTileRows] dwords each, absent rows are zero;
//   packed B: panels of nv (1..kMaxVectors) vectors of columns, [steps][nv * kLanes] dwords, absent columns are zero.
// A tile of C is summed along k in one register chain per element, in order, whatever the partition: the bits of an
// element depend on its row of A and its column of B only. Splitting k and adding into C keeps the same chain.
#pragma once
#include "../simd.h"

namespace espalier {

#if ESPALIER_LANES == 16
constexpr int kTileRows = 8, kMaxVectors = 3;  // 24 accumulators of 32 registers
#elif ESPALIER_LANES == 8
constexpr int kTileRows = 6, kMaxVectors = 2;  // 12 of 16
#else
constexpr int kTileRows = 4, kMaxVectors = 3;  // 12 of 16 (x86), of 32 (arm64)
#endif
constexpr int kPanelColumns = kMaxVectors * kLanes;
/// Tiles that packRows and a thin (nv = 1) product handle together.
constexpr int kTilesPerGroup = kLanes / kTileRows > 0 ? kLanes / kTileRows : 1;
constexpr int kGroupRows = kTilesPerGroup * kTileRows;

/// One float per step.
struct Fp32 {
  static constexpr int kPerStep = 1;
  static ESPALIER_INLINE Vec step(Vec sum, uint32_t a, Vec b) { return fma(set1(floatOf(a)), b, sum); }
  /// kLanes steps starting at p; elements past n read as 0.
  template <typename T> static ESPALIER_INLINE Vec steps(const T* p, int64_t n) { return loadUpTo(p, n); }
  /// One step of kLanes neighbouring columns; `second` is not used.
  template <typename T> static ESPALIER_INLINE Vec across(const T* first, const T*, int64_t n) { return loadUpTo(first, n); }
  static ESPALIER_INLINE Vec join(Vec first, Vec) { return first; }
};

#if defined(ESPALIER_ISA_AVX512BF16)
/// Two bf16 per step, multiplied and added by vdpbf16ps (which flushes subnormals).
struct Bf16 {
  static constexpr int kPerStep = 2;
  static ESPALIER_INLINE Vec step(Vec sum, uint32_t a, Vec b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)b);
  }
  static ESPALIER_INLINE Vec steps(const float* p, int64_t n) {
    const Vec low = loadUpTo(p, n), high = n > kLanes ? loadUpTo(p + kLanes, n - kLanes) : zero();
    return (Vec)_mm512_cvtne2ps_pbh(high, low);
  }
  static ESPALIER_INLINE Vec steps(const bf16* p, int64_t n) {
    if (n >= 2 * kLanes) return load(reinterpret_cast<const float*>(p));
    return (Vec)_mm512_maskz_loadu_epi16((1u << n) - 1, p);
  }
  static ESPALIER_INLINE Vec interleave(__m256i first, __m256i second) {
    return (Vec)_mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
  }
  /// One step of kLanes columns from the values of its two elements.
  static ESPALIER_INLINE Vec join(Vec first, Vec second) {
    alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (Vec)_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), (__m512i)_mm512_cvtne2ps_pbh(second, first));
  }
  /// Columns of rows `first` (low half) and `second` (high half; null reads as 0).
  static ESPALIER_INLINE Vec across(const float* first, const float* second, int64_t n) {
    return join(loadUpTo(first, n), second ? loadUpTo(second, n) : zero());
  }
  static ESPALIER_INLINE Vec across(const bf16* first, const bf16* second, int64_t n) {
    const auto mask = static_cast<__mmask16>(n >= kLanes ? 0xffff : (1u << n) - 1);
    return interleave(_mm256_maskz_loadu_epi16(mask, first),
                      second ? _mm256_maskz_loadu_epi16(mask, second) : _mm256_setzero_si256());
  }
};
/// The arithmetic of the fast path of this instruction set.
using Fast = Bf16;
#else
using Fast = Fp32;
#endif

template <class A> constexpr int64_t stepsOf(int64_t k) { return (k + A::kPerStep - 1) / A::kPerStep; }
constexpr int64_t tilesOf(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
constexpr int64_t roundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
constexpr int64_t panelsOf(int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }
/// Vectors of a panel that holds `columns` <= kPanelColumns columns.
constexpr int vectorsOf(int64_t columns) {
  return columns >= kPanelColumns ? kMaxVectors : static_cast<int>((columns + kLanes - 1) / kLanes);
}

/// Lanes [t * kTileRows, (t + 1) * kTileRows) of v.
ESPALIER_INLINE void storeTile(float* to, Vec v, int t) {
#if ESPALIER_LANES == 16
  _mm256_storeu_ps(to, t ? _mm512_extractf32x8_ps(v, 1) : _mm512_castps512_ps256(v));
#elif ESPALIER_LANES == 8
  (void)t;
  _mm_storeu_ps(to, _mm256_castps256_ps128(v));
  _mm_storel_pi(reinterpret_cast<__m64*>(to + 4), _mm256_extractf128_ps(v, 1));
#else
  (void)t;
  store(to, v);
#endif
}

/// Packs rows [0, rows) of x (row-major, ld elements a row, k of them) as one group of kTilesPerGroup tiles. Tile t of
/// the group starts at out + t * tileStride; rows past `rows` become 0 (also whole tiles, up to `tiles`).
template <class A, typename T>
inline void packRows(const T* x, int64_t ld, int64_t rows, int64_t k, uint32_t* out, int64_t tileStride, int tiles = kTilesPerGroup) {
  const int64_t steps = stepsOf<A>(k);
  for (int64_t s = 0; s < steps; s += kLanes) {
    Vec r[kLanes];
    for (int i = 0; i < kLanes; i++)
      r[i] = i < kGroupRows && i < rows ? A::steps(x + i * ld + s * A::kPerStep, k - s * A::kPerStep) : zero();
    transpose(r);
    const int count = steps - s < kLanes ? static_cast<int>(steps - s) : kLanes;
    for (int t = 0; t < tiles; t++) {
      auto* to = reinterpret_cast<float*>(out + t * tileStride + s * kTileRows);
      for (int j = 0; j < count; j++) storeTile(to + j * kTileRows, r[j], t);
    }
  }
}

/// Packs a panel whose k axis runs down the rows of x: out[step][column], columns [0, columns) of rows [0, k).
template <class A, typename T>
inline void packDown(const T* x, int64_t ld, int64_t k, int64_t columns, int nv, uint32_t* out) {
  for (int64_t i = 0; i < k; i += A::kPerStep)
    for (int v = 0; v < nv; v++, out += kLanes) {
      const int64_t left = columns - v * kLanes;
      const T* first = x + i * ld + v * kLanes;
      store(reinterpret_cast<float*>(out),
            left <= 0 ? zero() : A::across(first, i + A::kPerStep - 1 < k ? first + (A::kPerStep - 1) * ld : nullptr, left));
    }
}

/// Packs a panel whose columns are rows of x and whose k axis runs along them: out[step][row of x].
template <class A, typename T>
inline void packAlong(const T* x, int64_t ld, int64_t k, int64_t columns, int nv, uint32_t* out) {
  const int64_t steps = stepsOf<A>(k), width = static_cast<int64_t>(nv) * kLanes;
  for (int v = 0; v < nv; v++)
    for (int64_t s = 0; s < steps; s += kLanes) {
      Vec r[kLanes];
      for (int i = 0; i < kLanes; i++)
        r[i] = v * kLanes + i < columns ? A::steps(x + (v * kLanes + i) * ld + s * A::kPerStep, k - s * A::kPerStep) : zero();
      transpose(r);
      for (int j = 0; j < kLanes && s + j < steps; j++)
        store(reinterpret_cast<float*>(out + (s + j) * width + v * kLanes), r[j]);
    }
}

/// c[T * kTileRows][NV * kLanes] (= or +=) a . b over `steps` steps. Row i of a is at a[(i / kTileRows) * tileStride +
/// step * stepStride + i % kTileRows]; packed tiles have stepStride kTileRows. Never inlined: in a caller that keeps
/// values of its own, accumulators go to the stack, and a product takes twice as long.
template <class A, int T, int NV>
__attribute__((noinline)) void multiplyTile(const uint32_t* a, int64_t tileStride, int64_t stepStride, const uint32_t* b, int64_t steps,
                                            float* c, bool accumulate) {
  constexpr int kRows = T * kTileRows;
  Vec sum[kRows][NV];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) sum[i][v] = accumulate ? load(c + (i * NV + v) * kLanes) : zero();
  for (int64_t s = 0; s < steps; s++) {
    Vec column[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) column[v] = load(reinterpret_cast<const float*>(b) + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
      const uint32_t value = a[(i / kTileRows) * tileStride + i % kTileRows];
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) sum[i][v] = A::step(sum[i][v], value, column[v]);
    }
    a += stepStride;
    b += NV * kLanes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) store(c + (i * NV + v) * kLanes, sum[i][v]);
}

/// One packed tile times one packed panel of nv vectors: c[kTileRows][nv * kLanes].
template <class A>
inline void multiplyTile(const uint32_t* tile, const uint32_t* panel, int nv, int64_t steps, float* c, bool accumulate = false) {
  if (nv == 1) return multiplyTile<A, 1, 1>(tile, 0, kTileRows, panel, steps, c, accumulate);
  if (nv == 2) return multiplyTile<A, 1, 2>(tile, 0, kTileRows, panel, steps, c, accumulate);
  if constexpr (kMaxVectors > 2) return multiplyTile<A, 1, 3>(tile, 0, kTileRows, panel, steps, c, accumulate);
}

/// A group of kTilesPerGroup tiles (tileStride apart) times one panel: c[kGroupRows][nv * kLanes].
template <class A>
inline void multiplyGroup(const uint32_t* group, int64_t tileStride, const uint32_t* panel, int nv, int64_t steps, float* c) {
  if (nv == 1) return multiplyTile<A, kTilesPerGroup, 1>(group, tileStride, kTileRows, panel, steps, c, false);
  for (int t = 0; t < kTilesPerGroup; t++)
    multiplyTile<A>(group + t * tileStride, panel, nv, steps, c + t * kTileRows * nv * kLanes);
}

/// Whether rows of T are packed steps as they lie in memory.
template <class A, typename T> constexpr bool kRowsAreSteps = sizeof(T) * A::kPerStep == 4 && (sizeof(T) == 4) == (A::kPerStep == 1);

/// kGroupRows rows of steps as they lie in memory (ld dwords a row) times a panel of one vector: c[kGroupRows][kLanes].
/// The same chain as over packed rows, so the same bits.
template <class A> inline void multiplyRowsInPlace(const uint32_t* rows, int64_t ld, const uint32_t* panel, int64_t steps, float* c) {
  Vec sum[kGroupRows] = {};
  for (int64_t s = 0; s < steps; s++) {
    const Vec column = load(reinterpret_cast<const float*>(panel) + s * kLanes);
    const uint32_t* at = rows + s;
#pragma GCC unroll 16
    for (int i = 0; i < kGroupRows; i++, at += ld) sum[i] = A::step(sum[i], *at, column);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kGroupRows; i++) store(c + i * kLanes, sum[i]);
}

}  // namespace espalier
