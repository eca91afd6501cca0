// Loops over tasks on all threads, by how the tasks are shared out. A task's result may never depend on its worker.
#pragma once
#include <algorithm>
#include <atomic>

#include "../kernel.h"
#include "../pause.h"

namespace espalier {

/// Elements [begin, end) in blocks of one fixed size, in parallel.
template <typename F> void forBlocks(Context& context, int64_t total, int64_t block, F&& f) {
  if (total <= 0) return;
  context.parallelFor((total + block - 1) / block, [&](int64_t task) { f(task * block, std::min(total, (task + 1) * block)); });
}

/// f(worker, task) for every task in [0, tasks), handed out one by one to at most threads() workers: for uneven tasks,
/// and for those that need a buffer per worker.
template <typename F> void forDynamic(Context& context, int64_t tasks, F&& f) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(context.threads(), tasks));
  context.parallelFor(workers, [&](int64_t worker) {
    for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) f(worker, task);
  });
}

/// f(worker, task) for every task in [0, tasks), on at most kMaxWorkers: each worker takes a run of neighbours, then what
/// others have left, one by one. For tasks that read memory in their order.
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

constexpr int64_t kMaxStageBlocks = 8;
/// Tasks of one block: those that prepare it (pack its rows), and those that need it prepared (multiply them).
struct StageCounts {
  int64_t first, second;
};

/// first(worker, block, task) for every first task of a block, then second(worker, block, task); when all blocks are
/// prepared, last(worker, task) for every task in [0, lasts). count(block) gives a block's tasks, at most kMaxStageBlocks blocks.
/// A worker begins with a block of its own, whose prepared rows so stay in its cache (fetched from another core's they cost
/// up to a fifth of a product where cores share none), and then helps with the others'.
template <typename Count, typename First, typename Second, typename Last>
void forStages(Context& context, int64_t blocks, int64_t lasts, Count&& count, First&& first, Second&& second, Last&& last) {
  struct alignas(64) Block {
    std::atomic<int64_t> nextFirst{0}, ready{0}, nextSecond{0};
    StageCounts tasks{};
  } list[kMaxStageBlocks];
  std::atomic<int64_t> nextLast{0};
  for (int64_t b = 0; b < blocks; b++) list[b].tasks = count(b);
  const int64_t workers = std::min<int64_t>(std::max(1, context.threads()), kMaxWorkers);
  context.parallelFor(workers, [&](int64_t worker) {
    for (int64_t i = 0; i < blocks; i++) {
      const int64_t b = (worker * blocks / workers + i) % blocks;
      Block& block = list[b];
      const int64_t firsts = block.tasks.first, seconds = block.tasks.second;
      for (int64_t task = block.nextFirst.fetch_add(1); task < firsts; task = block.nextFirst.fetch_add(1)) {
        first(worker, b, task);
        block.ready.fetch_add(1, std::memory_order_release);
      }
      spinUntil([&] { return block.ready.load(std::memory_order_acquire) >= firsts; });
      for (int64_t task = block.nextSecond.fetch_add(1); task < seconds; task = block.nextSecond.fetch_add(1)) second(worker, b, task);
    }
    for (int64_t task = nextLast.fetch_add(1); task < lasts; task = nextLast.fetch_add(1)) last(worker, task);
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
    spinUntil([&] { return isDone_.load(std::memory_order_acquire); });
  }

 private:
  std::atomic<bool> isClaimed_{false}, isDone_{false};
};

}  // namespace espalier
