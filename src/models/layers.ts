// The pre-norm decoder block that the Llama family shares: attention and gated feed-forward, each with its residual.
import type { Value } from '../compiler/graph.js'
import { swiGlu } from '../compiler/ops/rotary.js'
import type { ModelContext } from './context.js'

export interface DecoderOptions {
  /** Biases on q, k, v (Qwen2). */
  readonly hasQkvBias?: boolean
  /** Bias on o (Llama configs with `attention_bias`). */
  readonly hasOutputBias?: boolean
  /** Biases in the feed-forward (Llama configs with `mlp_bias`). */
  readonly hasMlpBias?: boolean
  /** RMSNorm of each head of q and k before the rotation (Qwen3). */
  readonly hasQkNorm?: boolean
  /** Tokens that a query of this layer sees; 0: all before it. */
  readonly window?: (layer: number) => number
}

/** x [N, D] -> [N, D] */
function decoderBlock(ctx: ModelContext, layer: number, x: Value, options: DecoderOptions): Value {
  const { hiddenSize, intermediateSize, numAttentionHeads, numKeyValueHeads, headDim } = ctx.config
  const path = `model.layers.${layer}`
  const qkv = { hasBias: options.hasQkvBias ?? false }
  const h = ctx.norm(`${path}.input_layernorm`, x)
  let q = ctx.linear(`${path}.self_attn.q_proj`, h, numAttentionHeads * headDim, qkv)
  let k = ctx.linear(`${path}.self_attn.k_proj`, h, numKeyValueHeads * headDim, qkv)
  const v = ctx.linear(`${path}.self_attn.v_proj`, h, numKeyValueHeads * headDim, qkv)
  if (options.hasQkNorm) {
    q = ctx.norm(`${path}.self_attn.q_norm`, q, headDim)
    k = ctx.norm(`${path}.self_attn.k_norm`, k, headDim)
  }
  const mixed = ctx.attention(q, k, v, options.window?.(layer) ?? 0)
  const attended = ctx.linear(`${path}.self_attn.o_proj`, mixed, hiddenSize, {
    residual: x,
    hasBias: options.hasOutputBias ?? false,
  })

  const mlp = { hasBias: options.hasMlpBias ?? false }
  const h2 = ctx.norm(`${path}.post_attention_layernorm`, attended)
  const gate = ctx.linear(`${path}.mlp.gate_proj`, h2, intermediateSize, mlp)
  const up = ctx.linear(`${path}.mlp.up_proj`, h2, intermediateSize, mlp)
  return ctx.linear(`${path}.mlp.down_proj`, swiGlu(gate, up), hiddenSize, { residual: attended, ...mlp })
}

/** The whole decoder up to the final norm: [N, D] in the activation type. */
export function decoder(ctx: ModelContext, options: DecoderOptions): Value {
  let x = ctx.embed('model.embed_tokens')
  for (let layer = 0; layer < ctx.config.numHiddenLayers; layer++) {
    const input = x
    x = ctx.block(layer, () => decoderBlock(ctx, layer, input, options))
  }
  const last = x
  return ctx.graph.in('head', () => ctx.norm('model.norm', last))
}

/** The linears of one layer that adapters may target, with their sizes [out, in]. */
export function decoderLinears(
  config: ModelContext['config'],
): { path: string; outFeatures: number; inFeatures: number }[] {
  const { hiddenSize, intermediateSize, numAttentionHeads, numKeyValueHeads, headDim } = config
  const query = numAttentionHeads * headDim
  const keyValue = numKeyValueHeads * headDim
  const sizes: [string, number, number][] = [
    ['self_attn.q_proj', query, hiddenSize],
    ['self_attn.k_proj', keyValue, hiddenSize],
    ['self_attn.v_proj', keyValue, hiddenSize],
    ['self_attn.o_proj', hiddenSize, query],
    ['mlp.gate_proj', intermediateSize, hiddenSize],
    ['mlp.up_proj', intermediateSize, hiddenSize],
    ['mlp.down_proj', hiddenSize, intermediateSize],
  ]
  return Array.from({ length: config.numHiddenLayers }, (_, layer) =>
    sizes.map(([name, outFeatures, inFeatures]) => ({
      path: `model.layers.${layer}.${name}`,
      outFeatures,
      inFeatures,
    })),
  ).flat()
}
