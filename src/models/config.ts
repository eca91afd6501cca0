// Hugging Face's config.json of the dense decoder family, checked and in camelCase.
import { z } from 'zod'
import { FormatError } from './format-error.js'

const llama3Scaling = z.object({
  rope_type: z.literal('llama3'),
  factor: z.number().positive(),
  low_freq_factor: z.number().positive(),
  high_freq_factor: z.number().positive(),
  original_max_position_embeddings: z.number().int().positive(),
})
const linearScaling = z.object({ rope_type: z.literal('linear'), factor: z.number().positive() })

export type RopeScaling =
  | { readonly ropeType: 'linear'; readonly factor: number }
  | {
      readonly ropeType: 'llama3'
      readonly factor: number
      readonly lowFreqFactor: number
      readonly highFreqFactor: number
      readonly originalMaxPositionEmbeddings: number
    }

export interface ModelConfig {
  readonly modelType: string
  readonly hiddenSize: number
  readonly intermediateSize: number
  readonly numHiddenLayers: number
  readonly numAttentionHeads: number
  readonly numKeyValueHeads: number
  readonly headDim: number
  readonly vocabSize: number
  readonly rmsNormEps: number
  readonly ropeTheta: number
  readonly ropeScaling: RopeScaling | null
  readonly tieWordEmbeddings: boolean
  readonly attentionBias: boolean
  readonly mlpBias: boolean
  readonly maxPositionEmbeddings: number
  /** Tokens a query sees where a window applies; null: all. */
  readonly slidingWindow: number | null
  /** Per layer `full_attention` or `sliding_attention`, where the config lists them. */
  readonly layerTypes: readonly string[] | null
  readonly maxWindowLayers: number | null
  readonly bosTokenId: number | null
  readonly eosTokenIds: readonly number[]
}

const count = z.number().int().positive()
const tokenId = z.number().int().nonnegative()
const schema = z.looseObject({
  model_type: z.string(),
  hidden_size: count,
  intermediate_size: count,
  // A limit, so that a damaged file cannot ask for a model without end.
  num_hidden_layers: count.max(10_000),
  num_attention_heads: count,
  num_key_value_heads: count.nullish(),
  head_dim: count.nullish(),
  vocab_size: count,
  rms_norm_eps: z.number().positive().default(1e-6),
  rope_theta: z.number().positive().nullish(),
  rope_scaling: z.looseObject({}).nullish(),
  rope_parameters: z.looseObject({}).nullish(),
  tie_word_embeddings: z.boolean().default(false),
  attention_bias: z.boolean().nullish(),
  mlp_bias: z.boolean().nullish(),
  max_position_embeddings: count.default(2048),
  sliding_window: count.nullish(),
  use_sliding_window: z.boolean().nullish(),
  layer_types: z.array(z.enum(['full_attention', 'sliding_attention'])).nullish(),
  partial_rotary_factor: z.number().nullish(),
  max_window_layers: z.number().int().nonnegative().nullish(),
  hidden_act: z.string().default('silu'),
  bos_token_id: tokenId.nullish(),
  eos_token_id: z.union([tokenId, z.array(tokenId)]).nullish(),
})

/**
 * Reads a config.json that was parsed from JSON.
 * @throws FormatError naming the file and the field, or the feature that is not supported
 */
export function parseModelConfig(json: unknown, file = 'config.json'): ModelConfig {
  const parsed = schema.safeParse(json)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!
    throw new FormatError(file, issue.path.join('.') || 'top level', issue.message)
  }
  const c = parsed.data
  const refuse = (field: string, problem: string) => new FormatError(file, field, problem)
  if (c.hidden_act !== 'silu') throw refuse('hidden_act', `${c.hidden_act} is not supported; silu is`)
  if (c.partial_rotary_factor != null && c.partial_rotary_factor !== 1) {
    throw refuse('partial_rotary_factor', `${c.partial_rotary_factor} is not supported; whole heads are rotated`)
  }
  const kvHeads = c.num_key_value_heads ?? c.num_attention_heads
  const headDim = c.head_dim ?? c.hidden_size / c.num_attention_heads
  if (c.num_attention_heads % kvHeads !== 0) {
    throw refuse('num_key_value_heads', `${c.num_attention_heads} attention heads are no multiple of ${kvHeads}`)
  }
  if (headDim % 2 !== 0) throw refuse('head_dim', `${headDim} is no even number; rotary embeddings turn pairs`)
  if (c.layer_types && c.layer_types.length !== c.num_hidden_layers) {
    throw refuse('layer_types', `${c.layer_types.length} entries for ${c.num_hidden_layers} layers`)
  }
  const rope = c.rope_parameters ?? {}
  const theta = c.rope_theta ?? (typeof rope.rope_theta === 'number' ? rope.rope_theta : 10000)
  // Mistral's window is on whenever it is given; Qwen's only with use_sliding_window.
  const usesWindow = c.use_sliding_window ?? c.model_type === 'mistral'
  const eos = c.eos_token_id
  return {
    modelType: c.model_type,
    hiddenSize: c.hidden_size,
    intermediateSize: c.intermediate_size,
    numHiddenLayers: c.num_hidden_layers,
    numAttentionHeads: c.num_attention_heads,
    numKeyValueHeads: kvHeads,
    headDim,
    vocabSize: c.vocab_size,
    rmsNormEps: c.rms_norm_eps,
    ropeTheta: theta,
    ropeScaling: parseScaling(c.rope_scaling ?? rope, file),
    tieWordEmbeddings: c.tie_word_embeddings,
    attentionBias: c.attention_bias ?? false,
    mlpBias: c.mlp_bias ?? false,
    maxPositionEmbeddings: c.max_position_embeddings,
    slidingWindow: usesWindow ? (c.sliding_window ?? null) : null,
    layerTypes: c.layer_types ?? null,
    maxWindowLayers: c.max_window_layers ?? null,
    bosTokenId: c.bos_token_id ?? null,
    eosTokenIds: eos == null ? [] : Array.isArray(eos) ? eos : [eos],
  }
}

function parseScaling(value: Record<string, unknown>, file: string): RopeScaling | null {
  const type = value.rope_type ?? value.type
  if (type === undefined || type === 'default') return null
  const named = { ...value, rope_type: type }
  const read = <T>(scaling: z.ZodType<T>): T => {
    const parsed = scaling.safeParse(named)
    if (parsed.success) return parsed.data
    const issue = parsed.error.issues[0]!
    throw new FormatError(file, `rope_scaling.${issue.path.join('.')}`, issue.message)
  }
  if (type === 'linear') {
    const { factor } = read(linearScaling)
    return { ropeType: 'linear', factor }
  }
  if (type === 'llama3') {
    const s = read(llama3Scaling)
    return {
      ropeType: 'llama3',
      factor: s.factor,
      lowFreqFactor: s.low_freq_factor,
      highFreqFactor: s.high_freq_factor,
      originalMaxPositionEmbeddings: s.original_max_position_embeddings,
    }
  }
  throw new FormatError(
    file,
    'rope_scaling',
    `type ${JSON.stringify(type)} is not supported; default, linear and llama3 are`,
  )
}

/** Tokens that a query of this layer sees; 0: all before it. */
export function layerWindow(config: ModelConfig, layer: number): number {
  if (config.slidingWindow === null) return 0
  if (config.layerTypes) return config.layerTypes[layer] === 'sliding_attention' ? config.slidingWindow : 0
  return layer >= (config.maxWindowLayers ?? 0) ? config.slidingWindow : 0
}
