// Embedding(ids, W...) -> rows of W in any weight format, exactly as dequantizeRow gives them. One task per few rows.
#include "activation.h"
#include "dequant.h"

namespace espalier {
namespace {

class Embedding : public Kernel {
 public:
  explicit Embedding(const Attributes& a) : format_(a.integer("format", 0)), block_(a.integer("block", 32)) {}

  const char* run(Context& context) noexcept override {
    const Tensor ids = context.input(0);
    if (!ids || ids.dtype != DType::i32 || ids.rank != 1) return "Embedding: ids must be int32 [N]";
    Weights weights;
    if (const char* problem = readWeights(context, 1, format_, block_, weights)) return problem;
    const int32_t* id = ids.as<const int32_t>();
    const int64_t n = ids.dims[0], width = weights.columns;
    for (int64_t i = 0; i < n; i++)
      if (id[i] < 0 || id[i] >= weights.rows) return "Embedding: an id is outside the vocabulary";
    const Tensor y = context.output(0, {n, width});
    if (!y) return "Embedding: no output";
    forBlocks(context, n, 16, [&](int64_t begin, int64_t end) {
      alignas(64) float buffer[kChunk];
      for (int64_t i = begin; i < end; i++)
        for (int64_t c = 0; c < width; c += kChunk) {
          const int64_t count = std::min(kChunk, width - c);
          float* to = y.dtype == DType::f32 ? y.as<float>() + i * width + c : buffer;
          dequantizeRow(weights, id[i], c, count, to);
          if (to == buffer) storeElements(y, i * width + c, count, buffer);
        }
    });
    return nullptr;
  }

 private:
  int64_t format_, block_;
};

const KernelDef defs[] = {
    {"Embedding", 2, 5, 1, 1, {DType::none}, [](const Attributes& a, DType) -> Kernel* { return new Embedding(a); }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
