// The output head without its logits: LinearLogProb(h, W0..W3, labels, lossRows, temperature?) -> logps, entropy (nats),
// lse; its gradient for given dLogps, dEntropy, dLse; and both at once where dLogps is known beforehand (plain cross
// entropy). Logits of row m: softcap(scale * h[lossRows[m]] W^T) / temperature. A label < 0 gives logp 0 and no
// gradient. Rows of lossRows must be distinct; other rows of dH are 0. strict: fp32 products; else bf16 where the
// instruction set multiplies it (statistics are fp32 or wider in both). The loop is in linear_log_prob.h.
#include "linear_log_prob.h"

namespace espalier {
namespace {

template <HeadMode mode> class Head : public Kernel {
 public:
  explicit Head(const Attributes& a)
      : format_(a.integer("format", 0)), block_(a.integer("block", 32)), strict_(a.integer("strict", 0) != 0), scale_(a.number("scale", 1.f)),
        softcap_(a.number("softcap", 0.f)) {}

  const char* run(Context& context) noexcept override {
    HeadInputs in;
    if (const char* problem = readWeights(context, 1, format_, block_, in.weights)) return problem;
    in.h = context.input(0);
    if (!isActivation(in.h) || in.h.rank != 2 || in.h.dims[1] != in.weights.columns)
      return "LinearLogProb: h must be float or bfloat16 [N, D] with D the inner dimension of W";
    const Tensor labels = context.input(5), lossRows = context.input(6);
    if (labels.dtype != DType::i32 || labels.rank != 1) return "LinearLogProb: labels must be int32 [M]";
    if (lossRows.dtype != DType::i32 || lossRows.rank != 1 || lossRows.dims[0] != labels.dims[0]) return "LinearLogProb: lossRows must be int32 [M]";
    in.rows = labels.dims[0];
    in.labels = labels.as<const int32_t>();
    in.lossRows = lossRows.as<const int32_t>();
    for (int64_t m = 0; m < in.rows; m++) {
      if (in.labels[m] >= in.weights.rows) return "LinearLogProb: a label lies outside the vocabulary";
      if (in.lossRows[m] < 0 || in.lossRows[m] >= in.h.dims[0]) return "LinearLogProb: lossRows names a row that h lacks";
    }
    in.scale = scale_;
    in.softcap = softcap_;
    const Tensor temperature = context.input(mode == HeadMode::forward ? 7 : mode == HeadMode::gradient ? 12 : 8);
    if (temperature) {
      if (temperature.dtype != DType::f32 || temperature.size() != 1 || !(temperature.as<float>()[0] > 0))
        return "LinearLogProb: temperature must be one positive float";
      in.inverseTemperature = 1.f / temperature.as<float>()[0];
    }
    const auto perRow = [&](int input, bool needed, const float*& out) {
      const Tensor t = context.input(input);
      if (!t) return !needed || in.rows == 0;
      out = t.as<const float>();
      return t.dtype == DType::f32 && t.size() == in.rows;
    };
    if (mode == HeadMode::gradient) {
      if (!perRow(7, true, in.lse) || !perRow(8, true, in.entropy) || !perRow(9, true, in.dLogps) || !perRow(10, false, in.dEntropy) ||
          !perRow(11, false, in.dLse))
        return "LinearLogProbGrad: lse, entropy, dLogps, dEntropy and dLse must be float [M]";
      in.dH = context.output(0, in.h.dims, 2);
    } else {
      if (mode == HeadMode::fused) {
        if (!perRow(7, true, in.dLogps)) return "LinearLogProbFused: dLogps must be float [M]";
        in.dH = context.output(3, in.h.dims, 2);
      }
      in.logps = context.output(0, {in.rows}).as<float>();
      in.entropyOut = context.output(1, {in.rows}).as<float>();
      in.lseOut = context.output(2, {in.rows}).as<float>();
    }
    return strict_ ? HeadLoop<Fp32, mode>(context, in).run() : HeadLoop<Fast, mode>(context, in).run();
  }

 private:
  int64_t format_, block_;
  bool strict_;
  float scale_, softcap_;
};

const KernelDef defs[] = {
    {"LinearLogProb", 7, 8, 1, 3, {DType::f32, DType::f32, DType::f32},
     [](const Attributes& a, DType) -> Kernel* { return new Head<HeadMode::forward>(a); }},
    {"LinearLogProbGrad", 10, 13, 1, 1, {DType::none}, [](const Attributes& a, DType) -> Kernel* { return new Head<HeadMode::gradient>(a); }},
    {"LinearLogProbFused", 8, 9, 0, 4, {DType::f32, DType::f32, DType::f32, DType::none},
     [](const Attributes& a, DType) -> Kernel* { return new Head<HeadMode::fused>(a); }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
