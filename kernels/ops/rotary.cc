// Rotary(x [N, H * Dh], cos f32 [N, Dh/2], sin f32 [N, Dh/2]) -> y: rotates each pair of a head by its angle, pairs
// (i, i + Dh/2), or (2i, 2i + 1) when `interleaved`. `inverse` turns back, which is the gradient. arXiv 2104.09864.
#include "activation.h"

namespace espalier {
namespace {

class Rotary : public Kernel {
 public:
  explicit Rotary(const Attributes& a)
      : headDim_(a.integer("head_dim", 0)), interleaved_(a.integer("interleaved", 0) != 0), inverse_(a.integer("inverse", 0) != 0) {}

  const char* run(Context& context) noexcept override {
    const Tensor x = context.input(0), cosines = context.input(1), sines = context.input(2);
    const int64_t half = headDim_ / 2;
    if (headDim_ < 2 || headDim_ % 2 != 0 || headDim_ > kMaxHeadDim) return "Rotary: head_dim must be even, 2 to 1024";
    if (!isActivation(x) || x.rank != 2 || x.dims[1] % headDim_ != 0) return "Rotary: x must be activations [N, H * head_dim]";
    if (!isF32(cosines) || !isF32(sines) || cosines.size() != x.dims[0] * half || sines.size() != cosines.size())
      return "Rotary: cos and sin must be f32 [N, head_dim / 2]";
    const Tensor y = context.output(0, x.dims, x.rank);
    if (!y) return "Rotary: no output";
    const int64_t width = x.dims[1];
    const float sign = inverse_ ? -1.0f : 1.0f;
    forBlocks(context, x.dims[0], std::max<int64_t>(1, 16384 / width), [&](int64_t begin, int64_t end) {
      alignas(64) float in[kMaxHeadDim], out[kMaxHeadDim], signedSin[kMaxHeadDim / 2];
      for (int64_t row = begin; row < end; row++) {
        const float* c = cosines.as<const float>() + row * half;
        for (int64_t i = 0; i < half; i++) signedSin[i] = sign * sines.as<const float>()[row * half + i];
        for (int64_t at = row * width; at < (row + 1) * width; at += headDim_) {
          const float* v = viewElements(x, at, headDim_, in);
          if (interleaved_) {
            for (int64_t i = 0; i < half; i++) {
              out[2 * i] = v[2 * i] * c[i] - v[2 * i + 1] * signedSin[i];
              out[2 * i + 1] = v[2 * i + 1] * c[i] + v[2 * i] * signedSin[i];
            }
          } else {
            for (int64_t i = 0; i < half; i++) {
              out[i] = v[i] * c[i] - v[half + i] * signedSin[i];
              out[half + i] = v[half + i] * c[i] + v[i] * signedSin[i];
            }
          }
          storeElements(y, at, headDim_, out);
        }
      }
    });
    return nullptr;
  }

 private:
  static constexpr int64_t kMaxHeadDim = 1024;
  int64_t headDim_;
  bool interleaved_, inverse_;
};

const KernelDef defs[] = {
    {"Rotary", 3, 3, 1, 1, {DType::none}, [](const Attributes& a, DType) -> Kernel* { return new Rotary(a); }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
