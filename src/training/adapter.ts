// The adapter of a run: fresh LoRA weights or a start adapter from a PEFT folder, laid out over the base (stop 9).

import { weightTensors } from '../compiler/ops/weight.js'
import { initAdapter, type LoraLayout, layoutAdapter, viewTensor } from '../models/adapter-layout.js'
import type { OpenedBase } from '../models/base-directory.js'
import { BinaryFile } from '../models/binary-file.js'
import { storedFormats } from '../models/formats/index.js'
import { architectureOf } from '../models/index.js'
import { type LoraConfig, loraDefaults } from '../models/lora-config.js'
import { resolveTargets } from '../models/lora-targets.js'
import { loadAdapter, saveAdapter } from '../models/peft.js'
import type { FrozenAdapter } from './scorer.js'

export interface RunAdapter {
  readonly lora: LoraConfig
  readonly layout: LoraLayout
  /** Writes the first values into the flat parameters. */
  fill(params: Float32Array): void
  /** Writes the given values as a PEFT folder. */
  save(folder: string, params: Float32Array): void
}

const rowsAtOnce = 256

/** L2 norm of every row of a stored matrix, [out]. */
export function baseRowNorms(base: OpenedBase, path: string): Float32Array {
  const name = `${path}.weight`
  const stored = base.formats.get(name)
  if (!stored) throw new Error(`${base.dir}: has no matrix ${name}`)
  const [rows, columns] = stored.shape as [number, number]
  const file = new BinaryFile(base.weightsPath)
  try {
    const parts = weightTensors(stored.format, stored.block, rows, columns).map(({ suffix }) => {
      const { byteOffset, byteLength } = base.tensors.get(name + suffix)!
      return file.read(byteOffset, byteLength, name)
    })
    const norms = new Float32Array(rows)
    for (let from = 0; from < rows; from += rowsAtOnce) {
      const to = Math.min(rows, from + rowsAtOnce)
      const values = storedFormats[stored.format].unpack(parts, columns, stored.block, from, to)
      for (let row = from; row < to; row++) {
        let squares = 0
        const start = (row - from) * columns
        for (let i = start; i < start + columns; i++) squares += values[i]! * values[i]!
        norms[row] = Math.sqrt(squares)
      }
    }
    return norms
  } finally {
    file.close()
  }
}

export interface OpenAdapterOptions {
  /** What the recipe sets; absent fields are the defaults. */
  lora: Partial<LoraConfig>
  /** A PEFT folder; it then decides everything that changes what the adapter computes. */
  startAdapter?: string | undefined
  seed: number
  /** For `base_model_name_or_path`. */
  baseName: string
  /** With a scalar head: a reward or value model. A start adapter without one gets a fresh one. */
  hasScore?: boolean
}

/** Lays out the adapter of a run. @throws where the start adapter contradicts the recipe or does not fit the base */
export function openAdapter(base: OpenedBase, options: OpenAdapterOptions): RunAdapter {
  const linears = architectureOf(base.config.modelType).linears(base.config)
  const scoreFeatures = options.hasScore ? base.config.hiddenSize : undefined
  if (options.startAdapter !== undefined) {
    const loaded = loadAdapter(options.startAdapter, linears, { scoreFeatures })
    for (const key of ['rank', 'alpha', 'useRslora', 'useDora'] as const) {
      const asked = options.lora[key]
      if (asked !== undefined && asked !== loaded.lora[key]) {
        throw new Error(
          `adapter.${key} is ${asked} and the start adapter ${options.startAdapter} has ${loaded.lora[key]}: remove it from the recipe, or leave out stage.startAdapter`,
        )
      }
    }
    const dropout = options.lora.dropout ?? loaded.lora.dropout
    const layout = { ...loaded.layout, adapter: { ...loaded.layout.adapter, dropout } }
    return adapterOf({ ...loaded.lora, dropout }, layout, options.baseName, (params) => {
      initAdapter(layout, params, { seed: options.seed, rowNorms: (path) => baseRowNorms(base, path) })
      const fresh = new Set(loaded.report.missing)
      for (const tensor of layout.tensors)
        if (!fresh.has(tensor.name)) viewTensor(params, tensor).set(viewTensor(loaded.values, tensor))
    })
  }
  const lora = { ...loraDefaults, ...options.lora }
  const layout = layoutAdapter(resolveTargets(lora, linears), { ...lora, scoreFeatures })
  return adapterOf(lora, layout, options.baseName, (params) =>
    initAdapter(layout, params, {
      seed: options.seed,
      initLoraWeights: lora.initLoraWeights,
      rowNorms: (path) => baseRowNorms(base, path),
    }),
  )
}

/** An adapter that stays as it is; with `hasScore` that of a reward or value model. @throws where it does not fit the base */
export function openFrozen(base: OpenedBase, folder: string, options: { hasScore?: boolean } = {}): FrozenAdapter {
  const linears = architectureOf(base.config.modelType).linears(base.config)
  const scoreFeatures = options.hasScore ? base.config.hiddenSize : undefined
  const { layout, values } = loadAdapter(folder, linears, { scoreFeatures, needsScore: true })
  return { shape: { ...layout.adapter, dropout: 0 }, values }
}

function adapterOf(lora: LoraConfig, layout: LoraLayout, baseModel: string, fill: RunAdapter['fill']): RunAdapter {
  return {
    lora,
    layout,
    fill,
    save: (folder, params) => saveAdapter(folder, { lora, layout, values: params, baseModel }),
  }
}
