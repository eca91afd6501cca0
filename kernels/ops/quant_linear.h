// What QuantLinear and its gradient read, check and share; the two algorithms are in quant_linear_forward.h and
// quant_linear_backward.h.
#pragma once
#include "activation.h"
#include "adapter.h"
#include "pack_weights.h"
#include "panel_product.h"

namespace espalier {

/// What the graph is for (linearRoles of the op's record): it chooses the method, the number of rows never does.
enum class LinearRole : int64_t { train = 0, prefill = 1, decode = 2 };

/// What is done to X before it is multiplied (linearPrologues of the op's record), in the decode role only: X divided by its
/// root mean square and times `with` [K], or silu(X) times `with` [N, K].
enum class Prologue : int64_t { none = 0, rmsNorm = 1, swiGlu = 2 };

struct LinearOptions {
  LinearOptions(const Attributes& attributes, DType activationType)
      : format(attributes.integer("format", 0)), block(attributes.integer("block", 32)),
        strict(attributes.integer("strict", 0) != 0), role(static_cast<LinearRole>(attributes.integer("role", 0))),
        prologue(static_cast<Prologue>(attributes.integer("prologue", 0))), eps(attributes.number("eps", 0.f)), activation(activationType) {}
  int64_t format, block;
  bool strict;
  LinearRole role;
  Prologue prologue;
  float eps;
  DType activation;
};

/// Rows of an activation [.., columns], or -1 when it is none.
inline int64_t rowsOf(const Tensor& t, int64_t columns) {
  if (!isActivation(t) || t.rank < 1 || t.dims[t.rank - 1] != columns) return -1;
  int64_t rows = 1;
  for (int i = 0; i + 1 < t.rank; i++) rows *= t.dims[i];
  return rows;
}

struct LinearInputs {
  Weights weights;
  int64_t rows = 0;
  Tensor x, adapterX, with, y;
  const float* bias = nullptr;       // [out]
  const float* residual = nullptr;   // [rows, out]
  const int32_t* rowSlot = nullptr;  // [rows]
  const float* rowWeight = nullptr;  // [rows]
  AdapterSlots slots;
  Adapter adapter;  // slot 0
};

/// Positions of a linear's inputs; -1: it has none.
struct LinearPlaces {
  int weights = 1, bias = 5, arena = 6, table = 7, rowSlot = 8, rowWeight = 9, adapterX = 10, residual = 11, with = 12, output = 0;
};

/// Elements of x that share a scale where products are of 8 bits.
constexpr int64_t kXBlock = 32;

inline bool hasIntegerCodes(const Weights& w) {
  return (w.format == Format::int4 || w.format == Format::int4Symmetric || w.format == Format::int8) && w.columns % kXBlock == 0;
}

inline const char* readLinear(Context& context, const LinearOptions& options, LinearInputs& in, const LinearPlaces& at = {}) {
  const auto input = [&](int i) { return i < 0 ? Tensor{} : context.input(i); };
  if (const char* problem = readWeights(context, at.weights, options.format, options.block, in.weights)) return problem;
  in.x = context.input(0);
  in.rows = rowsOf(in.x, in.weights.columns);
  if (in.rows < 0) return "QuantLinear: X must be float or bfloat16 [N, K] with K the inner dimension of W";
  const Tensor bias = input(at.bias), rowSlot = input(at.rowSlot), rowWeight = input(at.rowWeight), residual = input(at.residual);
  in.adapterX = input(at.adapterX);
  if (bias && (bias.dtype != DType::f32 || bias.size() != in.weights.rows)) return "QuantLinear: bias must be float [out]";
  if (rowSlot && (rowSlot.dtype != DType::i32 || rowSlot.size() != in.rows)) return "QuantLinear: rowSlot must be int32 [N]";
  if (rowWeight && (rowWeight.dtype != DType::f32 || rowWeight.size() != in.rows)) return "QuantLinear: rowWeight must be float [N]";
  if (residual && (residual.dtype != DType::f32 || residual.size() != in.rows * in.weights.rows))
    return "QuantLinear: residual must be float [N, out]";
  if (in.adapterX && (rowsOf(in.adapterX, in.weights.columns) != in.rows || in.adapterX.dtype != in.x.dtype))
    return "QuantLinear: adapterX must look like X";
  if (options.prologue == Prologue::rmsNorm || options.prologue == Prologue::swiGlu) {
    in.with = input(at.with);
    if (options.role != LinearRole::decode || options.strict || !hasIntegerCodes(in.weights)) return "QuantLinear: only 8-bit products have a prologue";
    if (options.prologue == Prologue::rmsNorm && (in.with.dtype != DType::f32 || in.with.size() != in.weights.columns))
      return "QuantLinear: the norm's weight must be float [K]";
    if (options.prologue == Prologue::swiGlu && (rowsOf(in.with, in.weights.columns) != in.rows || in.with.dtype != in.x.dtype))
      return "QuantLinear: the factor of a gated X must look like X";
  }
  in.bias = bias.as<const float>();
  in.residual = residual.as<const float>();
  in.rowSlot = rowSlot.as<const int32_t>();
  in.rowWeight = rowWeight.as<const float>();
  if (const char* problem = readSlots(input(at.arena), input(at.table), in.slots)) return problem;
  if (const char* problem = readSlot(in.slots, 0, in.weights.rows, in.weights.columns, in.adapter)) return problem;
  if (in.rowSlot) {
    in.adapter = {};  // every row looks up its own
    Adapter checked;
    for (int64_t s = 0; s < in.slots.count; s++)
      if (const char* problem = readSlot(in.slots, s, in.weights.rows, in.weights.columns, checked)) return problem;
    for (int64_t i = 0; i < in.rows; i++)
      if (in.rowSlot[i] >= in.slots.count) return "QuantLinear: rowSlot names a slot that the table lacks";
    if (options.role == LinearRole::prefill && in.rows > 0) {
      // One adapter for all rows: as in training.
      for (int64_t i = 1; i < in.rows; i++)
        if (in.rowSlot[i] != in.rowSlot[0]) return "QuantLinear: the rows of a prefill must share their slot";
      if (in.rowSlot[0] >= 0) readSlot(in.slots, in.rowSlot[0], in.weights.rows, in.weights.columns, in.adapter);
      in.rowSlot = nullptr;
    }
  }
  int64_t dims[6];
  memcpy(dims, in.x.dims, sizeof dims);
  dims[in.x.rank - 1] = in.weights.rows;
  in.y = context.output(at.output, dims, in.x.rank);
  return in.y ? nullptr : "QuantLinear: no memory for Y";
}

struct LinearGradInputs {
  Weights weights;
  int64_t rows = 0;
  Tensor x, dY, adapterX, dX, dAdapterX;
  const float* dXin = nullptr;
  float* gradient = nullptr;  // the adapter's slice, dA first, dB at bAt; already holds gradIn
  int64_t bAt = 0;
  Adapter adapter;
};

inline const char* readLinearGrad(Context& context, const LinearOptions& options, LinearGradInputs& in) {
  if (const char* problem = readWeights(context, 2, options.format, options.block, in.weights)) return problem;
  const int64_t out = in.weights.rows, columns = in.weights.columns;
  in.x = context.input(0);
  in.dY = context.input(1);
  in.rows = rowsOf(in.x, columns);
  if (in.rows < 0) return "QuantLinearGrad: X must be float or bfloat16 [N, K] with K the inner dimension of W";
  if (rowsOf(in.dY, out) != in.rows) return "QuantLinearGrad: dY must be float or bfloat16 [N, out]";
  in.adapterX = context.input(9);
  const Tensor dXin = context.input(10), gradIn = context.input(8);
  if (in.adapterX && (rowsOf(in.adapterX, columns) != in.rows || in.adapterX.dtype != in.x.dtype))
    return "QuantLinearGrad: adapterX must look like X";
  if (dXin && (dXin.dtype != DType::f32 || dXin.size() != in.rows * columns)) return "QuantLinearGrad: dXin must be float [N, K]";
  in.dXin = dXin.as<const float>();
  AdapterSlots slots;
  if (const char* problem = readSlots(context.input(6), context.input(7), slots)) return problem;
  if (const char* problem = readSlot(slots, 0, out, columns, in.adapter)) return problem;
  in.dX = context.output(0, in.x.dims, in.x.rank);
  in.dAdapterX = in.adapterX ? context.output(2, in.x.dims, in.x.rank) : Tensor{};
  if (gradIn && gradIn.dtype != DType::f32) return "QuantLinearGrad: gradIn must be float";
  in.bAt = in.adapter.bOffset - in.adapter.aOffset;
  const int64_t needed = in.adapter.rank ? in.bAt + out * in.adapter.rank : 0, size = gradIn ? gradIn.size() : needed;
  if (in.adapter.rank && in.bAt < in.adapter.rank * columns) return "QuantLinearGrad: B must follow A in the arena";
  if (size == 0) return nullptr;
  const Tensor gradOut = context.output(1, {size});
  if (!gradOut) return nullptr;
  if (size < needed) return "QuantLinearGrad: gradIn is shorter than the adapter";
  in.gradient = gradOut.as<float>();
  if (!gradIn) memset(in.gradient, 0, static_cast<size_t>(size) * 4);
  else if (gradIn.data != gradOut.data) memmove(in.gradient, gradIn.data, static_cast<size_t>(size) * 4);
  return nullptr;
}

/// Hands out one block of scratch in 64-byte steps.
class Carver {
 public:
  int64_t floats(int64_t n) {
    const int64_t at = used_;
    used_ += roundUp(n, 16);
    return at;
  }
  size_t bytes() const { return static_cast<size_t>(used_) * 4; }

 private:
  int64_t used_ = 0;
};

/// What is done to the sums of a run of columns; null where there is none.
struct Finish {
  const float *delta = nullptr, *factor = nullptr, *bias = nullptr, *residual = nullptr;
  ESPALIER_INLINE Vec of(Vec v, int64_t j, int64_t left) const {
    if (delta) v = v + loadUpTo(delta + j, left);
    if (factor) v = v * loadUpTo(factor + j, left);
    if (bias) v = v + loadUpTo(bias + j, left);
    if (residual) v = v + loadUpTo(residual + j, left);
    return v;
  }
};

/// out[row][columns of a panel] = factor (c + delta) + bias + residual, stored as `to` stores.
ESPALIER_INLINE void finishRow(const Tensor& to, int64_t at, const float* c, const Finish& finish, int64_t columns) {
  const auto typed = [&](auto* out) {
    for (int64_t j = 0; j < columns; j += kLanes) storeUpTo(out + j, columns - j, finish.of(load(c + j), j, columns - j));
  };
  to.dtype == DType::f32 ? typed(to.as<float>() + at) : typed(to.as<bf16>() + at);
}

}  // namespace espalier

#include "quant_linear_backward.h"
#include "quant_linear_forward.h"
#include "quant_linear_decode.h"
