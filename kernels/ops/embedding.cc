// Embedding(ids i32 [N], W0..W3) -> Y [N, D]: rows of a frozen table in any storage format, dequantized one by one.
#include "activation.h"
#include "dequant.h"

namespace espalier {
namespace {

class Embedding : public Kernel {
 public:
  explicit Embedding(const Attributes& a) : format_(a.integer("format", 0)), block_(a.integer("block", 32)) {}

  const char* run(Context& context) noexcept override {
    const Tensor ids = context.input(0);
    if (ids.dtype != DType::i32 || ids.rank != 1) return "Embedding: ids must be int32 [N]";
    Weights weights;
    if (const char* problem = readWeights(context, 1, format_, block_, weights)) return problem;
    const int32_t* id = ids.as<const int32_t>();
    for (int64_t i = 0; i < ids.dims[0]; i++)
      if (id[i] < 0 || id[i] >= weights.rows) return "Embedding: a token id lies outside the vocabulary of the table";
    const Tensor y = context.output(0, {ids.dims[0], weights.columns});
    if (!y) return ids.dims[0] ? "Embedding: no output" : nullptr;
    const int64_t width = weights.columns;
    forBlocks(context, ids.dims[0], std::max<int64_t>(1, 16384 / width), [&](int64_t begin, int64_t end) {
      alignas(64) float buffer[kChunk];
      for (int64_t row = begin; row < end; row++)
        for (int64_t column = 0; column < width; column += kChunk) {
          const int64_t n = std::min(kChunk, width - column);
          dequantizeRow(weights, id[row], column, n, buffer);
          storeElements(y, row * width + column, n, buffer);
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
