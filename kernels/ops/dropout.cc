// Dropout(x act [N, K], rowKeys i64 [N], seed i64 [1]) -> y; attributes p, module. Counter-based: an element is decided
// by (seed, rowKey, module, column) alone, so recomputation, resumption and repacking draw the same mask, and the
// gradient is the same op on dY. All arithmetic is modulo 2^32, every multiplier below 2^31 (so that int64 integer ops
// with a mask describe it exactly), >> fills with zeros:
//   mix(x): x ^= x >> 16; x *= 0x21f0aaad; x ^= x >> 15; x *= 0x735a2d97; x ^= x >> 15
//   step(k, w) = mix((k ^ w) + 0x9e3779b9)
//   k = step(step(step(step(step(0, seed low), seed high), rowKey low), rowKey high), module)
//   h = step(k, column); kept iff h >= floor(p * 2^32) (p as f64); y = kept ? x / (1 - p) : 0.
// mix is a two-round xorshift-multiply hash found by search (github.com/skeeto/hash-prospector).
#include "activation.h"
#include "counter_random.h"

namespace espalier {
namespace {

class Dropout : public Kernel {
 public:
  explicit Dropout(const Attributes& a) : p_(a.number("p", 0.0f)), module_(static_cast<uint32_t>(a.integer("module", 0))) {}

  const char* run(Context& context) noexcept override {
    const Tensor x = context.input(0), rowKeys = context.input(1), seed = context.input(2);
    if (!isActivation(x) || x.rank != 2) return "Dropout: x must be activations [N, K]";
    if (!rowKeys || rowKeys.dtype != DType::i64 || rowKeys.size() != x.dims[0]) return "Dropout: rowKeys must be i64 [N]";
    if (!seed || seed.dtype != DType::i64 || seed.size() < 1) return "Dropout: seed must be i64 [1]";
    if (!(p_ >= 0.0f) || !(p_ < 1.0f)) return "Dropout: p must lie in [0, 1)";
    const Tensor y = context.output(0, x.dims, x.rank);
    if (!y) return "Dropout: no output";
    const int64_t width = x.dims[1];
    const uint64_t s = static_cast<uint64_t>(seed.as<const int64_t>()[0]);
    const uint32_t seedKey = hashStep(hashStep(0u, static_cast<uint32_t>(s)), static_cast<uint32_t>(s >> 32));
    const uint32_t threshold = static_cast<uint32_t>(static_cast<double>(p_) * 4294967296.0);
    const float scale = static_cast<float>(1.0 / (1.0 - static_cast<double>(p_)));
    forBlocks(context, x.dims[0], std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        const uint64_t key = static_cast<uint64_t>(rowKeys.as<const int64_t>()[row]);
        const uint32_t k = hashStep(hashStep(hashStep(seedKey, static_cast<uint32_t>(key)), static_cast<uint32_t>(key >> 32)), module_);
        const auto drop = [&](auto* from, auto* to) {
          UVec column;
          for (int l = 0; l < kLanes; l++) column[l] = static_cast<uint32_t>(l);
          for (int64_t i = 0; i < width; i += kLanes, column += static_cast<uint32_t>(kLanes)) {
            const IVec isKept = reinterpret_cast<IVec>(hashStep(k, column) >= threshold);
            storeUpTo(to + i, width - i, select(isKept, loadUpTo(from + i, width - i) * scale, zero()));
          }
        };
        const auto typed = [&](auto* from) {
          y.dtype == DType::f32 ? drop(from, y.as<float>() + row * width) : drop(from, y.as<bf16>() + row * width);
        };
        x.dtype == DType::f32 ? typed(x.as<const float>() + row * width) : typed(x.as<const bf16>() + row * width);
      }
    });
    return nullptr;
  }

 private:
  float p_;
  uint32_t module_;
};

const KernelDef defs[] = {
    {"Dropout", 3, 3, 1, 1, {DType::none}, [](const Attributes& a, DType) -> Kernel* { return new Dropout(a); }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
