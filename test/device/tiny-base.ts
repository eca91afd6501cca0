// A tiny random model in memory and its training step, for runs on any provider.
import { type WeightFormat, weightTensors } from '../../src/compiler/ops/weight.js'
import type { LinearAdapter } from '../../src/models/adapter-slot.js'
import { parseModelConfig } from '../../src/models/config.js'
import { toHalf } from '../../src/models/float16.js'
import { architectureOf } from '../../src/models/index.js'
import { type LoadedBase, type MemoryTensor, memoryBase } from '../../src/models/loaded-base.js'
import { stripingOf } from '../../src/models/stripes.js'
import type { Runtime } from '../../src/runtime/types.js'
import type { MicroBatch } from '../../src/training/program.js'
import { type LiveProgram, openTrainProgram, type TrainProgramOptions } from '../../src/training/step.js'
import { randomSource } from '../ops/case.js'

export const tinyConfig = parseModelConfig({
  model_type: 'llama',
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 128,
  tie_word_embeddings: true,
  max_position_embeddings: 256,
})

export function tinyBase(runtime: Runtime, format: WeightFormat = 'int4'): LoadedBase {
  const architecture = architectureOf(tinyConfig.modelType)
  const random = randomSource(3)
  const formats = new Map<string, { format: WeightFormat; block: number; shape: number[] }>()
  const tensors = new Map<string, MemoryTensor>()
  const bytes = (array: ArrayBufferView) =>
    new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength)
  const matrix = (name: string, kind: WeightFormat, outFeatures: number, inFeatures: number) => {
    formats.set(name, { format: kind, block: 32, shape: [outFeatures, inFeatures] })
    for (const part of weightTensors(kind, 32, outFeatures, inFeatures)) {
      const { suffix, dtype, shape } = part
      const values = Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => random())
      const array =
        dtype === 'f16'
          ? Uint16Array.from(values, (x) => toHalf(suffix === '.offsets' ? -0.15 - 0.1 * x : 0.01 + 0.02 * x))
          : dtype === 'f32'
            ? Float32Array.from(values, (x) => (x - 0.5) * 0.5)
            : Uint8Array.from(values, (x) => x * 256)
      tensors.set(name + suffix, { dtype, bytes: bytes(array), striping: stripingOf(part, outFeatures) })
    }
  }
  const norm = (name: string) =>
    tensors.set(name, {
      dtype: 'f32',
      bytes: bytes(Float32Array.from({ length: tinyConfig.hiddenSize }, () => 0.9 + 0.2 * random())),
    })
  matrix('model.embed_tokens.weight', 'f32', tinyConfig.vocabSize, tinyConfig.hiddenSize)
  for (const l of architecture.linears(tinyConfig)) matrix(`${l.path}.weight`, format, l.outFeatures, l.inFeatures)
  norm('model.norm.weight')
  for (let i = 0; i < tinyConfig.numHiddenLayers; i++) {
    norm(`model.layers.${i}.input_layernorm.weight`)
    norm(`model.layers.${i}.post_attention_layernorm.weight`)
  }
  return memoryBase(runtime, tinyConfig, formats, tensors)
}

/** Rank 4 on every linear; A random, B zero; with `score` a scalar head, zero. */
export async function tinyProgram(
  base: LoadedBase,
  { score, ...options }: Partial<TrainProgramOptions> & { score?: boolean } = {},
): Promise<LiveProgram> {
  const linears = new Map<string, LinearAdapter>()
  const tensors: { name: string; path: string; kind: string; shape: number[]; offset: number }[] = []
  let offset = 0
  for (const { path, inFeatures, outFeatures } of base.architecture.linears(base.config)) {
    const rank = 4
    const bOffset = rank * inFeatures
    linears.set(path, { path, rank, scaling: 2, offset, length: bOffset + rank * outFeatures, bOffset })
    tensors.push({ name: `${path}.lora_A.weight`, path, kind: 'loraA', shape: [rank, inFeatures], offset })
    tensors.push({
      name: `${path}.lora_B.weight`,
      path,
      kind: 'loraB',
      shape: [outFeatures, rank],
      offset: offset + bOffset,
    })
    offset += bOffset + rank * outFeatures
  }
  const { hiddenSize } = base.config
  const head = score ? { score: { offset, length: hiddenSize } } : {}
  if (score) {
    tensors.push({ name: 'score.weight', path: 'score', kind: 'score', shape: [1, hiddenSize], offset })
    offset += hiddenSize
  }
  const program = await openTrainProgram({
    base,
    layout: { tensors, length: offset },
    adapter: { linears, dropout: 0, ...head },
    maxTokens: 24,
    maxDocuments: 2,
    precision: 'strict',
    ...options,
  })
  const random = randomSource(9)
  for (const t of tensors)
    if (t.kind === 'loraA')
      for (let i = 0; i < t.shape[0]! * t.shape[1]!; i++) program.params[t.offset + i] = (random() - 0.5) * 0.25
  return program
}

/** Two documents of 15 and 9 tokens, every next token a target. */
export function tinyBatch(): MicroBatch {
  const lengths = [15, 9]
  const inputIds = Int32Array.from({ length: 24 }, (_, i) => (i * 7 + 5) % 128)
  const labels = Int32Array.from(inputIds, (_, i) => (i === 14 || i === 23 ? -100 : inputIds[i + 1]!))
  const positionIds = Int32Array.from({ length: 24 }, (_, i) => (i < lengths[0]! ? i : i - lengths[0]!))
  return { inputIds, labels, positionIds, cuSeqlens: Int32Array.of(0, 15, 24) }
}

/** Losses of a few steps of a fresh program, and the parameters at the end. */
export async function trainTiny(base: LoadedBase, steps = 4): Promise<{ losses: number[]; params: Float32Array }> {
  const program = await tinyProgram(base)
  const losses: number[] = []
  for (let step = 1; step <= steps; step++) {
    const { lossSum } = await program.accumulate(tinyBatch(), { first: true, lossScale: 1 / 22, rngStep: step })
    losses.push(lossSum)
    await program.update({
      learningRate: 5e-3,
      beta1: 0.9,
      beta2: 0.999,
      epsilon: 1e-8,
      weightDecay: 0.01,
      maxGradNorm: 1,
      step,
    })
  }
  const params = program.params.slice()
  program.close()
  return { losses, params }
}
