// Where the tensors of an adapter lie in its flat float32 buffers, and their first values. One linear is one slice: A, B
// and DoRA's magnitude one after another, each at a multiple of 64 bytes (design §3, "Adapters are slots").
import type { AdapterShape, LinearAdapter } from './adapter-slot.js'
import type { LoraConfig } from './lora-config.js'
import type { LoraTarget } from './lora-targets.js'

export type LoraTensorKind = 'loraA' | 'loraB' | 'magnitude'

export interface LoraTensor {
  /** PEFT's key, e.g. `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. */
  readonly name: string
  /** Path of the linear. */
  readonly path: string
  readonly kind: LoraTensorKind
  /** A [rank, in], B [out, rank], magnitude [out]. */
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
}

/** Lays out the targets in their order. */
export function layoutAdapter(
  targets: readonly LoraTarget[],
  options: { useDora: boolean; dropout: number },
): LoraLayout {
  const tensors: LoraTensor[] = []
  const linears = new Map<string, LinearAdapter>()
  let end = 0
  for (const { path, rank, scaling, inFeatures, outFeatures } of targets) {
    const start = align(end)
    const place = (kind: LoraTensorKind, shape: number[]) => {
      const offset = align(end)
      tensors.push({ name: peftNames[kind](path), path, kind, shape, offset })
      end = offset + shape.reduce((product, size) => product * size, 1)
      return offset - start
    }
    place('loraA', [rank, inFeatures])
    const bOffset = place('loraB', [outFeatures, rank])
    const magnitude = options.useDora ? { magnitudeOffset: place('magnitude', [outFeatures]) } : {}
    linears.set(path, { path, rank, scaling, offset: start, length: end - start, bOffset, ...magnitude })
  }
  return { tensors, length: align(end), targets, adapter: { linears, dropout: options.dropout } }
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
      // Box-Muller
      values[i] = (Math.sqrt(-2 * Math.log(draw(2 * i))) * Math.cos(2 * Math.PI * draw(2 * i + 1))) / rank
    }
    return
  }
  const bound = 1 / Math.sqrt(inFeatures)
  for (let i = 0; i < values.length; i++) values[i] = (2 * draw(i) - 1) * bound
}

/**
 * First values of a new adapter: A random by seed and name, B zero, DoRA's magnitude the row norms of the base weight.
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
    if (tensor.kind === 'magnitude') {
      if (!options.rowNorms) throw new Error('DoRA needs the row norms of the base weights')
      view.set(options.rowNorms(tensor.path))
    }
  }
}
