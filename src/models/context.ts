// What model code is traced with: the same layers serve training, scoring and logits (design §3). Weights are asked
// for by their Hugging Face names.
import type { Graph, Value } from '../compiler/graph.js'
import { attention } from '../compiler/ops/attention.js'
import { cast, cos, mul, scale, sin } from '../compiler/ops/elementwise.js'
import { embedding } from '../compiler/ops/linear-log-prob.js'
import { rmsNorm } from '../compiler/ops/norms.js'
import { type CacheType, cacheTensors, pagedAttention } from '../compiler/ops/paged-attention.js'
import { type AdapterSlots, quantLinear } from '../compiler/ops/quant-linear.js'
import { rotary } from '../compiler/ops/rotary.js'
import { unsqueeze } from '../compiler/ops/shape.js'
import { constant } from '../compiler/ops/tensor.js'
import { type Weight, type WeightFormat, weightLeaf } from '../compiler/ops/weight.js'
import { type AdapterShape, adaptedLinear, type Randomness } from './adapter-slot.js'
import type { ModelConfig } from './config.js'
import { rotaryFrequencies } from './rope.js'

/** How each matrix of a base is stored, by its Hugging Face name (`….weight`). */
export type WeightFormats = ReadonlyMap<
  string,
  { readonly format: WeightFormat; readonly block: number; readonly shape: readonly number[] }
>

export interface TraceOptions {
  readonly config: ModelConfig
  readonly formats: WeightFormats
  readonly adapter?: AdapterShape | null
  /** Dropout is applied. */
  readonly training?: boolean
  /** Attention over a paged cache, adapters by slots: generation. */
  readonly paged?: PagedTrace
}

/** What a graph over the paged cache is made for. */
export interface PagedTrace {
  readonly role: 'prefill' | 'decode'
  readonly cacheType: CacheType
  /** Blocks of the cache, and the most that one sequence has. */
  readonly blocks: number
  readonly blocksPerSequence: number
  /** Adapter slots; null: the base alone. */
  readonly slots: { readonly count: number; readonly arenaFloats: number; readonly maxRank: number } | null
}

/** Names of the leaves that a batch fills; N tokens, S = documents + 1. */
export const batchLeaves = {
  inputIds: 'inputIds',
  positionIds: 'positionIds',
  cuSeqlens: 'cuSeqlens',
  rowKeys: 'rowKeys',
  seed: 'seed',
} as const

/** Further leaves of a graph over the paged cache; S sequences, R drawn tokens, E edits, C masks. */
export const pagedLeaves = {
  ...batchLeaves,
  rowSequence: 'rowSequence',
  blockTables: 'blockTables',
  rowSlot: 'rowSlot',
  arena: 'adapters.arena',
  sampleRows: 'sampleRows',
  sampling: 'sampling',
  sampleKeys: 'sampleKeys',
  samplePositions: 'samplePositions',
  editRows: 'editRows',
  editTokens: 'editTokens',
  editCounts: 'editCounts',
  editBias: 'editBias',
  maskRows: 'maskRows',
  allowed: 'allowed',
} as const
/** Leaf of one layer's cache: `keys`, `values`, `keyScales`, `valueScales`. */
export const cacheLeafName = (layer: number, tensor: string): string => `cache.${layer}.${tensor}`
/** Leaf of one linear's slot table, i64 [slots, 8]. */
export const slotsLeafName = (path: string): string => `slots.${path}`

export interface LinearCall {
  readonly hasBias?: boolean
  /** Added to the result, which stays f32. */
  readonly residual?: Value
}

export class ModelContext {
  readonly config: ModelConfig
  private readonly formats: WeightFormats
  private readonly adapter: AdapterShape | null
  private readonly random: Randomness | null
  private readonly rope: { cosine: Value; sine: Value }
  private readonly paged: PagedTrace | null
  private layer = 0
  readonly graph: Graph
  readonly isTraining: boolean

  constructor(graph: Graph, options: TraceOptions) {
    this.graph = graph
    this.config = options.config
    this.formats = options.formats
    this.adapter = options.adapter ?? null
    this.paged = options.paged ?? null
    this.isTraining = options.training ?? false
    const dropping = this.isTraining && (this.adapter?.dropout ?? 0) > 0
    this.random = dropping
      ? {
          rowKeys: graph.leaf(batchLeaves.rowKeys, 'input', 'i64', ['N']),
          seed: graph.leaf(batchLeaves.seed, 'input', 'i64', [1]),
        }
      : null
    // angles [N, Dh/2] = position · inverse frequency
    const { inverseFrequencies, attentionFactor } = rotaryFrequencies(this.config)
    const positions = unsqueeze(cast(graph.leaf(batchLeaves.positionIds, 'input', 'i32', ['N']), graph.floatType), [1])
    const angles = mul(positions, constant(graph, inverseFrequencies, [1, inverseFrequencies.length], graph.floatType))
    this.rope = { cosine: scale(cos(angles), attentionFactor), sine: scale(sin(angles), attentionFactor) }
  }

  private weight(name: string, outFeatures: number, inFeatures: number): Weight {
    const stored = this.formats.get(name)
    if (!stored) throw new Error(`the base has no matrix ${name}; its config.json and its weights disagree`)
    if (stored.shape[0] !== outFeatures || stored.shape[1] !== inFeatures)
      throw new Error(
        `${name} is [${stored.shape.join(', ')}] in the base; its config.json says [${outFeatures}, ${inFeatures}]`,
      )
    return weightLeaf(this.graph, name, stored.format, stored.block, outFeatures, inFeatures)
  }

  /** Rows of the embedding [N, D]. */
  embed(path: string): Value {
    const ids = this.graph.leaf(batchLeaves.inputIds, 'input', 'i32', ['N'])
    return embedding(ids, this.weight(`${path}.weight`, this.config.vocabSize, this.config.hiddenSize))
  }

  /** x [N, in] by the matrix at `path` [out, in], with the adapter that it carries. */
  linear(path: string, x: Value, outFeatures: number, call: LinearCall = {}): Value {
    const weight = this.weight(`${path}.weight`, outFeatures, x.shape[1] as number)
    const bias = call.hasBias ? this.graph.leaf(`${path}.bias`, 'weight', 'f32', [outFeatures]) : null
    const residual = call.residual ?? null
    if (this.paged) return quantLinear(x, weight, { bias, residual, role: this.paged.role, slots: this.slots(path) })
    const adapter = this.adapter?.linears.get(path)
    if (!adapter) return quantLinear(x, weight, { bias, residual })
    const random = this.random && {
      ...this.random,
      probability: this.adapter!.dropout,
      module: [...this.adapter!.linears.keys()].indexOf(path),
    }
    return adaptedLinear(x, weight, adapter, { bias, residual, rowSlot: null, random })
  }

  private slots(path: string): AdapterSlots | null {
    const { slots } = this.paged!
    if (!slots) return null
    const g = this.graph
    return {
      arena: g.leaf(pagedLeaves.arena, 'parameter', g.floatType, [slots.arenaFloats]),
      table: g.leaf(slotsLeafName(path), 'input', 'i64', [slots.count, 8]),
      rowSlot: g.leaf(pagedLeaves.rowSlot, 'input', 'i32', ['N']),
      maxRank: slots.maxRank,
    }
  }

  /** RMSNorm over groups of `size` (the whole row by default). */
  norm(path: string, x: Value, size = this.config.hiddenSize): Value {
    return rmsNorm(x, this.graph.leaf(`${path}.weight`, 'weight', 'f32', [size]), this.config.rmsNormEps)
  }

  /** q [N, H·Dh], k and v [N, K·Dh] -> [N, H·Dh]; q and k rotated, causal within each document or sequence. */
  attention(q: Value, k: Value, v: Value, window = 0): Value {
    const { numAttentionHeads: numHeads, numKeyValueHeads, headDim } = this.config
    const shape = { numHeads, numKeyValueHeads, headDim, window }
    const g = this.graph
    const rotation = this.rope
    if (!this.paged) {
      const rotate = (x: Value) => rotary(x, rotation.cosine, rotation.sine, headDim)
      return attention(rotate(q), rotate(k), v, g.leaf(batchLeaves.cuSeqlens, 'input', 'i32', ['S']), shape)
    }
    const { cacheType, blocks, blocksPerSequence } = this.paged
    const names = cacheTensors(g, cacheType, blocks, numKeyValueHeads, headDim).map((t) => {
      const name = cacheLeafName(this.layer, t.name)
      return { name, leaf: g.leaf(name, 'state', t.dtype, t.shape) }
    })
    const rows = {
      blockTables: g.leaf(pagedLeaves.blockTables, 'input', 'i32', ['S', blocksPerSequence]),
      rowSequence: g.leaf(pagedLeaves.rowSequence, 'input', 'i32', ['N']),
      positions: g.leaf(batchLeaves.positionIds, 'input', 'i32', ['N']),
    }
    const leaves = names.map((n) => n.leaf)
    const { out, cache } = pagedAttention(q, k, v, rows, leaves, { ...shape, cacheType, rotation })
    names.forEach((n, i) => {
      g.updates.set(n.name, cache[i]!)
    })
    return out
  }

  /** Cuts may fall around what `build` computes. */
  block<T>(index: number, build: () => T): T {
    this.layer = index
    return this.graph.in(`block.${index}`, build)
  }

  /** The output head as a matrix [V, D]; the embedding where they are tied. */
  head(): Weight {
    const name = this.config.tieWordEmbeddings ? 'model.embed_tokens.weight' : 'lm_head.weight'
    return this.weight(name, this.config.vocabSize, this.config.hiddenSize)
  }
}
