// RmsNorm(x, weight) -> y = x / sqrt(mean(x^2) + eps) * weight over the last D = size(weight) elements, so that a
// [N, H * Dh] tensor with a [Dh] weight is normalized per head. Arithmetic in f32; sums in one order; rows are
// independent, so threads cannot change a result. arXiv 1910.07467.
#include "rows.h"

namespace espalier {
namespace {

constexpr int64_t kMaxWidth = 16384;  // elements of a row held on the stack

const char* check(const char* message, const Tensor& x, const Tensor& weight) {
  if (!isActivation(x) || !isF32(weight)) return message;
  const int64_t width = weight.size();
  if (width < 1 || width > kMaxWidth || x.size() % width != 0) return message;
  return nullptr;
}

int64_t rowsPerTask(int64_t width) { return std::max<int64_t>(1, 16384 / width); }

class RmsNorm : public Kernel {
 public:
  explicit RmsNorm(float eps) : eps_(eps) {}

  const char* run(Context& context) noexcept override {
    const Tensor x = context.input(0), weight = context.input(1);
    if (const char* error = check("RmsNorm: x must be activations of whole rows of weight f32 [D], D <= 16384", x, weight))
      return error;
    const Tensor y = context.output(0, x.dims, x.rank);
    if (!y) return "RmsNorm: no output";
    const int64_t width = weight.size();
    const float* w = weight.as<const float>();
    forBlocks(context, x.size() / width, rowsPerTask(width), [&](int64_t begin, int64_t end) {
      alignas(64) float in[kMaxWidth], out[kMaxWidth];
      for (int64_t row = begin; row < end; row++) {
        const float* v = viewElements(x, row * width, width, in);
        normalizeRow(v, w, width, eps_, out);
        storeElements(y, row * width, width, out);
      }
    });
    return nullptr;
  }

 private:
  float eps_;
};

// With r = 1 / sqrt(mean(x^2) + eps) and g = dY * weight: dX = dXin + r * g - x * r^3 * mean(g * x).
class RmsNormGrad : public Kernel {
 public:
  explicit RmsNormGrad(float eps) : eps_(eps) {}

  const char* run(Context& context) noexcept override {
    const Tensor x = context.input(0), weight = context.input(1), dY = context.input(2), dXin = context.input(3);
    if (const char* error = check("RmsNormGrad: x must be activations of whole rows of weight f32 [D], D <= 16384", x, weight))
      return error;
    if (!isActivation(dY) || dY.size() != x.size()) return "RmsNormGrad: dY must be activations in the shape of x";
    if (dXin && (dXin.dtype != DType::f32 || dXin.size() != x.size())) return "RmsNormGrad: dXin must be f32 in the shape of x";
    const Tensor dX = context.output(0, x.dims, x.rank);
    if (!dX) return "RmsNormGrad: no output";
    const int64_t width = weight.size();
    const float* w = weight.as<const float>();
    forBlocks(context, x.size() / width, rowsPerTask(width), [&](int64_t begin, int64_t end) {
      alignas(64) float xBuffer[kMaxWidth], gradient[kMaxWidth];
      for (int64_t row = begin; row < end; row++) {
        const int64_t at = row * width;
        const float* v = viewElements(x, at, width, xBuffer);
        loadElements(dY, at, width, gradient);
        for (int64_t i = 0; i < width; i++) gradient[i] *= w[i];
        const float inverse = 1.0f / std::sqrt(dotElements(v, v, width) / static_cast<float>(width) + eps_);
        const float along = -inverse * inverse * inverse * dotElements(gradient, v, width) / static_cast<float>(width);
        for (int64_t i = 0; i < width; i++) gradient[i] = v[i] * along + gradient[i] * inverse;
        if (dXin) {
          const float* previous = dXin.as<const float>() + at;
          for (int64_t i = 0; i < width; i++) gradient[i] += previous[i];
        }
        storeElements(dX, at, width, gradient);
      }
    });
    return nullptr;
  }

 private:
  float eps_;
};

const KernelDef defs[] = {
    {"RmsNorm", 2, 2, 1, 1, {DType::none},
     [](const Attributes& a, DType) -> Kernel* { return new RmsNorm(a.number("eps", 1e-5f)); }},
    {"RmsNormGrad", 3, 4, 1, 1, {DType::none},
     [](const Attributes& a, DType) -> Kernel* { return new RmsNormGrad(a.number("eps", 1e-5f)); }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
