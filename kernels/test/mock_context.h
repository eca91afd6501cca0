// A Context over plain memory and std::thread, so that a kernel can be tested and timed without ONNX Runtime.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../kernel.h"

namespace espalier {

/// Threads that spin shortly, then sleep; tasks are dealt in equal runs as ONNX Runtime's ParallelFor does.
class MockPool {
 public:
  explicit MockPool(int threads) : threads_(threads) {
    for (int t = 1; t < threads; t++) workers_.emplace_back([this, t] { loop(t); });
  }
  ~MockPool() {
    stop_ = true;
    generation_.fetch_add(1);
    for (auto& worker : workers_) worker.join();
  }
  int threads() const { return threads_; }
  void run(int64_t tasks, void (*body)(void*, size_t), void* user) {
    tasks_ = tasks, body_ = body, user_ = user;
    pending_.store(threads_ - 1);
    generation_.fetch_add(1);
    part(0);
    while (pending_.load() > 0) __builtin_ia32_pause();
  }

 private:
  void part(int t) {
    for (int64_t i = tasks_ * t / threads_; i < tasks_ * (t + 1) / threads_; i++) body_(user_, static_cast<size_t>(i));
  }
  void loop(int t) {
    for (long seen = 0;;) {
      int spins = 0;
      while (generation_.load() == seen)
        if (++spins > 20000) std::this_thread::sleep_for(std::chrono::microseconds(50));
        else __builtin_ia32_pause();
      seen++;
      if (stop_) return;
      part(t);
      pending_.fetch_sub(1);
    }
  }
  int threads_;
  std::vector<std::thread> workers_;
  std::atomic<long> generation_{0};
  std::atomic<int> pending_{0};
  std::atomic<bool> stop_{false};
  int64_t tasks_ = 0;
  void (*body_)(void*, size_t) = nullptr;
  void* user_ = nullptr;
};

class MockContext : public Context {
 public:
  explicit MockContext(MockPool& pool) : pool_(pool) {}
  ~MockContext() override { std::free(scratch_); }
  std::vector<Tensor> inputs, outputs;  // outputs: bound memory; null data = not asked for
  size_t scratchBytes = 0;

  Tensor input(int i) override { return i < static_cast<int>(inputs.size()) ? inputs[static_cast<size_t>(i)] : Tensor{}; }
  Tensor output(int i, const int64_t* dims, int rank) override {
    if (i >= static_cast<int>(outputs.size())) return {};
    Tensor t = outputs[static_cast<size_t>(i)];
    t.rank = rank;
    for (int d = 0; d < rank; d++) t.dims[d] = dims[d];
    return t;
  }
  void* scratch(size_t bytes) override {
    if (bytes > scratchBytes) {
      std::free(scratch_);
      scratch_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      scratchBytes = bytes;
    }
    memset(scratch_, 0xff, poison ? bytes : 0);  // NaNs: what is read before it is written shows
    return scratch_;
  }
  int threads() override { return pool_.threads(); }
  void parallel(int64_t tasks, void (*body)(void*, size_t), void* user) override { pool_.run(tasks, body, user); }
  bool poison = false;

 private:
  MockPool& pool_;
  void* scratch_ = nullptr;
};

class MockAttributes : public Attributes {
 public:
  std::map<std::string, double> values;
  int64_t integer(const char* name, int64_t fallback) const override {
    const auto found = values.find(name);
    return found == values.end() ? fallback : static_cast<int64_t>(found->second);
  }
  float number(const char* name, float fallback) const override {
    const auto found = values.find(name);
    return found == values.end() ? fallback : static_cast<float>(found->second);
  }
};

inline std::unique_ptr<Kernel> makeKernel(const char* name, const Attributes& attributes, DType activation) {
  for (KernelList* list = KernelList::head(); list; list = list->next)
    for (int i = 0; i < list->count; i++)
      if (!strcmp(list->defs[i].name, name)) return std::unique_ptr<Kernel>(list->defs[i].create(attributes, activation));
  std::fprintf(stderr, "no kernel %s\n", name);
  std::exit(1);
}

}  // namespace espalier
