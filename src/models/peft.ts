// Adapters as PEFT folders (adapter_config.json, adapter_model.safetensors), read and written exactly. Loading counts what
// matched: an adapter that fills nothing, or half of the model, is an error unless it was asked for (stop 14).
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type LoraLayout, type LoraTensor, layoutAdapter, peftNames, viewTensor } from './adapter-layout.js'
import { readJsonObject } from './checkpoint.js'
import { FormatError } from './format-error.js'
import { bytesOf } from './formats/format.js'
import { storedFormats } from './formats/index.js'
import { formatPeftConfig, type LoraConfig, type PeftConfig, parsePeftConfig } from './lora-config.js'
import { type LinearSize, resolveTargets } from './lora-targets.js'
import { openSafetensors, type SafetensorsFile } from './safetensors.js'
import { writeSafetensors } from './safetensors-writer.js'

export const peftFiles = { config: 'adapter_config.json', weights: 'adapter_model.safetensors' } as const

export interface AdapterReport {
  /** Tensors of the model that the file filled. */
  matched: string[]
  /** Tensors that the configuration asks for and the file lacks. */
  missing: string[]
  /** Tensors of the file that have no place in the model. */
  unexpected: string[]
}

export interface LoadedAdapter extends PeftConfig {
  dir: string
  layout: LoraLayout
  /** All tensors in the flat layout, float32. */
  values: Float32Array
  report: AdapterReport
}

export interface LoadOptions {
  /** Accept an adapter of which only part fits: linears without both matrices are left alone, other tensors ignored. */
  allowPartial?: boolean
  /** The adapter is that of a reward or value model: its scalar head reads hidden states of this size. */
  scoreFeatures?: number | undefined
  /** A head that is missing is an error; otherwise it is left at zero and named among the missing. */
  needsScore?: boolean
}

const formatOfDtype: Record<string, 'f32' | 'f16' | 'bf16'> = { F32: 'f32', F16: 'f16', BF16: 'bf16' }

function readTensor(file: SafetensorsFile, tensor: LoraTensor, into: Float32Array): void {
  const entry = file.tensors.get(tensor.name)!
  const place = `tensor ${JSON.stringify(tensor.name)}`
  const format = formatOfDtype[entry.dtype]
  if (!format) throw new FormatError(file.path, place, `dtype ${entry.dtype}; F32, F16 and BF16 are read`)
  if (entry.shape.join() !== tensor.shape.join()) {
    throw new FormatError(
      file.path,
      place,
      `is [${entry.shape}], [${tensor.shape}] is expected: another rank or base model`,
    )
  }
  const values = storedFormats[format].unpack([file.read(entry)], into.length, 1, 0, 1)
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i]!)) throw new FormatError(file.path, place, `value ${i} is ${values[i]}`)
  }
  into.set(values)
}

const few = (items: string[]) =>
  items.length <= 3 ? items.join(', ') : `${items.slice(0, 3).join(', ')} and ${items.length - 3} more`

/** Refuses an adapter that does not fit the model, with the counts. */
function checkReport(report: AdapterReport, file: string, allowPartial: boolean): void {
  const { matched, missing, unexpected } = report
  const counts = `${matched.length} tensors match, ${missing.length} are missing, ${unexpected.length} have no place in this model`
  if (matched.length === 0) throw new FormatError(file, 'tensors', `${counts}: this adapter belongs to another model`)
  if (allowPartial || missing.length + unexpected.length === 0) return
  const named = [
    missing.length > 0 ? `missing: ${few(missing)}` : '',
    unexpected.length > 0 ? `without a place: ${few(unexpected)}` : '',
  ].filter(Boolean)
  throw new FormatError(file, 'tensors', `${counts} (${named.join('; ')}); allowPartial loads it anyway`)
}

/** Reads the configuration of an adapter folder. Throws FormatError. */
export function readPeftConfig(dir: string): PeftConfig {
  const path = join(dir, peftFiles.config)
  return parsePeftConfig(readJsonObject(path, 10_000_000), path)
}

/**
 * Reads an adapter for a model with these linears.
 * @throws FormatError for files that are malformed, and for adapters that fill nothing or only part of the model
 */
export function loadAdapter(dir: string, linears: readonly LinearSize[], options: LoadOptions = {}): LoadedAdapter {
  const config = readPeftConfig(dir)
  const path = join(dir, peftFiles.weights)
  if (!existsSync(path) && existsSync(join(dir, 'adapter_model.bin'))) {
    throw new FormatError(dir, peftFiles.weights, 'missing; adapter_model.bin is not read: save it as safetensors')
  }
  const file = openSafetensors(path)
  try {
    let targets: ReturnType<typeof resolveTargets>
    try {
      targets = resolveTargets(config.lora, linears)
    } catch (error) {
      throw new FormatError(join(dir, peftFiles.config), 'target_modules', (error as Error).message)
    }
    const { useDora, dropout } = config.lora
    const shape = { useDora, dropout, scoreFeatures: options.scoreFeatures }
    const wanted = layoutAdapter(targets, shape)
    const names = new Set(wanted.tensors.map(({ name }) => name))
    const report: AdapterReport = {
      matched: [...names].filter((name) => file.tensors.has(name)),
      missing: [...names].filter((name) => !file.tensors.has(name)),
      unexpected: [...file.tensors.keys()].filter((name) => !names.has(name)),
    }
    const score = wanted.tensors.find(({ kind }) => kind === 'score')?.name
    const isOptional = (name: string) => name === score && !options.needsScore
    checkReport(
      { ...report, missing: report.missing.filter((name) => !isOptional(name)) },
      path,
      options.allowPartial ?? false,
    )
    const missing = new Set(report.missing)
    const isWhole = (target: LinearSize) =>
      Object.values(peftNames).every((nameOf) => !missing.has(nameOf(target.path)))
    const isWanted = [...missing].every(isOptional)
    const layout = isWanted ? wanted : layoutAdapter(targets.filter(isWhole), shape)
    if (layout.tensors.length === 0) throw new FormatError(path, 'tensors', 'no linear has all of its tensors')
    const values = new Float32Array(layout.length)
    for (const tensor of layout.tensors)
      if (!missing.has(tensor.name)) readTensor(file, tensor, viewTensor(values, tensor))
    return { ...config, dir, layout, values, report }
  } finally {
    file.close()
  }
}

export interface SaveOptions {
  lora: LoraConfig
  layout: LoraLayout
  /** The flat values of the adapter. */
  values: Float32Array
  /** Name or path of the base, for `base_model_name_or_path`. */
  baseModel: string | null
}

/** PEFT has no `all-linear` in saved files: it writes the names that it stood for. */
function savedTargets(lora: LoraConfig, layout: LoraLayout): LoraConfig['targetModules'] {
  if (lora.targetModules !== 'all-linear') return lora.targetModules
  return [...new Set(layout.targets.map(({ path }) => path.slice(path.lastIndexOf('.') + 1)))]
}

/** Writes a PEFT folder, that of a sequence classifier where there is a scalar head; existing files are replaced. */
export function saveAdapter(dir: string, options: SaveOptions): void {
  const { lora, layout, values } = options
  mkdirSync(dir, { recursive: true })
  const tensors = layout.tensors.map((tensor) => ({
    name: tensor.name,
    dtype: 'F32',
    shape: tensor.shape,
    bytes: bytesOf(viewTensor(values, tensor)),
  }))
  writeSafetensors(join(dir, peftFiles.weights), tensors, { format: 'pt' })
  const config = formatPeftConfig({
    lora: { ...lora, targetModules: savedTargets(lora, layout) },
    baseModel: options.baseModel,
    taskType: layout.adapter.score ? 'SEQ_CLS' : 'CAUSAL_LM',
    hasScore: layout.adapter.score !== undefined,
  })
  writeFileSync(join(dir, peftFiles.config), config, { flush: true })
}
