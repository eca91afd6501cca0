// The decode role of QuantLinear: few rows against integer codes. A row is rounded to 8 bits per 32 elements (scale
// max |x| / 127); with codes q, w = d q + m per block, y = sum over blocks of s_x (d sum q x + m sum x), the inner sums
// exact integers. A stripe's words (stripes.h) are operands as they lie: lane by lane the codes of neighbouring rows of W
// meet a word of x in all lanes. Every row of x runs over a stripe while it is in cache. A row's result is the same in any
// batch: its chain of fp32 sums depends on its own numbers alone.
#pragma once
#include <type_traits>

#include "byte_dot.h"
#include "quant_linear.h"
#include "rows.h"

namespace espalier {

/// Rows of x that meet a stripe together.
constexpr int kTogether = kLanes == 16 ? 8 : 4;

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

/// How far ahead of its use a stream of codes is asked for.
constexpr int64_t kAheadBytes = 4096;

/// kLanes neighbouring rows of W as they lie in a whole stripe.
struct StripeColumns {
  const uint32_t* words;               // [word][kStripeRows]
  const uint16_t *scales, *offsets;    // [block][kStripeRows]; offsets only where the format has them

  /// The next part of the stripes is asked for while block b is multiplied.
  ESPALIER_INLINE void fetch(int64_t b, int64_t perBlock, bool hasOffset) const {
    const auto* p = reinterpret_cast<const char*>(words + b * perBlock * kStripeRows) + kAheadBytes;
    for (int64_t i = 0; i < perBlock * kStripeRows * 4; i += 64) __builtin_prefetch(p + i);
    if (b % 2) return;  // two blocks' scales are a line
    __builtin_prefetch(reinterpret_cast<const char*>(scales + b * kStripeRows) + kAheadBytes / 8);
    if (hasOffset) __builtin_prefetch(reinterpret_cast<const char*>(offsets + b * kStripeRows) + kAheadBytes / 8);
  }
};

/// sums[i] = kLanes columns of row `row` + i, i < R.
template <Format format, int R>
inline void multiplyBytes(const ByteRows& x, int64_t row, const StripeColumns& columns, int64_t perScale, bool fetches, Vec* sums) {
  constexpr bool isNibbles = format != Format::int8;
  constexpr int kWords = isNibbles ? 4 : 8;  // of a block: eight steps either way
  const int64_t blocks = x.blocks(), stride = x.columns / 4;
  const uint32_t* at = x.words + row * stride;
  const float *xScale = x.scales + row * blocks, *xSum = x.sums + row * blocks;
  Vec total[R] = {};
  for (int64_t b = 0; b < blocks; b++) {
    if (fetches) columns.fetch(b, kWords, format == Format::int4);
    IVec s[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) s[i] = isNibbles ? IVec{} : startOfBytes(static_cast<int32_t>(xSum[i * blocks + b]));
#pragma GCC unroll 8
    for (int j = 0; j < kWords; j++) {
      const UVec w = reinterpret_cast<UVec>(loadI(columns.words + (b * kWords + j) * kStripeRows));
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        const uint32_t* own = at + i * stride + b * 8;
        if (isNibbles) s[i] = addCodes(addCodes(s[i], w & 0x0f0f0f0fu, own[2 * j]), (w >> 4) & 0x0f0f0f0fu, own[2 * j + 1]);
        else s[i] = dotBytes(s[i], w, own[j]);
      }
    }
    const int64_t place = b / perScale * kStripeRows;
    const Vec scale = loadHalves(columns.scales + place, kLanes);
    const Vec offset = format == Format::int4 ? loadHalves(columns.offsets + place, kLanes) : format == Format::int4Symmetric ? scale * -8.f : zero();
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      Vec t = toVec(isNibbles ? closeCodes(s[i]) : s[i]) * scale;
      if (isNibbles) t = fma(offset, set1(xSum[i * blocks + b]), t);
      total[i] = fma(t, set1(xScale[i * blocks + b]), total[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) sums[i] = total[i];
}

/// `count` rows, at most R, in one pass: sums [count][kLanes].
template <Format format, int R>
inline void multiplyRows(const ByteRows& x, int64_t row, int64_t count, const StripeColumns& columns, int64_t perScale, bool fetches, float* sums) {
  if constexpr (R > 1)
    if (count < R) return multiplyRows<format, R - 1>(x, row, count, columns, perScale, fetches, sums);
  Vec s[R];
  multiplyBytes<format, R>(x, row, columns, perScale, fetches, s);
  for (int i = 0; i < R; i++) store(sums + i * kLanes, s[i]);
}

/// A stripe of fewer rows is copied to one of kStripeRows; the lanes that this adds hold zeros.
struct WideStripe {
  static int64_t floats(const Weights& w) { return (w.rowWords + w.rowBlocks) * kStripeRows; }

  static StripeColumns widen(const Weights& w, int64_t row, float* room) {
    const int64_t words = w.rowWords, blocks = w.rowBlocks, height = stripeHeight(w.rows, row);
    const int64_t first = row / kStripeRows * kStripeRows;
    auto* codes = reinterpret_cast<uint32_t*>(room);
    auto *scales = reinterpret_cast<uint16_t*>(codes + words * kStripeRows), *offsets = scales + blocks * kStripeRows;
    const auto copy = [&](const auto* from, auto* to, int64_t count) {
      memset(to, 0, sizeof *to * static_cast<size_t>(count * kStripeRows));
      for (int64_t i = 0; i < count; i++) memcpy(to + i * kStripeRows, from + i * height, sizeof *to * static_cast<size_t>(height));
    };
    copy(w.codeWord(first, 0), codes, words);
    copy(static_cast<const uint16_t*>(w.w[1]) + w.scalePlace(first, 0), scales, blocks);
    if (w.w[2]) copy(static_cast<const uint16_t*>(w.w[2]) + w.scalePlace(first, 0), offsets, blocks);
    return {codes + row - first, scales + row - first, offsets + row - first};
  }
};

/// Slots that rows of a batch use, each once.
constexpr int64_t kMaxUsedSlots = 64;
/// Linears of one input that are computed together.
constexpr int kMaxMembers = 4;

/// One linear of a group, with the slots of the adapters that its rows use and t = scaling A x of every row.
struct DecodeMember {
  LinearInputs in;
  int64_t usedSlots[kMaxUsedSlots], usedCount = 0, maxRank = 0, tasks = 0;
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
template <Format format> const char* runDecodeOf(Context& context, const LinearOptions& options, DecodeMember* members, int memberCount) noexcept {
  constexpr bool isNibbles = format != Format::int8;
  const LinearInputs& shared = members[0].in;
  const int64_t columns = shared.weights.columns, block = shared.weights.block, rows = shared.rows;
  const int threads = std::max(1, context.threads());
  int64_t maxRank = 0, tasks = 0;
  for (int m = 0; m < memberCount; m++) {
    if (const char* problem = members[m].findAdapters()) return problem;
    maxRank = std::max(maxRank, members[m].maxRank);
    members[m].tasks = (members[m].in.weights.rows + kLanes - 1) / kLanes;
    tasks += members[m].tasks;
  }
  const int64_t wideFloats = WideStripe::floats(shared.weights);
  Carver carver;
  const int64_t wordsAt = carver.floats(rows * columns / 4), xScalesAt = carver.floats(rows * columns / kXBlock);
  const int64_t xSumsAt = carver.floats(rows * columns / kXBlock), thinAt = carver.floats(memberCount * rows * maxRank);
  const int64_t preparedAt = carver.floats(options.prologue == Prologue::none ? 0 : rows * columns);
  const int64_t rankPadded = roundUp(maxRank, kLanes);
  const int64_t perWorker = roundUp(wideFloats + (rankPadded + rows) * kLanes, 16);
  const int64_t workersAt = carver.floats(perWorker * threads);
  auto* scratch = static_cast<float*>(context.scratch(carver.bytes()));
  if (!scratch) return "QuantLinear: out of memory";
  const ByteRows x{reinterpret_cast<uint32_t*>(scratch + wordsAt), scratch + xScalesAt, scratch + xSumsAt, columns};
  for (int m = 0; m < memberCount; m++) members[m].thin = scratch + thinAt + m * rows * maxRank;

  auto prepare = [&](int64_t row) {
    const auto take = [&](const auto* p) {
      roundRow<isNibbles>(p, x, row);
      for (int m = 0; m < memberCount; m++) members[m].multiplyThin(p, row);
    };
    const auto typed = [&](const auto* all) {
      const auto* p = all + row * columns;
      float* own = scratch + preparedAt + row * columns;
      switch (options.prologue) {
        case Prologue::rmsNorm: normalizeRow(viewElements(shared.x, row * columns, columns, own), shared.with.template as<const float>(), columns, options.eps, own); break;
        case Prologue::swiGlu: gateRow(p, static_cast<decltype(p)>(shared.with.data) + row * columns, columns, own); break;
        default: return take(p);
      }
      take(own);
    };
    shared.x.dtype == DType::f32 ? typed(shared.x.as<const float>()) : typed(shared.x.as<const bf16>());
  };
  const bool isShared = rows > 2;
  if (isShared) context.parallelFor(rows, prepare);
  FirstDoes first;
  bool hasStarted[kMaxWorkers] = {};
  const int64_t perScale = block / kXBlock;
  forRuns(context, tasks, [&](int64_t worker, int64_t task) {
    const DecodeMember* member = members;
    for (; task >= member->tasks; member++) task -= member->tasks;
    const Weights& weights = member->in.weights;
    if (!isShared && !hasStarted[worker]) {
      hasStarted[worker] = true;
      first(
          [&] { for (int64_t row = 0; row < rows; row++) prepare(row); },
          [&] {
            const auto* start = reinterpret_cast<const char*>(weights.codeWord(task * kLanes, 0));
            for (int64_t i = 0; i < kAheadBytes; i += 64) __builtin_prefetch(start + i);
          });
    }
    float* room = scratch + workersAt + worker * perWorker;
    float *b = room + wideFloats, *sums = b + rankPadded * kLanes;
    const int64_t column = task * kLanes, place = weights.scalePlace(column, 0);
    const auto *scales = static_cast<const uint16_t*>(weights.w[1]), *offsets = static_cast<const uint16_t*>(weights.w[2]);
    const StripeColumns stripe = stripeHeight(weights.rows, column) < kStripeRows
                                     ? WideStripe::widen(weights, column, room)
                                     : StripeColumns{weights.codeWord(column, 0), scales + place, offsets ? offsets + place : nullptr};
    for (int64_t row = 0; row < rows; row += kTogether)
      multiplyRows<format, kTogether>(x, row, std::min<int64_t>(kTogether, rows - row), stripe, perScale, row == 0, sums + row * kLanes);
    member->finish(column, sums, kLanes, b);
  });
  return nullptr;
}

inline const char* runDecode(Context& context, const LinearOptions& options, DecodeMember* members, int count) noexcept {
  if (members[0].in.adapterX) return "QuantLinear: the decode role has no input of its own for the adapter";
  switch (members[0].in.weights.format) {
    case Format::int8: return runDecodeOf<Format::int8>(context, options, members, count);
    case Format::int4Symmetric: return runDecodeOf<Format::int4Symmetric>(context, options, members, count);
    default: return runDecodeOf<Format::int4>(context, options, members, count);
  }
}

}  // namespace espalier
