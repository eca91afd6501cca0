// Activations as rows of f32, whatever they are stored as, and what every op here checks and shares.
// Loops are written over fixed lanes or short chunks so that the compiler's vectors serve each instruction set.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>

#include "../kernel.h"
#include "../pause.h"
#include "../simd.h"

namespace espalier {

/// Elements that elementwise kernels convert at a time; a multiple of every vector width that stays in the L1 cache.
constexpr int64_t kChunk = 512;

inline bool isActivation(const Tensor& t) { return t.data && (t.dtype == DType::f32 || t.dtype == DType::bf16); }

inline int64_t lastDim(const Tensor& t) { return t.rank > 0 ? t.dims[t.rank - 1] : 1; }

inline bool sameShape(const Tensor& a, const Tensor& b) {
  if (a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; i++)
    if (a.dims[i] != b.dims[i]) return false;
  return true;
}

inline bool isF32(const Tensor& t) { return t.data && t.dtype == DType::f32; }

/// n elements from `offset` as f32.
inline void loadElements(const Tensor& t, int64_t offset, int64_t n, float* out) {
  if (t.dtype == DType::f32) {
    std::memcpy(out, t.as<const float>() + offset, static_cast<size_t>(n) * 4);
  } else {
    const bf16* p = t.as<const bf16>() + offset;
    for (int64_t i = 0; i < n; i += kLanes) storeUpTo(out + i, n - i, loadUpTo(p + i, n - i));
  }
}

inline void storeElements(const Tensor& t, int64_t offset, int64_t n, const float* in) {
  if (t.dtype == DType::f32) {
    std::memcpy(t.as<float>() + offset, in, static_cast<size_t>(n) * 4);
  } else {
    bf16* p = t.as<bf16>() + offset;
    for (int64_t i = 0; i < n; i += kLanes) storeUpTo(p + i, n - i, loadUpTo(in + i, n - i));
  }
}

/// A view of activations that costs nothing when they are f32: `load` returns a pointer to n floats, in place or in
/// the caller's buffer.
inline const float* viewElements(const Tensor& t, int64_t offset, int64_t n, float* buffer) {
  if (t.dtype == DType::f32) return t.as<const float>() + offset;
  loadElements(t, offset, n, buffer);
  return buffer;
}

/// Sum of a[i] * b[i], in one order whatever the caller's thread.
inline float dotElements(const float* a, const float* b, int64_t n) {
  Vec even = zero(), odd = zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    even = fma(load(a + i), load(b + i), even);
    odd = fma(load(a + i + kLanes), load(b + i + kLanes), odd);
  }
  for (; i < n; i += kLanes) even = fma(loadUpTo(a + i, n - i), loadUpTo(b + i, n - i), even);
  return reduceAdd(even + odd);
}

/// Elements [begin, end) in blocks of one fixed size, in parallel.
template <typename F> void forBlocks(Context& context, int64_t total, int64_t block, F&& f) {
  if (total <= 0) return;
  context.parallelFor((total + block - 1) / block, [&](int64_t task) { f(task * block, std::min(total, (task + 1) * block)); });
}

/// f(worker, task) for every task in [0, tasks), handed out one by one to at most threads() workers: for uneven tasks,
/// and for those that need a buffer per worker. A task's result may not depend on its worker.
template <typename F> void forDynamic(Context& context, int64_t tasks, F&& f) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(context.threads(), tasks));
  context.parallelFor(workers, [&](int64_t worker) {
    for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) f(worker, task);
  });
}

/// f(worker, task) for every task in [0, tasks), on at most kMaxWorkers: each worker takes a run of neighbours, then what
/// others have left, one by one. For tasks that read memory in their order. A task's result may not depend on its worker.
constexpr int64_t kMaxWorkers = 64;
template <typename F> void forRuns(Context& context, int64_t tasks, F&& f) {
  struct alignas(64) Run {
    std::atomic<int64_t> next;
    int64_t end;
  } runs[kMaxWorkers];
  const int64_t workers = std::max<int64_t>(1, std::min({static_cast<int64_t>(context.threads()), tasks, kMaxWorkers}));
  for (int64_t w = 0; w < workers; w++) runs[w].next = tasks * w / workers, runs[w].end = tasks * (w + 1) / workers;
  context.parallelFor(workers, [&](int64_t worker) {
    for (int64_t i = 0; i < workers; i++) {
      Run& run = runs[(worker + i) % workers];
      for (int64_t task = run.next.fetch_add(1); task < run.end; task = run.next.fetch_add(1)) f(worker, task);
    }
  });
}

/// Work too short to share: the first of several workers does it, the others do something of their own and wait for it.
class FirstDoes {
 public:
  template <typename Work, typename Meanwhile> void operator()(Work&& work, Meanwhile&& meanwhile) {
    if (isDone_.load(std::memory_order_acquire)) return;
    if (!isClaimed_.exchange(true)) {
      work();
      isDone_.store(true, std::memory_order_release);
      return;
    }
    meanwhile();
    for (int spins = 0; !isDone_.load(std::memory_order_acquire); spins++)
      if (spins < kSpins) pauseThread();
      else std::this_thread::yield();  // the first one lost its processor
  }

 private:
  static constexpr int kSpins = 2000;
  std::atomic<bool> isClaimed_{false}, isDone_{false};
};

}  // namespace espalier
