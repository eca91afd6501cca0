// Attention(q, k, v, cuSeqlens) -> out, lse and its gradient: causal, grouped-query, packed documents, optional window.
// Flash attention (arXiv 2205.14135, 2307.08691): blocks of 96 queries by 96 keys, an online softmax in the forward, the
// probabilities recomputed from lse in the backward; no T x T matrix. Products are bf16 with fp32 sums on AVX512-BF16,
// fp32 elsewhere and in strict mode; softmax in fp32. Forward tasks are (document, head, block of queries), backward
// tasks (document, kv head, part of the queries), dK and dV of the parts added in order: bits do not depend on threads.
#include "attention_backward.h"
#include "attention_forward.h"

namespace espalier {
namespace {

class Attention : public Kernel {
 public:
  explicit Attention(const Attributes& attributes) : options_(attributes) {}
  const char* run(Context& context) noexcept override {
    const Tensor q = context.input(0), k = context.input(1), v = context.input(2);
    if (const char* problem = checkHeads(options_, q, k, v)) return problem;
    Documents documents;
    if (const char* problem = readDocuments(context.input(3), q.dims[0], documents)) return problem;
    const Tensor out = context.output(0, q.dims, q.rank), lse = context.output(1, {q.dims[0], options_.heads});
    if (!out) return "Attention: no output";
    if (options_.strict) return attend<Fp32>(context, options_, documents, q, k, v, out, lse);
    return attend<Fast>(context, options_, documents, q, k, v, out, lse);
  }

 private:
  AttentionOptions options_;
};

class AttentionGrad : public Kernel {
 public:
  explicit AttentionGrad(const Attributes& attributes) : options_(attributes) {}
  const char* run(Context& context) noexcept override {
    AttentionGradInputs in;
    in.q = context.input(0), in.k = context.input(1), in.v = context.input(2), in.out = context.input(3);
    in.lse = context.input(4), in.dOut = context.input(5);
    if (const char* problem = checkHeads(options_, in.q, in.k, in.v)) return problem;
    if (!isActivation(in.out) || !isActivation(in.dOut) || in.out.size() != in.q.size() || in.dOut.size() != in.q.size())
      return "AttentionGrad: out and dOut must look like q";
    if (!isF32(in.lse) || in.lse.size() != in.q.dims[0] * options_.heads) return "AttentionGrad: lse must be float [N, H]";
    if (const char* problem = readDocuments(context.input(6), in.q.dims[0], in.documents)) return problem;
    in.dQ = context.output(0, in.q.dims, in.q.rank), in.dK = context.output(1, in.k.dims, in.k.rank);
    in.dV = context.output(2, in.v.dims, in.v.rank);
    if (!in.dQ || !in.dK || !in.dV) return "AttentionGrad: dQ, dK and dV are computed together";
    if (options_.strict) return attendBackward<Fp32>(context, options_, in);
    return attendBackward<Fast>(context, options_, in);
  }

 private:
  AttentionOptions options_;
};

const KernelDef defs[] = {
    {"Attention", 4, 4, 1, 2, {DType::none, DType::f32}, [](const Attributes& a, DType) -> Kernel* { return new Attention(a); }},
    {"AttentionGrad", 7, 7, 3, 3, {DType::none, DType::none, DType::none},
     [](const Attributes& a, DType) -> Kernel* { return new AttentionGrad(a); }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
