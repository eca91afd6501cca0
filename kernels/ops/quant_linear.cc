// QuantLinear: y = x W^T + bias + residual + scaling B (A x), W frozen in any storage format, adapters as slots.
// QuantLinearGroup: several of them over one x, in the decode role. QuantLinearGrad: its gradient by x and by the adapter.
// QuantLinearRowNorms: row norms of W + scaling B A (DoRA).
// Method: rows are packed once (gemm.h), weight panels are dequantized in cache and shared by all rows
// (panel_product.h), and the adapter widens k: [x | s t] [W | B]^T with t = x A^T, and for the gradient
// [dY | s u] [W ; A] with u = dY B. Accumulation in fp32; operands in bf16 on the fast path where the processor has bf16
// dot products, else (and with strict = 1) in fp32. The decode role, for few rows, multiplies the codes as they are by rows
// rounded to 8 bits (quant_linear_decode.h). LoRA: arXiv 2106.09685; QLoRA: arXiv 2305.14314.
#include "quant_linear.h"

namespace espalier {
namespace {

class QuantLinear : public Kernel {
 public:
  QuantLinear(const Attributes& attributes, DType activation) : options_(attributes, activation) {}
  const char* run(Context& context) noexcept override {
    DecodeMember member;
    LinearInputs& in = member.in;
    if (const char* problem = readLinear(context, options_, in)) return problem;
    if (options_.role == LinearRole::decode && !options_.strict && hasIntegerCodes(in.weights)) return runDecode(context, options_, &member, 1);
    return options_.strict ? forward<Fp32>(context, in) : forward<Fast>(context, in);
  }

 private:
  template <class A> const char* forward(Context& context, const LinearInputs& in) noexcept {
    return in.x.dtype == DType::f32 ? runForward<A>(context, in, in.x.as<const float>(), in.adapterX.as<const float>())
                                    : runForward<A>(context, in, in.x.as<const bf16>(), in.adapterX.as<const bf16>());
  }
  LinearOptions options_;
};

/// Several linears of one input in the decode role: x is rounded once, and all columns are one run of work.
class QuantLinearGroup : public Kernel {
 public:
  QuantLinearGroup(const Attributes& attributes, DType activation)
      : options_(attributes, activation), members_(static_cast<int>(attributes.integer("members", 1))) {}
  const char* run(Context& context) noexcept override {
    if (members_ < 1 || members_ > kMaxMembers) return "QuantLinearGroup: one to four members";
    DecodeMember members[kMaxMembers];
    for (int m = 0; m < members_; m++) {
      const int first = kShared + m * kPerMember;
      const LinearPlaces places{first, first + 4, 1, first + 5, 2, -1, -1, -1, 3, m};
      if (const char* problem = readLinear(context, options_, members[m].in, places)) return problem;
      const Weights &a = members[0].in.weights, &b = members[m].in.weights;
      if (!hasIntegerCodes(b) || a.columns != b.columns) return "QuantLinearGroup: the members must have integer codes and one inner dimension";
    }
    return runDecode(context, options_, members, members_);
  }

 private:
  static constexpr int kShared = 4, kPerMember = 6;  // x, arena, rowSlot, with; W0..W3, bias, slot table
  LinearOptions options_;
  int members_;
};

class QuantLinearGrad : public Kernel {
 public:
  QuantLinearGrad(const Attributes& attributes, DType activation) : options_(attributes, activation) {}
  const char* run(Context& context) noexcept override {
    LinearGradInputs in;
    if (const char* problem = readLinearGrad(context, options_, in)) return problem;
    return options_.strict ? byX<Fp32>(context, in) : byX<Fast>(context, in);
  }

 private:
  template <class A> const char* byX(Context& context, const LinearGradInputs& in) noexcept {
    return in.x.dtype == DType::f32 ? byDY<A>(context, in, in.x.as<const float>()) : byDY<A>(context, in, in.x.as<const bf16>());
  }
  template <class A, typename X> const char* byDY(Context& context, const LinearGradInputs& in, const X* x) noexcept {
    return in.dY.dtype == DType::f32 ? runBackward<A>(context, in, x, in.dY.as<const float>())
                                     : runBackward<A>(context, in, x, in.dY.as<const bf16>());
  }
  LinearOptions options_;
};

class QuantLinearRowNorms : public Kernel {
 public:
  QuantLinearRowNorms(const Attributes& attributes, DType activation) : options_(attributes, activation) {}
  const char* run(Context& context) noexcept override {
    Weights weights;
    AdapterSlots slots;
    Adapter adapter;
    if (const char* problem = readWeights(context, 0, options_.format, options_.block, weights)) return problem;
    if (const char* problem = readSlots(context.input(4), context.input(5), slots)) return problem;
    if (const char* problem = readSlot(slots, 0, weights.rows, weights.columns, adapter)) return problem;
    const Tensor norms = context.output(0, {weights.rows});
    if (!norms) return nullptr;
    const int64_t columns = weights.columns, span = 64 * ((columns + 63) / 64);
    const int threads = std::max(1, context.threads());
    auto* scratch = static_cast<float*>(context.scratch(static_cast<size_t>(span * threads) * 4));
    if (!scratch) return "QuantLinearRowNorms: out of memory";
    forDynamic(context, weights.rows, [&](int64_t worker, int64_t row) {
      float* w = scratch + worker * span;
      dequantizeRow(weights, row, 0, columns, w);
      for (int64_t r = 0; r < adapter.rank; r++) {
        const Vec factor = set1(adapter.scaling * adapter.b[row * adapter.rank + r]);
        const float* a = adapter.a + r * columns;
        for (int64_t k = 0; k < columns; k += kLanes)
          storeUpTo(w + k, columns - k, fma(loadUpTo(a + k, columns - k), factor, loadUpTo(w + k, columns - k)));
      }
      double sum = 0;
      for (int64_t k = 0; k < columns; k += 64) {
        Vec part = zero();
        for (int64_t j = k; j < std::min(columns, k + 64); j += kLanes) {
          const Vec v = loadUpTo(w + j, columns - j);
          part = fma(v, v, part);
        }
        sum += reduceAdd(part);
      }
      norms.as<float>()[row] = static_cast<float>(std::sqrt(sum));
    });
    return nullptr;
  }

 private:
  LinearOptions options_;
};

template <class K> Kernel* make(const Attributes& attributes, DType activation) { return new K(attributes, activation); }

const KernelDef kQuantLinearDefs[] = {
    {"QuantLinear", 2, 13, 1, 1, {DType::none}, make<QuantLinear>},
    {"QuantLinearGroup", 5, 4 + 6 * kMaxMembers, 1, kMaxMembers, {DType::none, DType::none, DType::none, DType::none}, make<QuantLinearGroup>},
    {"QuantLinearGrad", 3, 11, 0, 3, {DType::none, DType::f32, DType::none}, make<QuantLinearGrad>},
    {"QuantLinearRowNorms", 1, 6, 1, 1, {DType::f32}, make<QuantLinearRowNorms>},
};
ESPALIER_REGISTER(kQuantLinearDefs);

}  // namespace
}  // namespace espalier
