// Threads that run the parallel loops of kernels together with their caller. A decode step has some 150 loops of 5 to 20 us:
// helpers spin from one to the next, and starting a loop is one store that they see. ONNX Runtime's pool takes some 3 us a
// loop and spins for 40 ms after the last; a team's helpers sleep after two.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "pause.h"
#include "processor.h"

namespace espalier {

class Team {
 public:
  /// `threads` counts the caller.
  explicit Team(int threads) : threads_(threads < 1 ? 1 : threads) {
    for (int t = 1; t < threads_; t++) helpers_.emplace_back([this] { help(); });
  }
  ~Team() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ends_ = true;
    }
    wake_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return threads_; }

  /// body(user, task) for every task in [0, tasks), each once, in any order on any of the threads; returns when all are done.
  /// One loop at a time has the helpers: another caller's, or one inside a task, runs on its caller alone.
  void run(int64_t tasks, void (*body)(void*, size_t), void* user) {
    std::unique_lock<std::mutex> own(running_, std::defer_lock);
    if (tasks <= 1 || helpers_.empty() || tasks >= kClosed || !own.try_lock()) {
      for (int64_t task = 0; task < tasks; task++) body(user, static_cast<size_t>(task));
      return;
    }
    body_.store(body, std::memory_order_relaxed);
    user_.store(user, std::memory_order_relaxed);
    tasks_.store(tasks, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    callersProcessor_.store(currentProcessor(), std::memory_order_relaxed);
    const uint64_t loop = ++loops_ & 0xffffffffu;
    ticket_.store(loop << 32, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    work(loop);
    spinUntil([&] { return done_.load(std::memory_order_acquire) >= tasks; });
    // Whoever still looks at this loop must not take a task of the next one for one of it.
    ticket_.store(loop << 32 | kClosed, std::memory_order_seq_cst);
  }

 private:
  static constexpr int64_t kClosed = 0xffffffff;
  static constexpr std::chrono::microseconds kSpin{2000};

  /// Takes tasks of a loop until none is left. What describes the loop changes only while its ticket is closed, and a taken
  /// ticket was open.
  void work(uint64_t loop) {
    for (uint64_t ticket = ticket_.load(std::memory_order_acquire);;) {
      const auto task = static_cast<int64_t>(ticket & 0xffffffffu);
      if (ticket >> 32 != loop || task >= tasks_.load(std::memory_order_relaxed)) return;
      auto* body = body_.load(std::memory_order_relaxed);
      void* user = user_.load(std::memory_order_relaxed);
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      body(user, static_cast<size_t>(task));
      done_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  bool hasLoop(uint64_t seen) const {
    const uint64_t ticket = ticket_.load(std::memory_order_seq_cst);
    return ticket >> 32 != seen && static_cast<int64_t>(ticket & 0xffffffffu) != kClosed;
  }

  void help() {
    uint64_t seen = 0;
    for (;;) {
      const auto sleepsAt = std::chrono::steady_clock::now() + kSpin;
      bool hasMoved = false;
      for (int spins = 1; !hasLoop(seen); spins++) {
        pauseThread();
        if (spins % 64) continue;
        // Spinning where the caller ran, and will wake, keeps both on one processor.
        if (const int here = currentProcessor(); !hasMoved && here >= 0 && here == callersProcessor_.load(std::memory_order_relaxed)) {
          leaveProcessor(here);
          hasMoved = true;
        }
        if (std::chrono::steady_clock::now() < sleepsAt) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return ends_ || hasLoop(seen); });
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
        if (ends_) return;
      }
      seen = ticket_.load(std::memory_order_acquire) >> 32;
      work(seen);
    }
  }

  const int threads_;
  std::vector<std::thread> helpers_;
  std::mutex running_;
  uint64_t loops_ = 0;
  /// The loop's number in the upper half, its next task in the lower one; kClosed: none is to be had.
  alignas(64) std::atomic<uint64_t> ticket_{kClosed};
  std::atomic<void (*)(void*, size_t)> body_{nullptr};
  std::atomic<void*> user_{nullptr};
  std::atomic<int64_t> tasks_{0};
  std::atomic<int> callersProcessor_{-1};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
  bool ends_ = false;
};

}  // namespace espalier
