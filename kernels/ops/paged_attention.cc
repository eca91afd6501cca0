// PagedAttention: turns queries and keys by their angles (where it gets them), writes the new rows' keys and values into their blocks (paged_cache.h), then each row attends to its
// sequence up to its own position. Rows of one sequence are taken in tiles of up to 24 lines (token x head of a group);
// keys in chunks of 512 at absolute positions: scores of a chunk, its softmax, its sum, merged with the chunks before it in
// order (flash decoding, arXiv 2307.08691). Whether the chunks of a tile are one task or many changes nothing: a line's
// numbers depend on its own query and keys alone. Products in bf16 (fp32 with a float cache), sums in fp32.
#include <limits>

#include "paged_cache.h"
#include "rows.h"

namespace espalier {
namespace {

constexpr int64_t kChunkBlocks = 16, kChunkKeys = kChunkBlocks * kCacheBlock, kMaxLines = 24;
constexpr int kPair = 2;                            // vectors of a panel
constexpr int64_t kPanel = kPair * kLanes;
constexpr int64_t kAheadBlocks = 2;                 // reading one from memory takes as long as multiplying two or three
constexpr int kLineTile = kLanes == 16 ? 8 : 4;     // lines that share a load

struct Tile {
  int64_t firstRow, rows, sequence, lastPosition, firstPosition, firstChunk, chunks;
};

/// c[line][v * kLanes] (ld apart) = or += lines . panel; line i of a at a + i * aLd, panel rows bLd dwords apart. Meanwhile
/// kPanel dwords a step are asked for from `ahead` on: what is read next lies on another page, where the processor does not
/// look by itself.
template <class A, int L, bool accumulate>
inline void multiplyLines(const uint32_t* a, int64_t aLd, const uint32_t* b, int64_t bLd, int64_t steps, int nv, float* c, int64_t ld, const uint32_t* ahead) {
  Vec sum[L][kPair];
#pragma GCC unroll 8
  for (int i = 0; i < L; i++)
#pragma GCC unroll 2
    for (int v = 0; v < kPair; v++) sum[i][v] = accumulate && v < nv ? load(c + i * ld + v * kLanes) : zero();
  for (int64_t s = 0; s < steps; s++) {
    if (ahead)
      for (int64_t i = 0; i < kPanel; i += 16) __builtin_prefetch(ahead + s * kPanel + i, 0, 2);
    const auto* row = reinterpret_cast<const float*>(b + s * bLd);
    const Vec first = load(row), second = nv > 1 ? load(row + kLanes) : first;
#pragma GCC unroll 8
    for (int i = 0; i < L; i++) {
      const uint32_t value = a[i * aLd + s];
      sum[i][0] = A::step(sum[i][0], value, first);
      sum[i][1] = A::step(sum[i][1], value, second);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < L; i++)
#pragma GCC unroll 2
    for (int v = 0; v < kPair; v++)
      if (v < nv) store(c + i * ld + v * kLanes, sum[i][v]);
}

template <class A, bool accumulate>
inline void multiplyAllLines(const uint32_t* a, int64_t aLd, int64_t lines, const uint32_t* b, int64_t bLd, int64_t steps, int nv, float* c, int64_t ld, const uint32_t* ahead) {
  const auto tile = [&](auto count, int64_t i) {
    multiplyLines<A, decltype(count)::value, accumulate>(a + i * aLd, aLd, b, bLd, steps, nv, c + i * ld, ld, i == 0 ? ahead : nullptr);
    return decltype(count)::value;
  };
  int64_t i = 0;
  while (i + kLineTile <= lines) i += tile(std::integral_constant<int, kLineTile>(), i);
  while (i + 3 <= lines) i += tile(std::integral_constant<int, 3>(), i);
  while (i < lines) i += tile(std::integral_constant<int, 1>(), i);
}

class PagedAttention : public Kernel {
 public:
  explicit PagedAttention(const Attributes& a)
      : heads_(a.integer("num_heads", 1)), kvHeads_(a.integer("num_kv_heads", 1)), headDim_(a.integer("head_dim", 64)),
        window_(a.integer("window", 0)), cacheType_(static_cast<CacheType>(a.integer("cache_type", 1))), scale_(a.number("scale", 1.f)) {}

  const char* run(Context& context) noexcept override {
    const Tensor q = context.input(0), k = context.input(1), v = context.input(2), tables = context.input(3), sequences = context.input(4),
                 positions = context.input(5), keys = context.input(6), values = context.input(7), cosines = context.input(10), sines = context.input(11);
    if (!isActivation(q) || !isActivation(k) || !isActivation(v) || q.rank != 2 || k.rank != 2 || v.rank != 2)
      return "PagedAttention: q, k and v must be activations [N, ..]";
    if (heads_ < 1 || kvHeads_ < 1 || heads_ % kvHeads_ || headDim_ < 2 || headDim_ % 2) return "PagedAttention: num_heads must be a multiple of num_kv_heads, head_dim even";
    const int64_t n = q.dims[0];
    if (q.dims[1] != heads_ * headDim_ || k.dims[0] != n || v.dims[0] != n || k.dims[1] != kvHeads_ * headDim_ || v.dims[1] != k.dims[1])
      return "PagedAttention: q must be [N, H*Dh], k and v [N, K*Dh]";
    if (!tables || tables.dtype != DType::i32 || tables.rank != 2) return "PagedAttention: blockTables must be int32 [S, B]";
    if (!sequences || sequences.dtype != DType::i32 || sequences.size() != n || !positions || positions.dtype != DType::i32 || positions.size() != n)
      return "PagedAttention: rowSequence and positions must be int32 [N]";
    if (cosines && (cosines.dtype != DType::f32 || cosines.size() != n * headDim_ / 2 || sines.dtype != DType::f32 || sines.size() != cosines.size()))
      return "PagedAttention: cos and sin must be f32 [N, Dh/2]";
    const int64_t entryBytes = cacheType_ == CacheType::f32 ? 4 : cacheType_ == CacheType::bf16 ? 2 : 1;
    if (!keys || keys.dtype != DType::u8 || keys.rank != 3 || keys.dims[0] != kvHeads_ || keys.dims[2] != kCacheBlock * headDim_ * entryBytes ||
        !values || values.dtype != DType::u8 || values.size() != keys.size())
      return "PagedAttention: the cache must be uint8 [K, blocks, bytes of 32 entries of Dh]";
    PagedCache cache;
    cache.type = cacheType_;
    cache.blocks = keys.dims[1];
    cache.headDim = headDim_;
    // The outputs are the inputs' memory; where they are not, their contents move first.
    const auto mutated = [&](int input, int output) {
      const Tensor from = context.input(input);
      const Tensor to = context.output(output, from.dims, from.rank);
      if (!to) return from;
      if (to.data != from.data) memcpy(to.data, from.data, static_cast<size_t>(from.size() * (from.dtype == DType::u8 ? 1 : 2)));
      return to;
    };
    cache.keys = mutated(6, 1);
    cache.values = mutated(7, 2);
    if (cache.isBytes()) {
      const Tensor keyScales = context.input(8), valueScales = context.input(9);
      if (!keyScales || !valueScales || keyScales.dtype != DType::f16 || keyScales.size() != keys.dims[0] * keys.dims[1] * kCacheBlock || valueScales.size() != keyScales.size())
        return "PagedAttention: an int8 cache needs half scales [K, blocks, 32]";
      cache.keyScales = mutated(8, 3);
      cache.valueScales = mutated(9, 4);
    }
    const Tensor out = context.output(0, q.dims, q.rank);
    if (!out) return "PagedAttention: no output";
    const auto* table = tables.as<const int32_t>();
    const auto *row = sequences.as<const int32_t>(), *position = positions.as<const int32_t>();
    const int64_t perSequence = tables.dims[1];
    for (int64_t i = 0; i < n; i++) {
      if (row[i] < 0 || row[i] >= tables.dims[0]) return "PagedAttention: rowSequence names a sequence that blockTables lacks";
      if (position[i] < 0 || position[i] / kCacheBlock >= perSequence) return "PagedAttention: a position is outside its block table";
      for (int64_t b = 0; b <= position[i] / kCacheBlock; b++)
        if (b == position[i] / kCacheBlock || i == 0 || row[i] != row[i - 1])
          if (const int32_t block = table[row[i] * perSequence + b]; block < 0 || block >= cache.blocks) return "PagedAttention: a block table names a block that the cache lacks";
    }
    const Rows rows{q, k, v, out, table, row, position, cosines.as<const float>(), sines.as<const float>(), n, perSequence};
    return cacheType_ == CacheType::f32 ? attend<Fp32>(context, rows, cache) : attend<PairDot>(context, rows, cache);
  }

 private:
  struct Rows {
    Tensor q, k, v, out;
    const int32_t *table, *sequence, *position;
    const float *cosine, *sine;  // null: q and k are turned already
    int64_t count, perSequence;
  };

  /// Every head of `from` turned by its row's angles, in `room`; the tensor that lies there.
  Tensor turned(Context& context, const Tensor& from, const Rows& in, void* room) const {
    const int64_t half = headDim_ / 2, width = from.dims[1];
    Tensor to = from;
    to.data = room;
    const auto typed = [&](auto* x, auto* y) {
      forBlocks(context, in.count, std::max<int64_t>(1, 16384 / width), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++)
          for (int64_t at = row * width; at < (row + 1) * width; at += headDim_) rotateHead(x + at, y + at, in.cosine + row * half, in.sine + row * half, headDim_);
      });
    };
    from.dtype == DType::f32 ? typed(from.as<const float>(), to.as<float>()) : typed(from.as<const bf16>(), to.as<bf16>());
    return to;
  }

  template <class A> const char* attend(Context& context, Rows in, const PagedCache& cache) noexcept {
    constexpr int P = A::kPerStep;
    const int64_t group = heads_ / kvHeads_, dim = headDim_, dimSteps = dim / P, tileRows = std::max<int64_t>(1, kMaxLines / group);
    const int64_t lines = tileRows * group, dimPadded = roundUp(dim, kPanel);
    const int threads = std::max(1, context.threads());

    // Scratch: tiles, then per worker its buffers, then partial results where chunks are spread over tasks.
    int64_t used = 0;
    const auto carve = [&](int64_t floats) {
      const int64_t at = used;
      used += roundUp(floats, 16);
      return at;
    };
    const int64_t tilesAt = carve(in.count * static_cast<int64_t>(sizeof(Tile) / 4));
    const int64_t queryAt = carve(lines * dimSteps), scoreAt = carve(lines * kChunkKeys), weightAt = carve(lines * kChunkKeys / P);
    const int64_t blockAt = carve(kCacheBlock * dim / P + kPanel), partAt = carve(lines * (dimPadded + 2)), tokenAt = carve(4 * dim);
    const int64_t stateAt = carve(lines * (dimPadded + 2)), workerEnd = used, perWorker = workerEnd - queryAt;
    used += perWorker * (threads - 1);
    // Tiles are known only after they are listed: an upper bound of the partial results, used when there are few rows.
    int64_t longest = 0;
    for (int64_t i = 0; i < in.count; i++) longest = std::max<int64_t>(longest, in.position[i] + 1);
    const int64_t mostChunks = (longest + kChunkKeys - 1) / kChunkKeys;
    const bool isSpread = mostChunks > 1 && in.count * kvHeads_ < 8 * threads;
    const int64_t partialSize = lines * (dimPadded + 2);
    const int64_t partialAt = carve(isSpread ? in.count * kvHeads_ * mostChunks * partialSize : 0);
    const int64_t turnedQAt = carve(in.cosine ? in.count * heads_ * dim : 0), turnedKAt = carve(in.cosine ? in.count * kvHeads_ * dim : 0);
    auto* scratch = static_cast<float*>(context.scratch(static_cast<size_t>(used) * 4));
    if (!scratch) return "PagedAttention: out of memory";
    if (in.cosine) in.q = turned(context, in.q, in, scratch + turnedQAt), in.k = turned(context, in.k, in, scratch + turnedKAt);

    auto* tiles = reinterpret_cast<Tile*>(scratch + tilesAt);
    int64_t tileCount = 0;
    for (int64_t i = 0; i < in.count;) {
      Tile t{i, 1, in.sequence[i], in.position[i], in.position[i], 0, 0};
      while (t.rows < tileRows && i + t.rows < in.count && in.sequence[i + t.rows] == t.sequence) {
        t.lastPosition = std::max<int64_t>(t.lastPosition, in.position[i + t.rows]);
        t.firstPosition = std::min<int64_t>(t.firstPosition, in.position[i + t.rows]);
        t.rows++;
      }
      t.firstChunk = window_ > 0 ? std::max<int64_t>(0, t.firstPosition - window_ + 1) / kChunkKeys : 0;
      t.chunks = t.lastPosition / kChunkKeys + 1 - t.firstChunk;
      i += t.rows;
      tiles[tileCount++] = t;
    }

    // Keys and values first: a row sees those of its own batch. One task a kv head, so that halves of a step never race; few
    // rows of sequences that are one tile each are written by the tasks that read them.
    const auto write = [&](int64_t head, int64_t first, int64_t count, float* buffer) {
      for (int64_t i = first; i < first + count; i++) {
        const int64_t at = (i * kvHeads_ + head) * dim, p = in.position[i];
        writeToken(cache, in.table[in.sequence[i] * in.perSequence + p / kCacheBlock], head, p % kCacheBlock, in.k, in.v, at, buffer);
      }
    };
    bool writesOwn = !isSpread && in.count * kvHeads_ <= 16;
    for (int64_t i = 1; writesOwn && i < tileCount; i++)
      for (int64_t j = 0; j < i; j++) writesOwn = writesOwn && tiles[i].sequence != tiles[j].sequence;
    if (!writesOwn) forDynamic(context, kvHeads_, [&](int64_t worker, int64_t head) { write(head, 0, in.count, scratch + worker * perWorker + tokenAt); });

    const auto worker0 = [&](int64_t worker) { return scratch + worker * perWorker; };
    const auto packQueries = [&](const Tile& t, int64_t head, float* own) {
      auto* to = reinterpret_cast<uint32_t*>(own + queryAt);
      for (int64_t l = 0; l < t.rows * group; l++) {
        const int64_t at = ((t.firstRow + l / group) * heads_ + head * group + l % group) * dim;
        const auto convert = [&](const auto* from, auto* out) {
          for (int64_t d = 0; d < dim; d += kLanes) storeUpTo(out + d, dim - d, loadUpTo(from + d, dim - d));
        };
        const auto typed = [&](auto* out) { in.q.dtype == DType::f32 ? convert(in.q.as<const float>() + at, out) : convert(in.q.as<const bf16>() + at, out); };
        P == 1 ? typed(reinterpret_cast<float*>(to + l * dimSteps)) : typed(reinterpret_cast<bf16*>(to + l * dimSteps));
      }
    };
    // One chunk of one tile and kv head: sums[line][dimPadded], top[line], total[line] in `to`.
    const auto chunk = [&](const Tile& t, int64_t head, int64_t index, float* own, float* to) {
      const int64_t count = t.rows * group, key0 = (t.firstChunk + index) * kChunkKeys, keys = std::min(kChunkKeys, t.lastPosition + 1 - key0);
      const int64_t blocks = (keys + kCacheBlock - 1) / kCacheBlock;
      const int32_t* table = in.table + t.sequence * in.perSequence + key0 / kCacheBlock;
      auto *queries = reinterpret_cast<uint32_t*>(own + queryAt), *weights = reinterpret_cast<uint32_t*>(own + weightAt);
      auto* buffer = reinterpret_cast<uint32_t*>(own + blockAt);
      float *scores = own + scoreAt, *sums = to, *top = to + lines * dimPadded, *total = top + lines;
      // What is read kAheadBlocks after block b of the keys or values; 8-bit ones are widened block by block instead.
      const auto ahead = [&](bool isValues, int64_t b) -> const uint32_t* {
        if (cache.isBytes()) return nullptr;
        int64_t next = b + kAheadBlocks;
        if (next < blocks) return stepsOfBlock(cache, isValues ? cache.values : cache.keys, table[next], head, nullptr);
        next -= blocks;
        if (!isValues) return next < blocks ? stepsOfBlock(cache, cache.values, table[next], head, nullptr) : nullptr;
        const bool isThere = key0 + kChunkKeys + next * kCacheBlock <= t.lastPosition;  // in the next chunk
        return isThere ? stepsOfBlock(cache, cache.keys, table[kChunkBlocks + next], head, nullptr) : nullptr;
      };
      for (int64_t b = 0; b < blocks; b++) {
        const uint32_t *panel = stepsOfBlock(cache, cache.keys, table[b], head, buffer), *later = ahead(false, b);
        for (int64_t c = 0; c < kCacheBlock; c += kPanel)
          multiplyAllLines<A, false>(queries, dimSteps, count, panel + c, kCacheBlock, dimSteps, kPair, scores + b * kCacheBlock + c, kChunkKeys,
                                     later ? later + c * dimSteps : nullptr);
      }
      const float factor = scale_ * kLog2E;
      for (int64_t l = 0; l < count; l++) {
        const int64_t position = in.position[t.firstRow + l / group];
        // Visible keys of this chunk: [first, last).
        const int64_t last = std::min(keys, position + 1 - key0), first = window_ > 0 ? std::max<int64_t>(0, position - window_ + 1 - key0) : 0;
        weigh<A>(cache, table, head, scores + l * kChunkKeys, first, last, blocks * kCacheBlock, factor, weights + l * (kChunkKeys / P), top[l], total[l]);
      }
      memset(sums, 0, static_cast<size_t>(count * dimPadded) * 4);
      for (int64_t b = 0; b < blocks; b++) {
        const uint32_t *panel = stepsOfBlock(cache, cache.values, table[b], head, buffer), *later = ahead(true, b);
        const int64_t steps = (std::min(kCacheBlock, keys - b * kCacheBlock) + P - 1) / P;
        for (int64_t c = 0; c < dim; c += kPanel) {
          if (dim - c >= kPanel) {
            multiplyAllLines<A, true>(weights + b * kCacheBlock / P, kChunkKeys / P, count, panel + c, dim, steps, kPair, sums + c, dimPadded,
                                      later ? later + c * kCacheBlock / P : nullptr);
            continue;
          }
          // A narrow rest: whole vectors of it that do not pass the block's end, through a copy.
          const int64_t left = dim - c;
          alignas(64) uint32_t rest[kCacheBlock * kPanel];
          for (int64_t s = 0; s < steps; s++)
            for (int64_t j = 0; j < kPanel; j++) rest[s * kPanel + j] = j < left ? panel[s * dim + c + j] : 0;
          multiplyAllLines<A, true>(weights + b * kCacheBlock / P, kChunkKeys / P, count, rest, kPanel, steps, kPair, sums + c, dimPadded, nullptr);
        }
      }
    };
    const auto merge = [&](int64_t count, float* state, const float* part, bool isFirst) {
      if (isFirst) {
        memcpy(state, part, static_cast<size_t>(partialSize) * 4);
        return;
      }
      for (int64_t l = 0; l < count; l++) {
        if (part[lines * dimPadded + lines + l] == 0.f) continue;  // it sees nothing there
        float &top = state[lines * dimPadded + l], &total = state[lines * dimPadded + lines + l];
        const float other = part[lines * dimPadded + l], higher = std::max(top, other);
        const float a = std::exp2(top - higher), b = std::exp2(other - higher);
        for (int64_t d = 0; d < dimPadded; d += kLanes)
          store(state + l * dimPadded + d, fma(load(part + l * dimPadded + d), set1(b), load(state + l * dimPadded + d) * set1(a)));
        total = total * a + part[lines * dimPadded + lines + l] * b;
        top = higher;
      }
    };
    const auto finish = [&](const Tile& t, int64_t head, const float* state) {
      for (int64_t l = 0; l < t.rows * group; l++) {
        const int64_t at = ((t.firstRow + l / group) * heads_ + head * group + l % group) * dim;
        const Vec inverse = set1(1.f / state[lines * dimPadded + lines + l]);
        const auto typed = [&](auto* out) {
          for (int64_t d = 0; d < dim; d += kLanes) storeUpTo(out + at + d, dim - d, load(state + l * dimPadded + d) * inverse);
        };
        in.out.dtype == DType::f32 ? typed(in.out.as<float>()) : typed(in.out.as<bf16>());
      }
    };

    if (!isSpread) {
      forDynamic(context, tileCount * kvHeads_, [&](int64_t worker, int64_t task) {
        const Tile& t = tiles[tileCount - 1 - task % tileCount];
        const int64_t head = task / tileCount;
        float *own = worker0(worker), *state = own + stateAt, *part = own + partAt;
        if (writesOwn) write(head, t.firstRow, t.rows, own + tokenAt);
        packQueries(t, head, own);
        for (int64_t c = 0; c < t.chunks; c++) {
          chunk(t, head, c, own, c == 0 ? state : part);
          if (c > 0) merge(t.rows * group, state, part, false);
        }
        finish(t, head, state);
      });
      return nullptr;
    }
    float* partial = scratch + partialAt;
    forRuns(context, tileCount * kvHeads_ * mostChunks, [&](int64_t worker, int64_t task) {
      const Tile& t = tiles[task / mostChunks % tileCount];
      const int64_t head = task / mostChunks / tileCount, c = task % mostChunks;
      if (c >= t.chunks) return;
      float* own = worker0(worker);
      packQueries(t, head, own);
      chunk(t, head, c, own, partial + task * partialSize);
    });
    for (int64_t head = 0; head < kvHeads_; head++)
      for (int64_t i = 0; i < tileCount; i++) {
        const Tile& t = tiles[i];
        float *state = worker0(0) + stateAt, *parts = partial + (head * tileCount + i) * mostChunks * partialSize;
        for (int64_t c = 0; c < t.chunks; c++) merge(t.rows * group, state, parts + c * partialSize, c == 0);
        finish(t, head, state);
      }
    return nullptr;
  }

  /// Scores of one line become its weights of keys [first, last), packed in steps up to `padded` keys; the rest is 0.
  template <class A>
  void weigh(const PagedCache& cache, const int32_t* table, int64_t head, float* s, int64_t first, int64_t last, int64_t padded, float factor,
             uint32_t* weights, float& top, float& total) const {
    constexpr int P = A::kPerStep;
    const auto scaled = [&](const Tensor& scales, float* x) {
      for (int64_t b = 0; b < padded; b += kCacheBlock) {
        const auto* half = scales.as<const uint16_t>() + cache.scalesOf(table[b / kCacheBlock], head);
        for (int64_t j = 0; j < kCacheBlock; j++) x[b + j] *= halfToFloat(half[j]);
      }
    };
    if (cache.isBytes()) scaled(cache.keyScales, s);
    Vec best = set1(-std::numeric_limits<float>::infinity());
    IVec lane;
    for (int l = 0; l < kLanes; l++) lane[l] = l;
    const auto seen = [&](int64_t j) {
      const IVec key = lane + static_cast<int32_t>(j);
      return (key >= set1i(static_cast<int32_t>(first))) & (key < set1i(static_cast<int32_t>(last)));
    };
    for (int64_t j = 0; j < padded; j += kLanes) best = larger(best, select(seen(j), load(s + j), best));
    top = reduceMax(best) * factor;
    if (last <= first) top = -std::numeric_limits<float>::infinity();
    Vec sum = zero();
    const Vec shift = set1(last <= first ? 0.f : -top), clamp = set1(-125.f);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec x = larger(clamp, fma(load(s + j), set1(factor), shift));
      const Vec p = select(seen(j), exp2Of<Fp32>(x), zero());
      sum = sum + p;
      store(s + j, p);
    }
    total = reduceAdd(sum);
    if (cache.isBytes()) scaled(cache.valueScales, s);
    if (P == 1) memcpy(weights, s, static_cast<size_t>(padded) * 4);
    else
      for (int64_t j = 0; j < padded; j += kLanes) store(reinterpret_cast<bf16*>(weights) + j, load(s + j));
  }

  int64_t heads_, kvHeads_, headDim_, window_;
  CacheType cacheType_;
  float scale_;
};

const KernelDef kPagedAttentionDefs[] = {
    {"PagedAttention", 1, 12, 1, 5, {DType::none, DType::u8, DType::u8, DType::f16, DType::f16},
     [](const Attributes& a, DType) -> Kernel* { return new PagedAttention(a); }},
};
ESPALIER_REGISTER(kPagedAttentionDefs);

}  // namespace
}  // namespace espalier
