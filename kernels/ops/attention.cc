// Attention(q, k, v, cuSeqlens) -> out, lse and its gradient: causal, grouped-query, within packed documents. Plain
// loops over one (query, head) row at a time.
#include "attention_inputs.h"

namespace espalier {
namespace {

class Attention : public Kernel {
 public:
  explicit Attention(const Attributes& a) : shape_(a) {}
  const char* run(Context& context) noexcept override {
    const Tensor q = context.input(0), k = context.input(1), v = context.input(2), cu = context.input(3);
    if (const char* problem = checkAttention(shape_, q, k, v, cu)) return problem;
    const int64_t n = q.dims[0], h = shape_.heads, dh = shape_.headDim;
    const Tensor out = context.output(0, {n, h * dh}), lse = context.output(1, {n, h});
    const int32_t* at = cu.as<const int32_t>();
    context.parallelFor(cu.dims[0] - 1, [&](int64_t d) {
      float qb[256], kb[256], o[256], result[256];
      for (int64_t i = at[d]; i < at[d + 1]; i++)
        for (int64_t head = 0; head < h; head++) {
          loadElements(q, (i * h + head) * dh, dh, qb);
          const int64_t kv = head / shape_.group();
          float top = -INFINITY, sum = 0;
          std::fill(o, o + dh, 0.f);
          const int64_t first = shape_.window ? std::max<int64_t>(at[d], i - shape_.window + 1) : at[d];
          for (int64_t j = first; j <= i; j++) {
            loadElements(k, (j * shape_.kvHeads + kv) * dh, dh, kb);
            const float s = dotElements(qb, kb, dh) * shape_.scale;
            if (s > top) {
              const float f = std::exp(top - s);
              sum *= f;
              for (int64_t c = 0; c < dh; c++) o[c] *= f;
              top = s;
            }
            const float p = std::exp(s - top);
            sum += p;
            loadElements(v, (j * shape_.kvHeads + kv) * dh, dh, kb);
            for (int64_t c = 0; c < dh; c++) o[c] += p * kb[c];
          }
          for (int64_t c = 0; c < dh; c++) result[c] = o[c] / sum;
          if (out) storeElements(out, (i * h + head) * dh, dh, result);
          if (lse) lse.as<float>()[i * h + head] = top + std::log(sum);
        }
    });
    return nullptr;
  }

 private:
  AttentionShape shape_;
};

class AttentionGrad : public Kernel {
 public:
  explicit AttentionGrad(const Attributes& a) : shape_(a) {}
  const char* run(Context& context) noexcept override {
    const Tensor q = context.input(0), k = context.input(1), v = context.input(2), out = context.input(3), lse = context.input(4),
                 dOut = context.input(5), cu = context.input(6);
    if (const char* problem = checkAttention(shape_, q, k, v, cu)) return problem;
    const int64_t n = q.dims[0], h = shape_.heads, dh = shape_.headDim, kvh = shape_.kvHeads;
    const Tensor dQ = context.output(0, q.dims, 2), dK = context.output(1, k.dims, 2), dV = context.output(2, v.dims, 2);
    float* scratch = static_cast<float*>(context.scratch(static_cast<size_t>(2 * n * kvh * dh) * 4));
    if (!scratch) return "AttentionGrad: out of memory";
    const int32_t* at = cu.as<const int32_t>();
    context.parallelFor((cu.dims[0] - 1) * kvh, [&](int64_t task) {
      const int64_t d = task / kvh, kv = task % kvh;
      float qb[256], kb[256], vb[256], ob[256], gb[256], dq[256];
      for (int64_t j = at[d]; j < at[d + 1]; j++)
        for (int64_t c = 0; c < dh; c++) scratch[(j * kvh + kv) * dh + c] = scratch[((n + j) * kvh + kv) * dh + c] = 0;
      for (int64_t i = at[d]; i < at[d + 1]; i++)
        for (int64_t head = kv * shape_.group(); head < (kv + 1) * shape_.group(); head++) {
          loadElements(q, (i * h + head) * dh, dh, qb);
          loadElements(out, (i * h + head) * dh, dh, ob);
          loadElements(dOut, (i * h + head) * dh, dh, gb);
          const float delta = dotElements(ob, gb, dh), l = lse.as<float>()[i * h + head];
          std::fill(dq, dq + dh, 0.f);
          const int64_t first = shape_.window ? std::max<int64_t>(at[d], i - shape_.window + 1) : at[d];
          for (int64_t j = first; j <= i; j++) {
            loadElements(k, (j * kvh + kv) * dh, dh, kb);
            loadElements(v, (j * kvh + kv) * dh, dh, vb);
            const float p = std::exp(dotElements(qb, kb, dh) * shape_.scale - l);
            const float ds = p * (dotElements(gb, vb, dh) - delta) * shape_.scale;
            float* dk = scratch + (j * kvh + kv) * dh;
            float* dv = scratch + ((n + j) * kvh + kv) * dh;
            for (int64_t c = 0; c < dh; c++) {
              dq[c] += ds * kb[c];
              dk[c] += ds * qb[c];
              dv[c] += p * gb[c];
            }
          }
          if (dQ) storeElements(dQ, (i * h + head) * dh, dh, dq);
        }
      for (int64_t j = at[d]; j < at[d + 1]; j++) {
        if (dK) storeElements(dK, (j * kvh + kv) * dh, dh, scratch + (j * kvh + kv) * dh);
        if (dV) storeElements(dV, (j * kvh + kv) * dh, dh, scratch + ((n + j) * kvh + kv) * dh);
      }
    });
    return nullptr;
  }

 private:
  AttentionShape shape_;
};

const KernelDef defs[] = {
    {"Attention", 4, 4, 1, 2, {DType::none, DType::f32}, [](const Attributes& a, DType) -> Kernel* { return new Attention(a); }},
    {"AttentionGrad", 7, 7, 1, 3, {DType::none, DType::none, DType::none}, [](const Attributes& a, DType) -> Kernel* { return new AttentionGrad(a); }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
