// The decode role of QuantLinear: few rows against integer codes. A row is rounded to 8 bits per 32 elements (scale
// max |x| / 127); with codes q, w = d q + m per block, y = sum over blocks of s_x (d sum q x + m sum x), the inner sums
// exact integers. Weights are read once: kLanes rows of W are transposed as 32-bit words of codes, then every row of x
// runs over them. A row's result is the same in any batch: its chain of fp32 sums depends on its own numbers alone.
#pragma once
#include <type_traits>

#include "byte_dot.h"
#include "quant_linear.h"

namespace espalier {

/// Groups of kLanes columns that a task multiplies together.
constexpr int kGroups = kLanes == 16 ? 2 : 1;

/// Elements of x that share a scale.
constexpr int64_t kXBlock = 32;

inline bool hasIntegerCodes(const Weights& w) {
  return (w.format == Format::int4 || w.format == Format::int4Symmetric || w.format == Format::int8) && w.columns % kXBlock == 0;
}

/// Rows of x as bytes, [row][K / 4] words; per block its scale and the sum of its bytes. For 4-bit codes the words come in
/// the order of nibbles: of eight elements first those at even places, then those at odd ones.
struct ByteRows {
  uint32_t* words;
  float* scales;   // [row][K / 32]
  float* sums;     // [row][K / 32]
  int64_t columns;
  int64_t blocks() const { return columns / kXBlock; }
};

template <bool isNibbles, typename X> inline void roundRow(const X* x, const ByteRows& to, int64_t row) {
  typedef int8_t Bytes __attribute__((vector_size(32)));
  for (int64_t b = 0; b < to.blocks(); b++) {
    float values[kXBlock];
    Vec top = zero();
    for (int i = 0; i < kXBlock; i += kLanes) {
      const Vec v = load(x + b * kXBlock + i);
      store(values + i, v);
      top = max(top, abs(v));
    }
    const float largest = reduceMax(top), inverse = largest > 0 ? kByteLimit / largest : 0.f;
    alignas(32) int8_t bytes[kXBlock];
    IVec sum = {};
    for (int i = 0; i < kXBlock; i += kLanes) {
      // rounds to nearest even: |v| <= 127
      const IVec q = reinterpret_cast<IVec>(fma(load(values + i), set1(inverse), set1(12582912.f))) - 0x4b400000;
      const BVec narrow = __builtin_convertvector(q, BVec);
      memcpy(bytes + i, &narrow, sizeof narrow);
      sum += q;
    }
    Bytes v;
    memcpy(&v, bytes, sizeof v);
    if (isNibbles)
      v = __builtin_shufflevector(v, v, 0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15, 16, 18, 20, 22, 17, 19, 21, 23, 24, 26, 28, 30,
                                  25, 27, 29, 31);
    memcpy(to.words + (row * to.columns + b * kXBlock) / 4, &v, sizeof v);
    to.scales[row * to.blocks() + b] = largest / kByteLimit;
    to.sums[row * to.blocks() + b] = reduceAdd(toVec(sum));  // below 2^24: exact
  }
}

/// How far ahead of their use bytes of codes are asked for.
constexpr int64_t kAheadBytes = 8192;

/// Asks the outer cache for a range (the inner one has no room for as many lines on their way).
inline void fetch(const char* p, int64_t bytes, const char* end) {
  for (const char* last = std::min(p + bytes, end); p < last; p += 64) __builtin_prefetch(p, 0, 2);
}

/// kLanes rows of W from `row` on: words [K / codes per word][width], of which these are kLanes neighbours. What is needed
/// later is asked for meanwhile: sixteen streams at once are more than the processor follows by itself.
template <bool isNibbles> inline void transposeWords(const Weights& w, int64_t row, int64_t present, int64_t width, uint32_t* out) {
  const int64_t rowBytes = isNibbles ? w.columns / 2 : w.columns, words = rowBytes / 4;
  const auto *base = static_cast<const char*>(w.w[0]), *bytes = base + row * rowBytes;
  const auto *scales = static_cast<const char*>(w.w[1]), *offsets = static_cast<const char*>(w.w[2]);
  const int64_t scaleRow = w.columns / w.block * 2, perStep = (scaleRow * kLanes * kLanes + words - 1) / words;
  int64_t scaleAt = row * scaleRow + kAheadBytes * scaleRow / rowBytes;
  for (int64_t j = 0; j < words; j += kLanes, scaleAt += perStep) {
    fetch(bytes + kAheadBytes + j * kLanes * 4, kLanes * kLanes * 4, base + w.rows * rowBytes);
    fetch(scales + scaleAt, perStep, scales + w.rows * scaleRow);
    if (w.format == Format::int4) fetch(offsets + scaleAt, perStep, offsets + w.rows * scaleRow);
    Vec r[kLanes];
    for (int64_t i = 0; i < kLanes; i++)
      r[i] = i < present ? loadUpTo(reinterpret_cast<const float*>(bytes + i * rowBytes) + j, words - j) : zero();
    transpose(r);
    for (int64_t l = 0; l < kLanes && j + l < words; l++) store(reinterpret_cast<float*>(out + (j + l) * width), r[l]);
  }
}

/// sums[i * G + g] = columns of group g of row `row` + i, i < R: G groups of kLanes columns share a row's bytes.
template <bool isNibbles, bool hasOffset, int R, int G>
inline void multiplyBytes(const ByteRows& x, int64_t row, const uint32_t* words, const float* scales, const float* offsets, int64_t perScale,
                          int64_t groupStride, Vec* sums) {
  constexpr int kWords = isNibbles ? 4 : 8;  // of a block: eight steps either way
  const int64_t blocks = x.blocks(), stride = x.columns / 4;
  const uint32_t* at = x.words + row * stride;
  const float *xScale = x.scales + row * blocks, *xSum = x.sums + row * blocks;
  Vec total[R][G] = {};
  for (int64_t b = 0; b < blocks; b++, words += kWords * G * kLanes) {
    IVec s[R][G];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 2
      for (int g = 0; g < G; g++) s[i][g] = isNibbles ? IVec{} : startOfBytes(static_cast<int32_t>(xSum[i * blocks + b]));
#pragma GCC unroll 8
    for (int j = 0; j < kWords; j++) {
      UVec w[G];
#pragma GCC unroll 2
      for (int g = 0; g < G; g++) w[g] = reinterpret_cast<UVec>(loadI(words + (j * G + g) * kLanes));
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        const uint32_t* own = at + i * stride + b * 8;
#pragma GCC unroll 2
        for (int g = 0; g < G; g++) {
          if (isNibbles) s[i][g] = addCodes(addCodes(s[i][g], w[g] & 0x0f0f0f0fu, own[2 * j]), (w[g] >> 4) & 0x0f0f0f0fu, own[2 * j + 1]);
          else s[i][g] = dotBytes(s[i][g], w[g], own[j]);
        }
      }
    }
#pragma GCC unroll 2
    for (int g = 0; g < G; g++) {
      const int64_t place = b / perScale * kLanes + g * groupStride;
      const Vec scale = load(scales + place), offset = hasOffset ? load(offsets + place) : zero();
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        Vec t = toVec(isNibbles ? closeCodes(s[i][g]) : s[i][g]) * scale;
        if (hasOffset) t = fma(offset, set1(xSum[i * blocks + b]), t);
        total[i][g] = fma(t, set1(xScale[i * blocks + b]), total[i][g]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 2
    for (int g = 0; g < G; g++) sums[i * G + g] = total[i][g];
}

#if defined(ESPALIER_ISA_AVX512BF16)
/// The inner sums of one row of x with kLanes rows of W, dots[block][lane]: the same integers as multiplyBytes makes, without
/// turning the codes round first. 64 bytes of a row meet the row's bytes; their sums are turned round instead, which is less.
template <bool isNibbles>
inline void dotRows(const ByteRows& x, const Weights& w, int64_t row, int64_t present, int32_t* dots) {
  const int64_t rowBytes = isNibbles ? w.columns / 2 : w.columns, perChunk = isNibbles ? 4 : 2;
  const auto* bytes = static_cast<const char*>(w.w[0]) + row * rowBytes;
  const char* end = static_cast<const char*>(w.w[0]) + w.rows * rowBytes;
  const int64_t scaleRow = w.columns / w.block * 2, scaleAt = row * scaleRow + kAheadBytes * scaleRow / rowBytes;
  const auto fetchScales = [&](const void* base) {
    const auto* p = static_cast<const char*>(base);
    fetch(p + scaleAt, scaleRow * kLanes, p + w.rows * scaleRow);
  };
  fetchScales(w.w[1]);
  if (w.format == Format::int4) fetchScales(w.w[2]);
  const __m512i low = _mm512_set1_epi8(15), flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t c = 0; c * 64 < rowBytes; c++) {
    fetch(bytes + kAheadBytes + c * 64 * kLanes, 64 * kLanes, end);
    const int64_t words = std::min<int64_t>(16, rowBytes / 4 - c * 16);
    const auto mask = static_cast<__mmask16>((1u << words) - 1);
    const uint32_t* own = x.words + c * (isNibbles ? 32 : 16);
    __m512i first, second = {};
    if (isNibbles) {
      const auto mask2 = static_cast<uint32_t>((1ull << (2 * words)) - 1);
      const __m512i a = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(mask2), own), b = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(mask2 >> 16), own + 16);
      first = _mm512_permutex2var_epi32(a, even, b), second = _mm512_permutex2var_epi32(a, odd, b);
    } else {
      first = _mm512_maskz_loadu_epi32(mask, own);
    }
    __m512i quads[4];
    for (int q = 0; q < 4; q++) {
      __m512i sum[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const int64_t r = std::min<int64_t>(q * 4 + i, present - 1);
        const __m512i v = _mm512_maskz_loadu_epi32(mask, bytes + r * rowBytes + c * 64);
        sum[i] = isNibbles ? _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(v, low), first),
                                                 _mm512_and_si512(_mm512_srli_epi16(v, 4), low), second)
                           : _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_xor_si512(v, flip), first);
      }
      // [row 0 .. 3] of each 16 bytes
      const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[0], sum[1]), _mm512_unpackhi_epi32(sum[0], sum[1]));
      const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[2], sum[3]), _mm512_unpackhi_epi32(sum[2], sum[3]));
      quads[q] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    const __m512i t0 = _mm512_shuffle_i32x4(quads[0], quads[1], 0x44), t1 = _mm512_shuffle_i32x4(quads[2], quads[3], 0x44);
    const __m512i t2 = _mm512_shuffle_i32x4(quads[0], quads[1], 0xee), t3 = _mm512_shuffle_i32x4(quads[2], quads[3], 0xee);
    const __m512i parts[4] = {_mm512_shuffle_i32x4(t0, t1, 0x88), _mm512_shuffle_i32x4(t0, t1, 0xdd), _mm512_shuffle_i32x4(t2, t3, 0x88),
                              _mm512_shuffle_i32x4(t2, t3, 0xdd)};
    for (int64_t p = 0; p < perChunk && c * perChunk + p < x.blocks(); p++) {
      const int64_t b = c * perChunk + p;
      const __m512i dot = isNibbles ? parts[p] : _mm512_add_epi32(_mm512_add_epi32(parts[2 * p], parts[2 * p + 1]), (__m512i)startOfBytes(static_cast<int32_t>(x.sums[b])));
      _mm512_storeu_si512(dots + b * kLanes, dot);
    }
  }
}

/// kLanes columns of the only row, from the inner sums: the chain of multiplyBytes.
template <bool hasOffset>
inline Vec addDots(const ByteRows& x, const int32_t* dots, const float* scales, const float* offsets, int64_t perScale) {
  Vec total = {};
  for (int64_t b = 0; b < x.blocks(); b++) {
    const int64_t place = b / perScale * kLanes;
    Vec t = toVec(loadI(dots + b * kLanes)) * load(scales + place);
    if (hasOffset) t = fma(load(offsets + place), set1(x.sums[b]), t);
    total = fma(t, set1(x.scales[b]), total);
  }
  return total;
}
#endif

/// Slots that rows of a batch use, each once.
constexpr int64_t kMaxUsedSlots = 64;
/// Linears of one input that are computed together.
constexpr int kMaxMembers = 4;

/// One linear of a group, with the slots of the adapters that its rows use and t = scaling A x of every row.
struct DecodeMember {
  LinearInputs in;
  int64_t usedSlots[kMaxUsedSlots], usedCount = 0, maxRank = 0, pairs = 0;
  float* thin = nullptr;  // [row][maxRank]

  // Without rowSlot every row has slot 0.
  int64_t slotOf(int64_t row) const { return in.rowSlot ? in.rowSlot[row] : 0; }
  /// The slot of a row among those in use; usedCount: none.
  int64_t usedOf(int64_t row) const { return std::find(usedSlots, usedSlots + usedCount, slotOf(row)) - usedSlots; }

  /// The adapter of a slot; checked before it is used.
  const char* readAdapter(int64_t slot, Adapter& adapter) const { return readSlot(in.slots, slot, in.weights.rows, in.weights.columns, adapter); }

  const char* findAdapters() {
    for (int64_t row = 0; row < in.rows; row++) {
      if (slotOf(row) < 0 || usedOf(row) < usedCount) continue;
      Adapter adapter;
      if (const char* problem = readAdapter(slotOf(row), adapter)) return problem;
      if (adapter.rank == 0) continue;
      if (usedCount == kMaxUsedSlots) return "QuantLinear: more than 64 adapters in one batch";
      usedSlots[usedCount++] = slotOf(row);
      maxRank = std::max(maxRank, adapter.rank);
    }
    return nullptr;
  }

  template <typename X> void multiplyThin(const X* x, int64_t row) const {
    const int64_t columns = in.weights.columns;
    Adapter adapter;
    if (usedOf(row) == usedCount || readAdapter(slotOf(row), adapter)) return;
    const float factor = adapter.scaling * (in.rowWeight ? in.rowWeight[row] : 1.f);
    for (int64_t r = 0; r < adapter.rank; r++) {
      Vec even = zero(), odd = zero();
      const float* a = adapter.a + r * columns;
      for (int64_t k = 0; k < columns; k += 2 * kLanes) {
        even = fma(load(a + k), load(x + k), even);
        odd = fma(load(a + k + kLanes), load(x + k + kLanes), odd);
      }
      thin[row * maxRank + r] = reduceAdd(even + odd) * factor;
    }
  }

  /// sums (stride floats a row) of kLanes columns become rows of y. b: room for maxRank vectors.
  void finish(int64_t column, float* sums, int64_t stride, float* b) const {
    const int64_t out = in.weights.rows, present = std::min<int64_t>(kLanes, out - column);
    for (int64_t u = 0; u < usedCount; u++) {
      Adapter adapter;
      if (readAdapter(usedSlots[u], adapter)) continue;
      packAlong<Fp32>(adapter.b + column * adapter.rank, adapter.rank, adapter.rank, present, 1, reinterpret_cast<uint32_t*>(b));
      for (int64_t row = 0; row < in.rows; row++) {
        if (slotOf(row) != usedSlots[u]) continue;
        Vec sum = load(sums + row * stride);
        for (int64_t r = 0; r < adapter.rank; r++) sum = fma(set1(thin[row * maxRank + r]), load(b + r * kLanes), sum);
        if (adapter.factor) sum = sum * loadUpTo(adapter.factor + column, present);
        store(sums + row * stride, sum);
      }
    }
    for (int64_t row = 0; row < in.rows; row++) {
      const int64_t at = row * out + column;
      finishRow(in.y, at, sums + row * stride, {nullptr, nullptr, in.bias ? in.bias + column : nullptr, in.residual ? in.residual + at : nullptr}, present);
    }
  }
};

/// The members share rows, input, inner dimension, format and block.
template <bool isNibbles, bool hasOffset> const char* runDecodeOf(Context& context, DecodeMember* members, int memberCount) noexcept {
  constexpr CodeKind kKind = isNibbles ? CodeKind::affine : CodeKind::byte;
  const LinearInputs& shared = members[0].in;
  const int64_t columns = shared.weights.columns, block = shared.weights.block, rows = shared.rows;
  const int threads = std::max(1, context.threads());
  int64_t maxRank = 0, pairs = 0;
  for (int m = 0; m < memberCount; m++) {
    if (const char* problem = members[m].findAdapters()) return problem;
    maxRank = std::max(maxRank, members[m].maxRank);
    members[m].pairs = (members[m].in.weights.rows + kGroups * kLanes - 1) / (kGroups * kLanes);
    pairs += members[m].pairs;
  }
  const int64_t words = columns / (isNibbles ? 8 : 4), scaleBlocks = columns / block, scaleStride = roundUp(scaleBlocks, kLanes) * kLanes;
  Carver carver;
  const int64_t wordsAt = carver.floats(rows * columns / 4), xScalesAt = carver.floats(rows * columns / kXBlock);
  const int64_t xSumsAt = carver.floats(rows * columns / kXBlock), thinAt = carver.floats(memberCount * rows * maxRank);
  const int64_t rankPadded = roundUp(maxRank, kLanes);
  const int64_t perWorker = roundUp(kGroups * (words * kLanes + 2 * scaleStride) + (rankPadded + kGroups * rows) * kLanes, 16);
  const int64_t workersAt = carver.floats(perWorker * threads);
  auto* scratch = static_cast<float*>(context.scratch(carver.bytes()));
  if (!scratch) return "QuantLinear: out of memory";
  const ByteRows x{reinterpret_cast<uint32_t*>(scratch + wordsAt), scratch + xScalesAt, scratch + xSumsAt, columns};
  for (int m = 0; m < memberCount; m++) members[m].thin = scratch + thinAt + m * rows * maxRank;

  auto prepare = [&](int64_t row) {
    const auto typed = [&](const auto* p) {
      roundRow<isNibbles>(p + row * columns, x, row);
      for (int m = 0; m < memberCount; m++) members[m].multiplyThin(p + row * columns, row);
    };
    shared.x.dtype == DType::f32 ? typed(shared.x.as<const float>()) : typed(shared.x.as<const bf16>());
  };
  // A row or two are not worth waking the pool for.
  if (rows <= 2) for (int64_t row = 0; row < rows; row++) prepare(row);
  else context.parallelFor(rows, prepare);

  const int64_t perScale = block / kXBlock;
  bool hasStarted[kMaxWorkers] = {};
  forRuns(context, pairs, [&](int64_t worker, int64_t pair) {
    const DecodeMember* member = members;
    for (; pair >= member->pairs; member++) pair -= member->pairs;
    const Weights& weights = member->in.weights;
    if (!hasStarted[worker]) {
      // What is asked for ahead later on.
      const int64_t rowBytes = isNibbles ? columns / 2 : columns;
      const auto *base = static_cast<const char*>(weights.w[0]), *at = base + pair * kGroups * kLanes * rowBytes;
      fetch(at, kAheadBytes, base + weights.rows * rowBytes);
      hasStarted[worker] = true;
    }
    float* own = scratch + workersAt + worker * perWorker;
    auto* panel = reinterpret_cast<uint32_t*>(own);
    float *scales = own + kGroups * words * kLanes, *offsets = scales + kGroups * scaleStride;
    float *b = offsets + kGroups * scaleStride, *sums = b + rankPadded * kLanes;
    const int64_t first = pair * kGroups * kLanes, count = std::min<int64_t>(kGroups, (weights.rows - first + kLanes - 1) / kLanes);
#if defined(ESPALIER_ISA_AVX512BF16)
    if (rows == 1) {
      for (int64_t g = 0; g < count; g++) {
        const int64_t column = first + g * kLanes, present = std::min<int64_t>(kLanes, weights.rows - column);
        transposeScales<kKind>(weights, column, present, 0, scaleBlocks, scales, offsets);
        dotRows<isNibbles>(x, weights, column, present, reinterpret_cast<int32_t*>(panel));
        store(sums, addDots<hasOffset>(x, reinterpret_cast<const int32_t*>(panel), scales, offsets, perScale));
        member->finish(column, sums, kLanes, b);
      }
      return;
    }
#endif
    for (int64_t g = 0; g < count; g++) {
      const int64_t column = first + g * kLanes, present = std::min<int64_t>(kLanes, weights.rows - column);
      transposeWords<isNibbles>(weights, column, present, count * kLanes, panel + g * kLanes);
      transposeScales<kKind>(weights, column, present, 0, scaleBlocks, scales + g * scaleStride, offsets + g * scaleStride);
    }
    int64_t row = 0;
    const auto tiles = [&](auto rowCount, auto groupCount) {
      constexpr int R = decltype(rowCount)::value, G = decltype(groupCount)::value;
      for (; row + R <= rows; row += R) {
        Vec s[R * G];
        multiplyBytes<isNibbles, hasOffset, R, G>(x, row, panel, scales, offsets, perScale, scaleStride, s);
        for (int i = 0; i < R * G; i++) store(sums + (row * G + i) * kLanes, s[i]);
      }
    };
    const auto allRows = [&](auto groupCount) {
      tiles(std::integral_constant<int, 4>(), groupCount);
      tiles(std::integral_constant<int, 2>(), groupCount);
      tiles(std::integral_constant<int, 1>(), groupCount);
    };
    if (count == 1) allRows(std::integral_constant<int, 1>());
    else allRows(std::integral_constant<int, kGroups>());
    for (int64_t g = 0; g < count; g++) member->finish(first + g * kLanes, sums + g * kLanes, count * kLanes, b);
  });
  return nullptr;
}

inline const char* runDecode(Context& context, DecodeMember* members, int count) noexcept {
  if (members[0].in.adapterX) return "QuantLinear: the decode role has no input of its own for the adapter";
  return members[0].in.weights.format == Format::int8 ? runDecodeOf<false, false>(context, members, count)
                                                      : runDecodeOf<true, true>(context, members, count);
}

}  // namespace espalier
