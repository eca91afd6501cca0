// AdamW(params, grads, m, v f32 [P], hyper f32 [8] = {lr, beta1, beta2, eps, 1 - beta1^t, 1 - beta2^t, maxGradNorm
// (0: off), 0}, groups i64 [G, 2] = {offset, length}, groupHyper f32 [G, 2] = {lrScale, weightDecay}) -> params', m',
// v' (usually the same memory), gradNorm f32 [1]. torch.optim.AdamW after torch.nn.utils.clip_grad_norm_
// (arXiv 1711.05101). The norm is over the elements of all groups, in f64, in chunks of one fixed size added in order:
// bit-identical for any number of threads. A norm that is not finite leaves params, m and v as they were.
#include "activation.h"

namespace espalier {
namespace {

constexpr int64_t kElementsPerTask = 8192;

// 1 - beta2 from an f32 beta2 keeps only four digits (0.999 is off by 1.3e-8 of 1e-3), so betas of at most six
// decimals are taken as the decimal they were rounded from.
double decimal(float x) {
  const double rounded = std::round(static_cast<double>(x) * 1e6) / 1e6;
  return static_cast<float>(rounded) == x ? rounded : static_cast<double>(x);
}

double sumSquares(const float* x, int64_t n) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; l++) lanes[l] += static_cast<double>(x[i + l]) * static_cast<double>(x[i + l]);
  for (int l = 0; i < n; i++, l++) lanes[l] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

struct Update {
  float keep1, take1, keep2, take2, eps, clip, inverseRoot2;  // take1 = 1 - beta1, inverseRoot2 = 1 / sqrt(1 - beta2^t)
};

void updateElements(const Update& u, float stepSize, float decay, int64_t n, const float* g, const float* p, const float* m, const float* v,
                    float* pOut, float* mOut, float* vOut) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t left = n - i;
    const Vec gradient = loadUpTo(g + i, left) * u.clip;
    const Vec m1 = u.keep1 * loadUpTo(m + i, left) + u.take1 * gradient;
    const Vec v1 = u.keep2 * loadUpTo(v + i, left) + u.take2 * (gradient * gradient);
    const Vec denominator = sqrt(v1) * u.inverseRoot2 + u.eps;
    storeUpTo(pOut + i, left, loadUpTo(p + i, left) * decay - stepSize * (m1 / denominator));
    storeUpTo(mOut + i, left, m1);
    storeUpTo(vOut + i, left, v1);
  }
}

class AdamW : public Kernel {
 public:
  const char* run(Context& context) noexcept override {
    const Tensor params = context.input(0), grads = context.input(1), m = context.input(2), v = context.input(3);
    const Tensor hyper = context.input(4), groups = context.input(5), groupHyper = context.input(6);
    if (!isF32(params) || !isF32(grads) || !isF32(m) || !isF32(v)) return "AdamW: params, grads, m and v must be f32";
    const int64_t size = params.size();
    if (grads.size() != size || m.size() != size || v.size() != size) return "AdamW: params, grads, m and v must have one size";
    if (!isF32(hyper) || hyper.size() < 7) return "AdamW: hyper must be f32 [8]";
    if (!groups || groups.dtype != DType::i64 || groups.size() % 2 != 0) return "AdamW: groups must be i64 [G, 2]";
    const int64_t groupCount = groups.size() / 2;
    if (!isF32(groupHyper) || groupHyper.size() != groupCount * 2) return "AdamW: groupHyper must be f32 [G, 2]";
    const int64_t* range = groups.as<const int64_t>();
    int64_t tasks = 0, end = 0;
    for (int64_t g = 0; g < groupCount; g++) {
      if (range[2 * g] < end || range[2 * g + 1] < 0 || range[2 * g] > size - range[2 * g + 1])
        return "AdamW: groups must be ascending, disjoint and inside params";
      end = range[2 * g] + range[2 * g + 1];
      tasks += (range[2 * g + 1] + kElementsPerTask - 1) / kElementsPerTask;
    }
    const Tensor pOut = context.output(0, params.dims, params.rank), mOut = context.output(1, params.dims, params.rank);
    const Tensor vOut = context.output(2, params.dims, params.rank), normOut = context.output(3, {1});
    if (!pOut || !mOut || !vOut) return "AdamW: needs the outputs params, m and v";

    struct Task {
      int64_t offset, length, group;
      double squares;
    };
    Task* list = static_cast<Task*>(context.scratch(static_cast<size_t>(std::max<int64_t>(1, tasks)) * sizeof(Task)));
    if (!list) return "AdamW: out of scratch memory";
    int64_t count = 0;
    for (int64_t g = 0; g < groupCount; g++)
      for (int64_t at = 0; at < range[2 * g + 1]; at += kElementsPerTask)
        list[count++] = {range[2 * g] + at, std::min(kElementsPerTask, range[2 * g + 1] - at), g, 0.0};

    const float* g = grads.as<const float>();
    context.parallelFor(count, [&](int64_t i) { list[i].squares = sumSquares(g + list[i].offset, list[i].length); });
    double total = 0;
    for (int64_t i = 0; i < count; i++) total += list[i].squares;
    const double norm = std::sqrt(total);
    if (normOut) normOut.as<float>()[0] = static_cast<float>(norm);

    // Elements outside every group, and all of them after a bad gradient, pass through.
    const bool isFinite = std::isfinite(norm);
    copyUntouched(params, pOut, range, isFinite ? groupCount : 0);
    copyUntouched(m, mOut, range, isFinite ? groupCount : 0);
    copyUntouched(v, vOut, range, isFinite ? groupCount : 0);
    if (!isFinite) return nullptr;

    const float* h = hyper.as<const float>();
    const double beta1 = decimal(h[1]), beta2 = decimal(h[2]);
    const double maxNorm = h[6];
    const double clip = maxNorm > 0 ? std::min(1.0, maxNorm / (norm + 1e-6)) : 1.0;
    const Update update = {static_cast<float>(beta1), static_cast<float>(1 - beta1), static_cast<float>(beta2), static_cast<float>(1 - beta2),
                           h[3], static_cast<float>(clip), static_cast<float>(1.0 / std::sqrt(static_cast<double>(h[5])))};
    const float* perGroup = groupHyper.as<const float>();
    context.parallelFor(count, [&](int64_t i) {
      const Task& t = list[i];
      const double lr = static_cast<double>(h[0]) * static_cast<double>(perGroup[2 * t.group]);
      const float decay = static_cast<float>(1.0 - lr * static_cast<double>(perGroup[2 * t.group + 1]));
      updateElements(update, static_cast<float>(lr / static_cast<double>(h[4])), decay, t.length, g + t.offset, params.as<const float>() + t.offset,
                     m.as<const float>() + t.offset, v.as<const float>() + t.offset, pOut.as<float>() + t.offset, mOut.as<float>() + t.offset,
                     vOut.as<float>() + t.offset);
    });
    return nullptr;
  }

 private:
  static void copyUntouched(const Tensor& from, const Tensor& to, const int64_t* range, int64_t groupCount) {
    if (from.data == to.data) return;
    int64_t at = 0;
    for (int64_t g = 0; g <= groupCount; g++) {
      const int64_t until = g < groupCount ? range[2 * g] : from.size();
      std::memcpy(to.as<float>() + at, from.as<const float>() + at, static_cast<size_t>(until - at) * 4);
      if (g < groupCount) at = until + range[2 * g + 1];
    }
  }
};

const KernelDef defs[] = {
    {"AdamW", 7, 7, 3, 4, {DType::f32, DType::f32, DType::f32, DType::f32}, [](const Attributes&, DType) -> Kernel* { return new AdamW; }},
};
ESPALIER_REGISTER(defs);

}  // namespace
}  // namespace espalier
