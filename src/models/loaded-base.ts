// A base in memory: mapped weights that every graph's leaves are bound to (stop 5).
import { weightTensors } from '../compiler/ops/weight.js'
import type { LeafMemory } from '../runtime/bind.js'
import type { DeviceBuffer, Runtime } from '../runtime/types.js'
import type { Architecture } from './architecture.js'
import { openBase, type OpenedBase } from './base-directory.js'
import type { ModelConfig } from './config.js'
import type { WeightFormats } from './context.js'
import { architectureOf } from './index.js'

export interface LoadedBase {
  readonly runtime: Runtime
  readonly config: ModelConfig
  readonly architecture: Architecture
  readonly formats: WeightFormats
  /** Bytes of weights that a run may touch. */
  readonly mappedBytes: number
  /** Memory of a weight leaf; null for names that are not weights. */
  leaf(name: string): LeafMemory | null
  close(): void
}

/** Maps the weights of a base directory. Nothing is read until it is used. */
export async function loadBase(runtime: Runtime, base: OpenedBase | string): Promise<LoadedBase & { opened: OpenedBase }> {
  const opened = typeof base === 'string' ? await openBase(base) : base
  const weights = runtime.mapFile(opened.weightsPath)
  return {
    opened,
    runtime,
    config: opened.config,
    architecture: architectureOf(opened.config.modelType),
    formats: opened.formats,
    mappedBytes: weights.byteLength,
    leaf(name) {
      const tensor = opened.tensors.get(name)
      return tensor ? { buffer: weights, byteOffset: tensor.byteOffset } : null
    },
    close: () => weights.free(),
  }
}

/** A base whose weights lie in memory of the process, by leaf name (tests, random models). */
export function memoryBase(
  runtime: Runtime, config: ModelConfig, formats: WeightFormats, tensors: ReadonlyMap<string, Uint8Array>,
): LoadedBase {
  const buffers = new Map<string, DeviceBuffer>()
  for (const [name, bytes] of tensors) {
    const buffer = runtime.allocate(Math.max(64, bytes.byteLength))
    buffer.bytes.set(bytes)
    buffers.set(name, buffer)
  }
  return {
    runtime, config, formats,
    architecture: architectureOf(config.modelType),
    mappedBytes: [...buffers.values()].reduce((n, b) => n + b.byteLength, 0),
    leaf(name) {
      const buffer = buffers.get(name)
      return buffer ? { buffer, byteOffset: 0 } : null
    },
    close() {
      for (const buffer of buffers.values()) buffer.free()
    },
  }
}

/** A base of the given shape with random weights in one format: for benchmarks of models that are not at hand. */
export function randomBase(runtime: Runtime, config: ModelConfig, format: 'int4' | 'f32' = 'int4', seed = 1): LoadedBase {
  const architecture = architectureOf(config.modelType)
  const formats = new Map<string, { format: 'int4' | 'int8' | 'f32'; block: number; shape: number[] }>()
  const tensors = new Map<string, Uint8Array>()
  let state = seed >>> 0 || 1
  const next = () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return state >>> 0
  }
  const norm = (name: string, size: number) => tensors.set(name, new Uint8Array(new Float32Array(size).fill(1).buffer))
  const matrix = (name: string, kind: 'int4' | 'int8' | 'f32', outFeatures: number, inFeatures: number) => {
    formats.set(name, { format: kind, block: 32, shape: [outFeatures, inFeatures] })
    // Codes are uniform; scales give a spread near 0.02, the usual initialisation.
    for (const t of weightTensors(kind, 32, outFeatures, inFeatures)) {
      const size = t.shape.reduce((n, d) => n * d, 1)
      if (t.dtype === 'f16') {
        const halves: Record<string, number> = { '.scales': kind === 'int8' ? 0x0a00 : 0x1a00, '.offsets': 0xa5a0 }
        tensors.set(name + t.suffix, new Uint8Array(new Uint16Array(size).fill(halves[t.suffix]!).buffer))
      } else if (t.dtype === 'f32') {
        const values = new Float32Array(size)
        for (let i = 0; i < size; i++) values[i] = (next() / 2 ** 32 - 0.5) * 0.07
        tensors.set(name, new Uint8Array(values.buffer))
      } else {
        const codes = new Uint32Array(Math.ceil(size / 4))
        for (let i = 0; i < codes.length; i++) codes[i] = next()
        tensors.set(name + t.suffix, new Uint8Array(codes.buffer, 0, size))
      }
    }
  }
  const head = format === 'f32' ? 'f32' : 'int8'
  matrix('model.embed_tokens.weight', head, config.vocabSize, config.hiddenSize)
  if (!config.tieWordEmbeddings) matrix('lm_head.weight', head, config.vocabSize, config.hiddenSize)
  for (const { path, outFeatures, inFeatures } of architecture.linears(config)) matrix(`${path}.weight`, format, outFeatures, inFeatures)
  norm('model.norm.weight', config.hiddenSize)
  for (let i = 0; i < config.numHiddenLayers; i++) {
    norm(`model.layers.${i}.input_layernorm.weight`, config.hiddenSize)
    norm(`model.layers.${i}.post_attention_layernorm.weight`, config.hiddenSize)
  }
  return memoryBase(runtime, config, formats, tensors)
}
