// A base directory, as `espalier import` writes it: config.json, tokenizer files, packed weights in safetensors and
// espalier.json. Opening checks every tensor against the header and reads no weight: the runtime loads them (stop 5).
import { join } from 'node:path'
import { z } from 'zod'
import type { DType } from '../compiler/graph.js'
import { type WeightFormat, weightFormats, weightTensors } from '../compiler/ops/weight.js'
import { readJsonObject } from './checkpoint.js'
import { type ModelConfig, parseModelConfig } from './config.js'
import { FormatError } from './format-error.js'
import { findFormat } from './formats/index.js'
import { openSafetensors, type SafetensorsFile } from './safetensors.js'
import { FILLER_PREFIX } from './safetensors-writer.js'
import { type Striping, stripingOf } from './stripes.js'

export const BASE_VERSION = 1

export const baseFiles = {
  config: 'config.json',
  tokenizer: 'tokenizer.json',
  tokenizerConfig: 'tokenizer_config.json',
  weights: 'weights.safetensors',
  manifest: 'espalier.json',
} as const

/** Weights start at multiples of this in the file, so that they do in the map. */
export const WEIGHT_ALIGNMENT_BYTES = 64

/** Names of the compiler's element types in safetensors files. */
export const partDtypes: Readonly<Partial<Record<DType, string>>> = {
  f32: 'F32',
  bf16: 'BF16',
  f16: 'F16',
  u8: 'U8',
  i8: 'I8',
}

const formatNames = Object.keys(weightFormats) as [WeightFormat, ...WeightFormat[]]
const size = z.number().int().positive()

const storedWeightSchema = z.object({
  format: z.enum(formatNames),
  /** Values per scale; 1 where there are none. */
  block: size,
  /** [out, in] of a matrix, [n] of a vector. */
  shape: z.array(size).min(1).max(2),
})
export type StoredWeight = z.infer<typeof storedWeightSchema>

const manifestSchema = z.object({
  version: z.literal(BASE_VERSION),
  source: z.object({ name: z.string(), sha256: z.string().regex(/^[0-9a-f]{64}$/) }),
  importFormat: z.string(),
  formats: z.record(z.string(), storedWeightSchema),
  quantizationError: z.record(z.string(), z.number()),
  notes: z.array(z.string()),
})
/** The content of espalier.json. */
export type BaseManifest = z.infer<typeof manifestSchema>

/** One tensor of the weight file. */
export interface StoredTensor {
  byteOffset: number
  byteLength: number
  dtype: DType
  shape: number[]
  /** How kernels want it; null: as it is. */
  striping: Striping | null
}

export interface OpenedBase {
  dir: string
  config: ModelConfig
  /** config.json as it is. */
  rawConfig: Record<string, unknown>
  manifest: BaseManifest
  /** Which base this is: the name and hash of what was imported. */
  source: { name: string; sha256: string }
  /** How each matrix is stored, by its Hugging Face name (`….weight`). */
  formats: ReadonlyMap<string, StoredWeight>
  weightsPath: string
  /** Bytes of the weight file. */
  byteLength: number
  /** Tensors of the weight file by name (`….weight.codes`, …), to be bound where it is loaded. */
  tensors: ReadonlyMap<string, StoredTensor>
  tokenizerPath: string
  /** Content of tokenizer.json; some megabytes, parsed when first asked for. */
  readonly tokenizerJson: Record<string, unknown>
  /** Content of tokenizer_config.json, chat template included. */
  readonly tokenizerConfig: Record<string, unknown>
}

function readManifest(path: string): BaseManifest {
  const parsed = manifestSchema.safeParse(readJsonObject(path))
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]!
  throw new FormatError(path, issue.path.join('.') || 'top level', `${issue.message} (import the base again)`)
}

interface StoredPart {
  name: string
  dtype: DType
  shape: readonly number[]
  striping: Striping | null
}

/** The tensors that hold one weight, by suffix, as the ops want them. */
function expectedParts(name: string, stored: StoredWeight): StoredPart[] {
  const [rows, columns] = stored.shape
  if (columns === undefined) return [{ name, dtype: 'f32', shape: stored.shape, striping: null }]
  return weightTensors(stored.format, stored.block, rows!, columns).map((part) => ({
    name: name + part.suffix,
    dtype: part.dtype,
    shape: part.shape,
    striping: stripingOf(part, rows!),
  }))
}

function checkTensors(file: SafetensorsFile, formats: BaseManifest['formats']): Map<string, StoredTensor> {
  const tensors = new Map<string, StoredTensor>()
  for (const [weight, stored] of Object.entries(formats)) {
    for (const { name, dtype, shape, striping } of expectedParts(weight, stored)) {
      const fail = (problem: string) => new FormatError(file.path, `tensor ${JSON.stringify(name)}`, problem)
      const entry = file.tensors.get(name)
      if (!entry)
        throw fail(`missing, ${baseFiles.manifest} lists ${weight} as ${stored.format} (import the base again)`)
      const expected = `${partDtypes[dtype]} [${shape}]`
      const found = `${entry.dtype} [${entry.shape}]`
      if (found !== expected) throw fail(`is ${found}, ${expected} is expected`)
      if (entry.byteOffset % WEIGHT_ALIGNMENT_BYTES !== 0) throw fail(`byte ${entry.byteOffset} is not 64-byte aligned`)
      const { byteOffset, byteLength } = entry
      tensors.set(name, { byteOffset, byteLength, dtype, shape: entry.shape, striping })
    }
  }
  for (const name of file.tensors.keys()) {
    if (!tensors.has(name) && !name.startsWith(FILLER_PREFIX)) {
      throw new FormatError(file.path, `tensor ${JSON.stringify(name)}`, `not listed in ${baseFiles.manifest}`)
    }
  }
  return tensors
}

/** Opens a base directory. Throws FormatError naming the file and what does not fit. */
export function openBase(dir: string): OpenedBase {
  const manifest = readManifest(join(dir, baseFiles.manifest))
  const configPath = join(dir, baseFiles.config)
  const rawConfig = readJsonObject(configPath)
  const config = parseModelConfig(rawConfig, configPath)
  const weightsPath = join(dir, baseFiles.weights)
  const file = openSafetensors(weightsPath)
  try {
    const tensors = checkTensors(file, manifest.formats)
    const last = Math.max(0, ...[...file.tensors.values()].map((entry) => entry.byteOffset + entry.byteLength))
    const tokenizerPath = join(dir, baseFiles.tokenizer)
    let tokenizerJson: Record<string, unknown> | undefined
    let tokenizerConfig: Record<string, unknown> | undefined
    return {
      dir,
      config,
      rawConfig,
      manifest,
      source: manifest.source,
      formats: new Map(Object.entries(manifest.formats).filter(([, stored]) => stored.shape.length === 2)),
      weightsPath,
      byteLength: last,
      tensors,
      tokenizerPath,
      get tokenizerJson() {
        tokenizerJson ??= readJsonObject(tokenizerPath)
        return tokenizerJson
      },
      get tokenizerConfig() {
        tokenizerConfig ??= readJsonObject(join(dir, baseFiles.tokenizerConfig))
        return tokenizerConfig
      },
    }
  } finally {
    file.close()
  }
}

/** Float32 values of rows `from` to `to` of weights, read from the file: for checks and norms, not for running. */
export interface WeightReader {
  rows(name: string, from?: number, to?: number): Float32Array
  close(): void
}

/** Opens the weights of a base for reading values. */
export function openWeights(base: OpenedBase): WeightReader {
  const file = openSafetensors(base.weightsPath)
  const partsOf = new Map<string, Uint8Array[]>()
  return {
    rows(name, from = 0, to) {
      const stored = base.manifest.formats[name]
      if (!stored) throw new Error(`${base.weightsPath}: there is no weight ${name}`)
      const [rows, columns] = stored.shape.length === 2 ? stored.shape : [1, stored.shape[0]!]
      if (!partsOf.has(name)) {
        // The last weight read is kept: rows are asked for in pieces.
        partsOf.clear()
        const entries = expectedParts(name, stored).map((part) => file.tensors.get(part.name)!)
        partsOf.set(
          name,
          entries.map((entry) => file.read(entry)),
        )
      }
      return findFormat(stored.format)!.unpack(partsOf.get(name)!, columns!, stored.block, from, to ?? rows!)
    },
    close: () => file.close(),
  }
}

/** L2 norm of every row of a weight [out, in]: DoRA's first magnitude. Sums in float64. */
export function rowNorms(weights: WeightReader, base: OpenedBase, name: string): Float32Array {
  const [rows, columns] = base.manifest.formats[name]?.shape ?? []
  if (rows === undefined || columns === undefined) throw new Error(`${base.weightsPath}: there is no matrix ${name}`)
  const values = weights.rows(name)
  const norms = new Float32Array(rows)
  for (let row = 0; row < rows; row++) {
    let sum = 0
    for (let i = row * columns; i < (row + 1) * columns; i++) sum += values[i]! * values[i]!
    norms[row] = Math.sqrt(sum)
  }
  return norms
}
