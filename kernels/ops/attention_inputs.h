// What Attention and AttentionGrad read and check alike.
#pragma once
#include "activation.h"

namespace espalier {

struct AttentionShape {
  int64_t heads, kvHeads, headDim, window;
  float scale;
  bool strict;

  explicit AttentionShape(const Attributes& a)
      : heads(a.integer("num_heads", 0)), kvHeads(a.integer("num_kv_heads", 0)), headDim(a.integer("head_dim", 0)),
        window(a.integer("window", 0)), scale(a.number("scale", 0.0f)), strict(a.integer("strict", 0) != 0) {
    if (scale == 0.0f && headDim > 0) scale = 1.0f / std::sqrt(static_cast<float>(headDim));
  }
  int64_t group() const { return heads / kvHeads; }
};

constexpr int64_t kMaxAttentionHeadDim = 256;

/// Null, or what is wrong with q, k, v or cuSeqlens.
inline const char* checkAttention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cuSeqlens) {
  if (shape.heads < 1 || shape.kvHeads < 1 || shape.heads % shape.kvHeads != 0)
    return "Attention: num_heads must be a multiple of num_kv_heads";
  if (shape.headDim < 1 || shape.headDim > kMaxAttentionHeadDim) return "Attention: head_dim must be 1 to 256";
  if (!(shape.scale > 0.0f)) return "Attention: scale must be positive";
  if (shape.window < 0) return "Attention: window must not be negative";
  if (!isActivation(q) || q.rank != 2 || q.dims[1] != shape.heads * shape.headDim)
    return "Attention: q must be float or bfloat16 [N, num_heads * head_dim]";
  if (!isActivation(k) || k.rank != 2 || k.dims[0] != q.dims[0] || k.dims[1] != shape.kvHeads * shape.headDim)
    return "Attention: k must be float or bfloat16 [N, num_kv_heads * head_dim]";
  if (!isActivation(v) || !sameShape(v, k)) return "Attention: v must be float or bfloat16 in the shape of k";
  if (cuSeqlens.dtype != DType::i32 || cuSeqlens.rank != 1 || cuSeqlens.dims[0] < 1) return "Attention: cuSeqlens must be int32 [documents + 1]";
  const int32_t* at = cuSeqlens.as<const int32_t>();
  const int64_t documents = cuSeqlens.dims[0] - 1;
  if (at[0] != 0 || at[documents] != q.dims[0]) return "Attention: cuSeqlens must run from 0 to N";
  for (int64_t d = 0; d < documents; d++)
    if (at[d] > at[d + 1]) return "Attention: cuSeqlens must ascend";
  return nullptr;
}

}  // namespace espalier
