// Operators that only the runtime's tests use: they report what the adapter hands to a kernel.
#include <chrono>
#include <thread>

#include "kernel.h"

namespace espalier {
namespace {

/// Describe(a, b?, c?, d?) -> f32[16]: for each input its type, rank, elements and first dimension; 0 where absent. Second
/// output `sum` f32[1]?: whether it is asked for shows in element 15 of the first.
class Describe : public Kernel {
 public:
  const char* run(Context& context) noexcept override {
    const Tensor y = context.output(0, {16});
    float* values = y.as<float>();
    for (int i = 0; i < 16; i++) values[i] = 0;
    for (int i = 0; i < 4; i++) {
      const Tensor x = context.input(i);
      if (!x) continue;
      float* v = values + 4 * i;
      v[0] = static_cast<float>(x.dtype);
      if (i == 3) continue;
      v[1] = static_cast<float>(x.rank);
      v[2] = static_cast<float>(x.size());
      v[3] = x.rank ? static_cast<float>(x.dims[0]) : 0;
    }
    const Tensor second = context.output(1, {1});
    if (second) *second.as<float>() = 42;
    values[15] = second ? 1 : 0;
    return nullptr;
  }
};

/// Axpy(x act, y act) -> act: y + a * x, by rows over the pool through scratch; a attribute, default 1.
class Axpy : public Kernel {
 public:
  Axpy(float a, bool fails) : a_(a), fails_(fails) {}
  const char* run(Context& context) noexcept override {
    if (fails_) return "asked to fail";
    const Tensor x = context.input(0), y = context.input(1);
    if (x.dtype != DType::f32 || y.dtype != DType::f32) return "x and y must be f32";
    float* scratch = static_cast<float*>(context.scratch(static_cast<size_t>(x.size()) * 4));
    if (!scratch) return "no memory";
    const Tensor out = context.output(0, x.dims, x.rank);
    if (!out) return "no output";
    const int64_t rows = x.dims[0], width = rows ? x.size() / rows : 0;
    context.parallelFor(rows, [&](int64_t row) {
      for (int64_t i = row * width; i < (row + 1) * width; i++) scratch[i] = y.as<float>()[i] + a_ * x.as<float>()[i];
      for (int64_t i = row * width; i < (row + 1) * width; i++) out.as<float>()[i] = scratch[i];
    });
    return nullptr;
  }

 private:
  const float a_;
  const bool fails_;
};

/// Sleep(x act) -> act: a copy after `ms` milliseconds.
class Sleep : public Kernel {
 public:
  explicit Sleep(int64_t ms) : ms_(ms) {}
  const char* run(Context& context) noexcept override {
    std::this_thread::sleep_for(std::chrono::milliseconds(ms_));
    const Tensor x = context.input(0);
    const Tensor y = context.output(0, x.dims, x.rank);
    if (!y || x.dtype != y.dtype) return "x must have the type of y";
    const int64_t bytes = x.size() * (x.dtype == DType::bf16 ? 2 : 4);
    for (int64_t i = 0; i < bytes; i++) y.as<char>()[i] = x.as<char>()[i];
    return nullptr;
  }

 private:
  const int64_t ms_;
};

/// ReadPast(x f32) -> f32[1]: the element after the last, for the test that sanitizer builds see it.
class ReadPast : public Kernel {
 public:
  const char* run(Context& context) noexcept override {
    const Tensor x = context.input(0);
    *context.output(0, {1}).as<float>() = x.as<volatile float>()[x.size()];
    return nullptr;
  }
};

const KernelDef defs[] = {
    {"ReadPast", 1, 1, 1, 1, {DType::f32}, [](const Attributes&, DType) -> Kernel* { return new ReadPast; }},
    {"Describe", 1, 4, 1, 2, {DType::f32, DType::f32}, [](const Attributes&, DType) -> Kernel* { return new Describe; }},
    {"Axpy", 2, 2, 1, 1, {DType::none},
     [](const Attributes& a, DType) -> Kernel* { return new Axpy(a.number("a", 1), a.integer("fails", 0) != 0); }},
    {"Sleep", 1, 1, 1, 1, {DType::none},
     [](const Attributes& a, DType) -> Kernel* {
       const int64_t ms = a.integer("ms", 0);
       return ms < 0 ? nullptr : new Sleep(ms);
     }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
