// SwiGlu(gate, up) -> silu(gate) * up, silu(g) = g * sigmoid(g); elementwise in f32. arXiv 2002.05202.
#include "rows.h"

namespace espalier {
namespace {

class SwiGlu : public Kernel {
 public:
  const char* run(Context& context) noexcept override {
    const Tensor gate = context.input(0), up = context.input(1);
    if (!isActivation(gate) || !isActivation(up) || !sameShape(gate, up))
      return "SwiGlu: gate and up must be activations of one shape";
    const Tensor y = context.output(0, gate.dims, gate.rank);
    if (!y) return "SwiGlu: no output";
    forBlocks(context, gate.size(), 32 * kChunk, [&](int64_t begin, int64_t end) {
      alignas(64) float gBuffer[kChunk], uBuffer[kChunk], out[kChunk];
      for (int64_t at = begin; at < end; at += kChunk) {
        const int64_t n = std::min(kChunk, end - at);
        const float* g = viewElements(gate, at, n, gBuffer);
        const float* u = viewElements(up, at, n, uBuffer);
        gateRow(g, u, n, out);
        storeElements(y, at, n, out);
      }
    });
    return nullptr;
  }
};

// dUp = dY * silu(g); dGate = dY * up * s * (1 + g * (1 - s)), s = sigmoid(g).
class SwiGluGrad : public Kernel {
 public:
  const char* run(Context& context) noexcept override {
    const Tensor gate = context.input(0), up = context.input(1), dY = context.input(2);
    if (!isActivation(gate) || !isActivation(up) || !isActivation(dY) || !sameShape(gate, up) || dY.size() != gate.size())
      return "SwiGluGrad: gate, up and dY must be activations of one shape";
    const Tensor dGate = context.output(0, gate.dims, gate.rank), dUp = context.output(1, gate.dims, gate.rank);
    forBlocks(context, gate.size(), 32 * kChunk, [&](int64_t begin, int64_t end) {
      alignas(64) float gBuffer[kChunk], uBuffer[kChunk], dBuffer[kChunk], outGate[kChunk], outUp[kChunk];
      for (int64_t at = begin; at < end; at += kChunk) {
        const int64_t n = std::min(kChunk, end - at);
        const float* g = viewElements(gate, at, n, gBuffer);
        const float* u = viewElements(up, at, n, uBuffer);
        const float* d = viewElements(dY, at, n, dBuffer);
        for (int64_t i = 0; i < n; i += kLanes) {
          const Vec x = loadUpTo(g + i, n - i), dy = loadUpTo(d + i, n - i);
          const Vec s = logistic(x), ds = dy * s;
          store(outUp + i, ds * x);
          store(outGate + i, ds * loadUpTo(u + i, n - i) * (1.0f + x * (1.0f - s)));
        }
        if (dGate) storeElements(dGate, at, n, outGate);
        if (dUp) storeElements(dUp, at, n, outUp);
      }
    });
    return nullptr;
  }
};

const KernelDef defs[] = {
    {"SwiGlu", 2, 2, 1, 1, {DType::none}, [](const Attributes&, DType) -> Kernel* { return new SwiGlu; }},
    {"SwiGluGrad", 3, 3, 1, 2, {DType::none, DType::none}, [](const Attributes&, DType) -> Kernel* { return new SwiGluGrad; }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
