// A Context over plain memory and a team of its own, so that a kernel can be tested and timed without ONNX Runtime.
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
#include "../team.h"

namespace espalier {

class MockContext : public Context {
 public:
  explicit MockContext(Team& team) : team_(team) {}
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
  int threads() override { return team_.threads(); }
  void parallel(int64_t tasks, void (*body)(void*, size_t), void* user) override { team_.run(tasks, body, user); }
  bool poison = false;

 private:
  Team& team_;
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
