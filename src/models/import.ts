// `espalier import`: a GGUF file or a Hugging Face folder becomes a base directory with packed weights (stop 5 of a run).
// Tensors stream through in pieces of rows; nothing is held whole. The directory appears complete or not at all.
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { Graph } from '../compiler/graph.js'
import { type WeightFormat, weightTensors } from '../compiler/ops/weight.js'
import { BASE_VERSION, type BaseManifest, baseFiles, partDtypes, type StoredWeight } from './base-directory.js'
import { CHUNK_BYTES } from './binary-file.js'
import { type ModelConfig, parseModelConfig } from './config.js'
import { ModelContext } from './context.js'
import { FormatError } from './format-error.js'
import { findFormat } from './formats/index.js'
import { type ImportSource, openSource, readValues, rowsAndColumns, type SourceTensor } from './import-source.js'
import { architectureOf } from './index.js'
import { createSafetensors, type SafetensorsWriter, syncDirectory, type TensorSpec } from './safetensors-writer.js'

/** What matrices become; each keeps what is exact in the source where `keeps` allows it. */
interface ImportFormat {
  /** Formats of a source matrix that are kept without any change in value. */
  keeps: readonly WeightFormat[]
  /** Other linear layers. */
  linear: WeightFormat | null
  /** Other embeddings and heads. */
  embedding: WeightFormat | null
  help: string
}

const packed: readonly WeightFormat[] = ['int4', 'int4sym', 'int8']

/** The values of `--format`. */
export const importFormats = {
  source: { keeps: packed, linear: 'int4', embedding: 'int8', help: "the source's own 4 or 8 bits, else int4" },
  int4: {
    keeps: ['int4', 'int4sym'],
    linear: 'int4',
    embedding: 'int8',
    help: '4-bit codes, half-precision scale and offset per 32',
  },
  nf4: { keeps: [], linear: 'nf4', embedding: 'int8', help: 'NF4 with double quantization, as QLoRA' },
  none: { keeps: ['f32', 'bf16'], linear: null, embedding: null, help: 'not quantized: float32 or bfloat16' },
} as const satisfies Record<string, ImportFormat>

export type ImportFormatName = keyof typeof importFormats

export interface ImportProgress {
  phase: 'hash' | 'weights'
  /** Bytes of the source hashed, or values written, and in all. */
  done: number
  total: number
  /** The tensor being written. */
  tensor?: string
}

export interface ImportOptions {
  /** A .gguf file or a Hugging Face folder. */
  source: string
  /** The base directory to write; replaced if it is one already. */
  out: string
  format?: ImportFormatName
  /** What to call the base: default, the source's file name. */
  name?: string
  onProgress?: (progress: ImportProgress) => void
  signal?: AbortSignal
}

export interface ImportResult {
  out: string
  config: ModelConfig
  manifest: BaseManifest
  /** Relative root-mean-square error by tensor, of the matrices whose values changed. */
  quantizationError: Record<string, number>
  /** Matrices kept dense though a 4-bit form was asked for, with the reason. */
  notes: string[]
  /** Bytes of the weight file. */
  byteLength: number
}

interface PlannedWeight {
  tensor: SourceTensor
  stored: StoredWeight
  /** False: parts are copied as they are. */
  pack: boolean
}

/** Rows handled at a time: about a megabyte of values. */
const rowsPerPiece = (columns: number) => Math.max(1, Math.floor(CHUNK_BYTES / 4 / columns))

const isEmbedding = (name: string) => name === 'model.embed_tokens.weight' || name === 'lm_head.weight'

/** A dense format with the same values: half precision fits a float32. */
const denseOf = (format: string): WeightFormat => (format === 'bf16' ? 'bf16' : 'f32')

function planMatrix(tensor: SourceTensor, choice: ImportFormat, notes: string[]): PlannedWeight {
  const { name, shape } = tensor
  const columns = shape[1]!
  const keep = (choice.keeps as readonly string[]).includes(tensor.format)
  const wanted = keep ? (tensor.format as WeightFormat) : isEmbedding(name) ? choice.embedding : choice.linear
  const format = wanted ?? denseOf(tensor.format)
  const block = keep ? tensor.block : findFormat(format)!.blocks[0]!
  if (columns % findFormat(format)!.columnsMultiple(block) !== 0) {
    const dense = denseOf(tensor.format)
    notes.push(`${name}: ${columns} columns are no multiple of ${block}; kept as ${dense}`)
    return { tensor, stored: { format: dense, block: 1, shape }, pack: tensor.format !== dense }
  }
  return { tensor, stored: { format, block, shape }, pack: tensor.format !== format || tensor.block !== block }
}

function planWeights(source: ImportSource, choice: ImportFormat) {
  const notes: string[] = []
  const weights: PlannedWeight[] = []
  for (const tensor of source.tensors.values()) {
    const isVector = tensor.shape.length === 1
    if (isVector) {
      const stored: StoredWeight = { format: 'f32', block: 1, shape: tensor.shape }
      weights.push({ tensor, stored, pack: tensor.format !== 'f32' })
    } else weights.push(planMatrix(tensor, choice, notes))
  }
  return { weights, notes }
}

/** Every tensor that a trace of the model asks for is there in its shape, and no other. */
function checkAgainstModel(config: ModelConfig, weights: PlannedWeight[], path: string): void {
  const planned = new Map(weights.map(({ tensor, stored }) => [tensor.name, stored]))
  const graph = new Graph({ kernels: true })
  const asked = new Set<string>()
  try {
    const context = new ModelContext(graph, { config, formats: planned })
    architectureOf(config.modelType).build(context)
    context.head()
  } catch (error) {
    throw new FormatError(path, 'tensors', (error as Error).message)
  }
  const suffixes = new Map(
    weights.flatMap(({ tensor, stored }) =>
      partsOf(tensor.name, stored).map((part) => [part.name, { weight: tensor.name, shape: part.shape }] as const),
    ),
  )
  for (const leaf of graph.leaves) {
    if (leaf.leaf?.role !== 'weight') continue
    const found = suffixes.get(leaf.leaf.name)
    if (!found) throw new FormatError(path, `tensor ${JSON.stringify(leaf.leaf.name)}`, 'missing')
    if (found.shape.join() !== leaf.shape.join()) {
      throw new FormatError(
        path,
        `tensor ${JSON.stringify(leaf.leaf.name)}`,
        `is [${found.shape}], the configuration says [${leaf.shape}]`,
      )
    }
    asked.add(found.weight)
  }
  const extra = weights.find(({ tensor }) => !asked.has(tensor.name))
  if (extra) {
    throw new FormatError(
      path,
      `tensor ${JSON.stringify(extra.tensor.name)}`,
      `not part of a ${config.modelType} model as config.json describes it`,
    )
  }
}

/** The tensors of the weight file that hold one weight, in the order of the op inputs. */
function partsOf(name: string, { format, block, shape }: StoredWeight): TensorSpec[] {
  if (shape.length === 1) return [{ name, dtype: 'F32', shape }]
  const [rows, columns] = rowsAndColumns([...shape])
  return weightTensors(format, block, rows, columns).map((part) => ({
    name: name + part.suffix,
    dtype: partDtypes[part.dtype]!,
    shape: part.shape,
  }))
}

/** Scales of a source are copied as they are; one that is not finite would poison a whole row silently. */
function checkScales(weight: PlannedWeight, parts: Uint8Array[], from: number, path: string): void {
  for (const part of parts.slice(1)) {
    for (let i = 1; i < part.byteLength; i += 2) {
      if ((part[i]! & 0x7c) === 0x7c) {
        throw new FormatError(
          path,
          `tensor ${JSON.stringify(weight.tensor.name)}`,
          `a scale from row ${from} on is not finite`,
        )
      }
    }
  }
}

interface WriteContext {
  writer: SafetensorsWriter
  source: ImportSource
  onValues(count: number, tensor: string): void
  signal?: AbortSignal | undefined
}

/** Writes one weight; returns its relative RMS error, or null where values were copied. */
async function writeWeight(weight: PlannedWeight, context: WriteContext): Promise<number | null> {
  const { tensor, stored, pack } = weight
  const { writer, source } = context
  const [rows, columns] = rowsAndColumns(tensor.shape)
  const specs = partsOf(tensor.name, stored)
  const format = findFormat(stored.format)!
  const packer = pack
    ? format.createPacker!(rows, columns, stored.block, (part, bytes, at) => writer.write(specs[part]!.name, bytes, at))
    : null
  const written = specs.map(() => 0)
  const piece = rowsPerPiece(columns)
  for (let from = 0; from < rows; from += piece) {
    context.signal?.throwIfAborted()
    const to = Math.min(rows, from + piece)
    if (packer) {
      try {
        packer.rows(readValues(tensor, from, to), from)
      } catch (error) {
        if (error instanceof FormatError) throw error
        throw new FormatError(source.path, `tensor ${JSON.stringify(tensor.name)}`, (error as Error).message)
      }
    } else {
      const parts = tensor.readParts(from, to)
      if (stored.block > 1) checkScales(weight, parts, from, source.path)
      parts.forEach((bytes, i) => {
        writer.write(specs[i]!.name, bytes, written[i]!)
        written[i]! += bytes.byteLength
      })
    }
    context.onValues((to - from) * columns, tensor.name)
    await new Promise(setImmediate)
  }
  if (!packer) return null
  const { sumOfSquares, errorSquares } = packer.finish()
  if (!Number.isFinite(sumOfSquares) || !Number.isFinite(errorSquares)) {
    throw new FormatError(source.path, `tensor ${JSON.stringify(tensor.name)}`, 'holds a value that is not finite')
  }
  return sumOfSquares === 0 ? 0 : Math.sqrt(errorSquares / sumOfSquares)
}

/** The model type is looked at first: the other fields of a foreign one mean something else. */
function checkModelType({ config, configPath }: ImportSource): void {
  const type = config.model_type
  try {
    if (typeof type !== 'string') throw new Error(`a string is expected, it is ${JSON.stringify(type)}`)
    architectureOf(type)
  } catch (error) {
    throw new FormatError(configPath, 'model_type', (error as Error).message)
  }
}

/** A directory is replaced only if it is a base already; anything else there is somebody's. */
function checkOut(out: string): void {
  if (!existsSync(out)) return
  if (existsSync(join(out, baseFiles.manifest)) || readdirSync(out).length === 0) return
  throw new Error(`${out} exists and is no base directory; choose another place or remove it`)
}

/** Moves the finished directory into place; the old one goes only after that. */
function replaceDirectory(aside: string, out: string): void {
  const old = `${out}.${process.pid}.old`
  const replaces = existsSync(out)
  if (replaces) renameSync(out, old)
  renameSync(aside, out)
  if (replaces) rmSync(old, { recursive: true, force: true })
  syncDirectory(dirname(out))
}

/**
 * Imports `source` into the base directory `out`. Q4_0, Q4_1 and Q8_0 tensors keep their exact values unless another
 * format is asked for.
 * @throws FormatError naming file and tensor; Error where `out` is something else; the signal's reason
 */
export async function importBase(options: ImportOptions): Promise<ImportResult> {
  const format = options.format ?? 'source'
  const out = resolve(options.out)
  checkOut(out)
  const source = openSource(options.source)
  const aside = `${out}.${process.pid}.partial`
  try {
    checkModelType(source)
    const config = parseModelConfig(source.config, source.configPath)
    const { weights, notes } = planWeights(source, importFormats[format])
    checkAgainstModel(config, weights, options.source)
    const files = source.files()
    let hashed = 0
    const sha256 = await source.hash((bytes) => {
      options.signal?.throwIfAborted()
      hashed += bytes
      options.onProgress?.({ phase: 'hash', done: hashed, total: source.byteLength })
    })
    mkdirSync(aside, { recursive: true })
    const specs = weights.flatMap(({ tensor, stored }) => partsOf(tensor.name, stored))
    const weightsPath = join(aside, baseFiles.weights)
    const writer = createSafetensors(weightsPath, specs, { metadata: { format: 'pt' }, alignment: 64 })
    const quantizationError: Record<string, number> = {}
    const total = weights.reduce((sum, { tensor }) => sum + tensor.shape.reduce((n, size) => n * size, 1), 0)
    let done = 0
    const context: WriteContext = {
      writer,
      source,
      signal: options.signal,
      onValues(count, tensor) {
        done += count
        options.onProgress?.({ phase: 'weights', done, total, tensor })
      },
    }
    try {
      for (const weight of weights) {
        const error = await writeWeight(weight, context)
        if (error !== null && error > 0) quantizationError[weight.tensor.name] = error
      }
      writer.finish()
    } catch (error) {
      writer.abort()
      throw error
    }
    const manifest: BaseManifest = {
      version: BASE_VERSION,
      source: { name: options.name ?? basename(options.source), sha256 },
      importFormat: format,
      formats: Object.fromEntries(weights.map(({ tensor, stored }) => [tensor.name, stored])),
      quantizationError,
      notes,
    }
    const texts = new Map(files)
    texts.set(baseFiles.config, JSON.stringify(source.config, null, 1))
    texts.set(baseFiles.manifest, JSON.stringify(manifest, null, 1))
    for (const [name, text] of texts)
      writeFileSync(join(aside, name), text.endsWith('\n') ? text : `${text}\n`, { flush: true })
    syncDirectory(aside)
    replaceDirectory(aside, out)
    const byteLength = statSync(join(out, baseFiles.weights)).size
    return { out, config, manifest, quantizationError, notes, byteLength }
  } finally {
    source.close()
    rmSync(aside, { recursive: true, force: true })
  }
}
