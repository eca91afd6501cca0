// Convert(x act) -> y act: between f32 and bf16 (round to nearest even), any shape.
#include "activation.h"

namespace espalier {
namespace {

class Convert : public Kernel {
 public:
  const char* run(Context& context) noexcept override {
    const Tensor x = context.input(0);
    if (!isActivation(x)) return "Convert: x must be f32 or bf16";
    const Tensor y = context.output(0, x.dims, x.rank);
    if (!y) return "Convert: no output";
    forBlocks(context, x.size(), 64 * kChunk, [&](int64_t begin, int64_t end) {
      float buffer[kChunk];
      for (int64_t i = begin; i < end; i += kChunk) {
        const int64_t n = std::min(kChunk, end - i);
        storeElements(y, i, n, viewElements(x, i, n, buffer));
      }
    });
    return nullptr;
  }
};

const KernelDef defs[] = {
    {"Convert", 1, 1, 1, 1, {DType::none}, [](const Attributes&, DType) -> Kernel* { return new Convert; }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
