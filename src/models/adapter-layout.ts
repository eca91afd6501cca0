// Where the tensors of an adapter lie in its flat float32 buffers, and their first values. One linear is one slice: A, B
// and DoRA's magnitude one after another, each at a multiple of 64 bytes (design §3, "Adapters are slots").
import { type AdapterShape, type LinearAdapter, scorePath } from './adapter-slot.js'
import type { LoraConfig } from './lora-config.js'
import type { LoraTarget } from './lora-targets.js'

export type LoraTensorKind = 'loraA' | 'loraB' | 'magnitude' | 'score'

export interface LoraTensor {
  /** PEFT's key, e.g. `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. */
  readonly name: string
  /** Path of the linear. */
  readonly path: string
  readonly kind: LoraTensorKind
  /** A [rank, in], B [out, rank], magnitude [out], score [1, D]. */
  readonly shape: readonly number[]
  /** Float32 elements from the start of the buffer. */
  readonly offset: number
}

export interface LoraLayout {
  readonly tensors: readonly LoraTensor[]
  /** Elements of the flat buffers, alignment gaps included. */
  readonly length: number
  readonly targets: readonly LoraTarget[]
  /** What graphs are traced with. */
  readonly adapter: AdapterShape
}

/** 64 bytes. */
const ALIGNMENT_FLOATS = 16
const align = (offset: number) => Math.ceil(offset / ALIGNMENT_FLOATS) * ALIGNMENT_FLOATS

const PREFIX = 'base_model.model.'

/** PEFT's key of an adapter tensor. The magnitude has no `.weight`. */
export const peftNames: Readonly<Record<LoraTensorKind, (path: string) => string>> = {
  loraA: (path) => `${PREFIX}${path}.lora_A.weight`,
  loraB: (path) => `${PREFIX}${path}.lora_B.weight`,
  magnitude: (path) => `${PREFIX}${path}.lora_magnitude_vector`,
  score: (path) => `${PREFIX}${path}.weight`,
}

export interface LayoutOptions {
  useDora: boolean
  dropout: number
  /** Size of the hidden states that a trained scalar head reads; absent: no such head. */
  scoreFeatures?: number | undefined
}

/** Lays out the targets in their order, the scalar head last. */
export function layoutAdapter(targets: readonly LoraTarget[], options: LayoutOptions): LoraLayout {
  const tensors: LoraTensor[] = []
  const linears = new Map<string, LinearAdapter>()
  let end = 0
  const place = (path: string, kind: LoraTensorKind, shape: number[]): number => {
    const offset = align(end)
    tensors.push({ name: peftNames[kind](path), path, kind, shape, offset })
    end = offset + shape.reduce((product, size) => product * size, 1)
    return offset
  }
  for (const { path, rank, scaling, inFeatures, outFeatures } of targets) {
    const offset = place(path, 'loraA', [rank, inFeatures])
    const bOffset = place(path, 'loraB', [outFeatures, rank]) - offset
    const magnitude = options.useDora ? { magnitudeOffset: place(path, 'magnitude', [outFeatures]) - offset } : {}
    linears.set(path, { path, rank, scaling, offset, length: end - offset, bOffset, ...magnitude })
  }
  const { dropout, scoreFeatures } = options
  if (scoreFeatures === undefined) return { tensors, length: align(end), targets, adapter: { linears, dropout } }
  const score = { offset: place(scorePath, 'score', [1, scoreFeatures]), length: scoreFeatures }
  return { tensors, length: align(end), targets, adapter: { linears, dropout, score } }
}

/** The floats of one tensor in a flat buffer (a view). */
export function viewTensor(values: Float32Array, tensor: LoraTensor): Float32Array {
  const count = tensor.shape.reduce((product, size) => product * size, 1)
  return values.subarray(tensor.offset, tensor.offset + count)
}

/** Mixes 32 bits (the finalizer of MurmurHash3). */
function mix(h: number): number {
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

/** A stream of uniform numbers in (0, 1) that depends on seed and name alone: number i is a function of i. */
function uniformStream(seed: number, name: string): (index: number) => number {
  let key = mix(seed >>> 0) ^ mix(Math.floor(seed / 2 ** 32) + 0x9e3779b9)
  for (let i = 0; i < name.length; i++) key = mix(key ^ name.charCodeAt(i))
  const second = mix(key ^ 0x85157af5)
  return (index) => {
    const high = mix(mix(index ^ key) + second)
    const low = mix(high ^ second ^ index)
    return ((high >>> 5) * 2 ** 26 + (low >>> 6) + 0.5) * 2 ** -53
  }
}

/** A: uniform in ±1/√in, the bound of kaiming_uniform with a = √5 (torch.nn.init), or normal with deviation 1/rank. */
function initA(
  values: Float32Array,
  tensor: LoraTensor,
  lora: Pick<LoraConfig, 'initLoraWeights'>,
  seed: number,
): void {
  const draw = uniformStream(seed, tensor.name)
  const [rank, inFeatures] = tensor.shape as [number, number]
  if (lora.initLoraWeights === 'gaussian') {
    for (let i = 0; i < values.length; i++) {
      values[i] = normalFrom(draw(2 * i), draw(2 * i + 1)) / rank
    }
    return
  }
  const bound = 1 / Math.sqrt(inFeatures)
  for (let i = 0; i < values.length; i++) values[i] = (2 * draw(i) - 1) * bound
}

/** Normal with deviation 1/√(D + 1), so that first scores are of order one (arXiv:2403.17031, detail 7). */
function initScore(values: Float32Array, tensor: LoraTensor, seed: number): void {
  const draw = uniformStream(seed, tensor.name)
  const deviation = 1 / Math.sqrt(values.length + 1)
  for (let i = 0; i < values.length; i++) values[i] = deviation * normalFrom(draw(2 * i), draw(2 * i + 1))
}

/** Box-Muller. */
const normalFrom = (a: number, b: number) => Math.sqrt(-2 * Math.log(a)) * Math.cos(2 * Math.PI * b)

/**
 * First values of a new adapter: A random by seed and name, B zero, DoRA's magnitude the row norms of the base weight,
 * the scalar head small and random.
 * @param rowNorms L2 norm of every row of the linear's base weight [out]; needed with DoRA
 */
export function initAdapter(
  layout: LoraLayout,
  values: Float32Array,
  options: { seed: number; initLoraWeights?: boolean | 'gaussian'; rowNorms?: (path: string) => Float32Array },
): void {
  values.fill(0)
  for (const tensor of layout.tensors) {
    const view = viewTensor(values, tensor)
    if (tensor.kind === 'loraA') initA(view, tensor, { initLoraWeights: options.initLoraWeights ?? true }, options.seed)
    if (tensor.kind === 'score') initScore(view, tensor, options.seed)
    if (tensor.kind === 'magnitude') {
      if (!options.rowNorms) throw new Error('DoRA needs the row norms of the base weights')
      view.set(options.rowNorms(tensor.path))
    }
  }
}
