// Joins the rooms for a run (stops 5 to 11): base, tokenizer, data, loader, adapter and the compiled step.
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import {
  type ChatTemplate,
  collate,
  createChatTemplate,
  createTokenizer,
  type DataReport,
  type Dataset,
  datasetSource,
  encodeChoices,
  encodeQuestion,
  type FormatName,
  fileSource,
  type HeldOutQuestion,
  heldOutDocuments,
  heldOutGroups,
  Loader,
  type Metric,
  prepareStore,
  previewRows,
  RowEncoder,
  type RowSource,
  type RowTypeName,
  type Tokenizer,
  type TokenStore,
  type Truncation,
} from '../data/index.js'
import { generateTokens } from '../inference/generate.js'
import { InferenceSession } from '../inference/session.js'
import { type OpenedBase, openBase } from '../models/base-directory.js'
import { cacheFolder, prepareBase } from '../models/fetch.js'
import type { ImportFormatName } from '../models/import.js'
import { loadBase } from '../models/loaded-base.js'
import type { LoraConfig } from '../models/lora-config.js'
import { openRuntime, type Runtime, type RuntimeOptions } from '../runtime/index.js'
import { openAdapter, openFrozen } from './adapter.js'
import type {
  HeldOutGroup,
  PreparedRun,
  PrepareOptions,
  ReferenceModel,
  ResolvedRecipe,
  RowUnit,
  RunContext,
} from './context.js'
import { type ChoiceRow, type Document, groupByTokens } from './evaluate.js'
import type { FrozenAdapter } from './scorer.js'
import { openTrainProgram } from './step.js'
import { packageVersion } from './version.js'

/** How rows become documents; the fields of the data room's `EncodeOptions` that a recipe may set. */
export interface EncodingOptions {
  type?: RowTypeName
  truncation?: Truncation
  assistantTurns?: 'all' | 'last'
  appendEos?: boolean
  allowUntrainedStop?: boolean
  /** Which pairs several scored answers make. */
  pairs?: 'extremes' | 'all'
  /** Jinja source in place of the base's own template. */
  chatTemplate?: string
  templateVariables?: Record<string, unknown>
}

/** Rows from files, or from a dataset module. */
export interface DataOptions extends EncodingOptions {
  dataset?: Dataset
  train?: string | string[]
  heldOut?: string | string[]
  format?: FormatName
  columns?: Record<string, string>
  /** Answers that held-out rows are judged by; a dataset module states its own. */
  choices?: string[]
  /** Metrics over the answers to held-out rows, beside those of a dataset module. */
  metrics?: Readonly<Record<string, Metric>>
}

/** What `prepareRun` needs of a recipe. */
export interface TrainableRecipe extends ResolvedRecipe {
  /** A known name, `hf:org/name`, or a path: a base directory, a .gguf file, a Hugging Face folder. */
  readonly base: string | { readonly source: string; readonly format?: ImportFormatName }
  readonly adapter: Partial<LoraConfig>
  readonly data: DataOptions
  readonly runtime?: RuntimeOptions
}

const mib = 2 ** 20
/** Long enough for a stable rate, short beside a step. */
export const ceilingProbeMs = 20
const evaluationSampleTokens = 48

export interface Sources {
  train: RowSource
  heldOut: RowSource | undefined
}

/** The rows that a recipe names. */
export function sourcesOf(data: DataOptions, seed: number, emit: RunContext['emit'], signal?: AbortSignal): Sources {
  if (data.dataset) {
    const { dataset } = data
    const context = { seed, signal, log: (message: string) => emit({ type: 'warning', message }) }
    return { train: datasetSource(dataset, 'train', context), heldOut: datasetSource(dataset, 'heldOut', context) }
  }
  if (data.train === undefined) throw new Error('data: name a dataset, or files of training rows (data.train)')
  const options = {
    ...(data.format ? { format: data.format } : {}),
    ...(data.columns ? { columns: data.columns } : {}),
  }
  return {
    train: fileSource(data.train, options),
    heldOut: data.heldOut === undefined ? undefined : fileSource(data.heldOut, options),
  }
}

/** Whether a dataset module gives held-out rows. */
export async function hasHeldOut(data: DataOptions, seed: number): Promise<boolean> {
  if (!data.dataset) return data.heldOut !== undefined
  return (await data.dataset.load({ seed, log: () => {} })).heldOut !== undefined
}

export interface PreparedData {
  store: TokenStore
  report: DataReport
  heldOutReport: DataReport | undefined
  documents: Document[]
  choices: ChoiceRow[]
  groups: HeldOutGroup[]
  /** The held-out rows as questions; empty where they have no answers. */
  questions(maxRows?: number): Promise<HeldOutQuestion[]>
  tokenizer: Tokenizer
  template: ChatTemplate | undefined
  hashes: Record<string, string>
}

/** The tokenizer of a base directory, with the template that a recipe may put in place of its own. */
export function openTokenizer(base: { tokenizerJson: unknown; tokenizerConfig: unknown }, templateSource?: string) {
  const tokenizer = createTokenizer(base.tokenizerJson, base.tokenizerConfig)
  const source = templateSource ?? tokenizer.chatTemplate
  const template = source === undefined ? undefined : createChatTemplate(source, tokenizer)
  return { tokenizer, template }
}

/** Rows → token files, held-out documents and questions. */
export async function prepareData(
  base: { tokenizerJson: unknown; tokenizerConfig: unknown },
  data: DataOptions,
  options: Pick<PrepareOptions, 'maxLength' | 'seed' | 'maxEvaluationRows' | 'signal'> & { rows?: RowUnit },
  emit: RunContext['emit'],
): Promise<PreparedData> {
  const { maxLength, seed, maxEvaluationRows, signal } = options
  const { tokenizer, template } = openTokenizer(base, data.chatTemplate)
  const sources = sourcesOf(data, seed, emit, signal)
  const encoding = {
    tokenizer,
    template,
    maxLength,
    type: data.type ?? data.dataset?.type,
    truncation: data.truncation,
    assistantTurns: data.assistantTurns,
    appendEos: data.appendEos,
    allowUntrainedStop: data.allowUntrainedStop,
    pairs: data.pairs,
    templateVariables: data.templateVariables,
  }
  const prepare = (source: RowSource, task: string) =>
    prepareStore({
      ...encoding,
      source,
      cacheDir: join(cacheFolder(), 'tokens'),
      signal,
      onProgress: ({ done, total }) =>
        emit({ type: 'progress', task, done, ...(total ? { total } : {}), unit: 'rows' }),
    })
  const unit = options.rows ?? 'documents'
  const train = await prepare(sources.train, 'tokenizing')
  checkUnit(train.store, train.report, unit)
  reportLosses(train.report, maxLength, emit)
  const result: PreparedData = {
    store: train.store,
    report: train.report,
    heldOutReport: undefined,
    documents: [],
    choices: [],
    groups: [],
    async questions(maxRows = Number.POSITIVE_INFINITY) {
      const found: HeldOutQuestion[] = []
      if (!sources.heldOut || !(await hasHeldOut(data, seed))) return found
      const encoder = new RowEncoder({ ...encoding, type: encoding.type ?? train.report.type })
      for await (const placed of sources.heldOut.rows()) {
        if (found.length >= maxRows) break
        const question = encodeQuestion(encoder, placed)
        if (!question) break
        found.push(question)
      }
      return found
    },
    tokenizer,
    template,
    hashes: { train: train.key },
  }
  if (!sources.heldOut || !(await hasHeldOut(data, seed))) return result
  const choices = data.choices ?? data.dataset?.choices
  if (choices && choices.length > 0) {
    const encoder = new RowEncoder({ ...encoding, type: encoding.type ?? train.report.type })
    let index = 0
    let tooLong = 0
    for await (const placed of sources.heldOut.rows()) {
      if (maxEvaluationRows !== undefined && result.choices.length >= maxEvaluationRows) break
      const row = encodeChoices(encoder, placed, choices, tokenizer, index++)
      const length = row.prompt.length + Math.max(...row.choices.map((ids) => ids.length))
      if (length > maxLength) tooLong++
      else result.choices.push(row)
    }
    if (tooLong > 0) {
      const message = `${tooLong} of ${index} held-out rows are longer than maxLength ${maxLength} and are left out`
      emit({ type: 'warning', message })
    }
    if (result.choices.length === 0)
      throw new Error(`${sources.heldOut.name}: no held-out row is short enough to be scored`)
    return result
  }
  const heldOut = await prepare(sources.heldOut, 'tokenizing held-out rows')
  result.heldOutReport = heldOut.report
  result.hashes.heldOut = heldOut.key
  checkUnit(heldOut.store, heldOut.report, unit)
  if (unit === 'documents') result.documents = heldOutDocuments(heldOut.store, maxEvaluationRows)
  else result.groups = heldOutGroups(heldOut.store, maxEvaluationRows)
  heldOut.store.close()
  return result
}

/** What a stage can learn from, by what a row of the data is. */
const units: Record<RowUnit, { fits(store: TokenStore): boolean; wanted: string }> = {
  documents: {
    fits: ({ valueName }) => valueName === undefined,
    wanted: 'texts, prompts with completions, or conversations',
  },
  pairs: {
    fits: ({ groupSize }) => groupSize === 2,
    wanted: 'pairs {prompt, chosen, rejected}, or scored completions',
  },
  unpaired: { fits: ({ valueName }) => valueName === 'label', wanted: '{prompt, completion, label}' },
}

/** @throws where the rows are not what the stage learns from */
function checkUnit(store: TokenStore, { source, type }: DataReport, unit: RowUnit): void {
  if (units[unit].fits(store)) return
  throw new Error(`${source}: its rows are of type ${type}, and this stage learns from ${units[unit].wanted}`)
}

/** Truncation and drops are said aloud (design §10). */
function reportLosses(report: DataReport, maxLength: number, emit: RunContext['emit']): void {
  const { truncated, truncatedTokens, dropped, sourceRows } = report
  if (truncated > 0) {
    const message = `${truncated} of ${sourceRows} rows are longer than maxLength ${maxLength} and were cut (${truncatedTokens} tokens fell away)`
    emit({ type: 'warning', message })
  }
  if (dropped > 0) emit({ type: 'warning', message: `${dropped} of ${sourceRows} rows were left out` })
}

/** Base directory and runtime of a recipe; what is opened later is added to `closing`. */
export async function openParts(recipe: TrainableRecipe, signal: AbortSignal | undefined, emit: RunContext['emit']) {
  const { source, format } = typeof recipe.base === 'string' ? { source: recipe.base, format: undefined } : recipe.base
  const found = await prepareBase(source, {
    format,
    signal,
    onProgress: ({ message, done = 0, total }) =>
      emit({ type: 'progress', task: message, done, ...(total ? { total } : {}), unit: 'bytes' }),
  })
  const runtime = await openRuntime(recipe.runtime ?? {})
  const closing: (() => unknown)[] = [() => runtime.close()]
  const closeAll = async () => {
    for (const close of closing.reverse()) await close()
  }
  try {
    if (!runtime.info.kernels) {
      emit({
        type: 'warning',
        message: `running without our kernels, correct and slower: ${runtime.info.reason ?? ''}`,
      })
    }
    return { found, runtime, opened: openBase(found.dir), closing, closeAll }
  } catch (error) {
    await closeAll()
    throw error
  }
}

/** The frozen model that log-probabilities are compared with; null: the base alone; undefined: none. */
export function openReference(
  base: OpenedBase,
  options: { reference?: ReferenceModel | undefined; startAdapter?: string | undefined },
): FrozenAdapter | null | undefined {
  const { reference, startAdapter } = options
  if (reference === undefined) return undefined
  if (reference === 'base') return null
  const folder = reference === 'start' ? startAdapter : reference.adapter
  if (folder === undefined) throw new Error("stage.reference is 'start', and stage.startAdapter names no adapter")
  return openFrozen(base, folder)
}

/** Of the values and where they belong. */
function hashOfAdapter({ shape, values }: FrozenAdapter): string {
  const parts = JSON.stringify([[...shape.linears.values()], shape.score ?? null])
  return createHash('sha256')
    .update(parts)
    .update(new Uint8Array(values.buffer, values.byteOffset, values.byteLength))
    .digest('hex')
}

/** Opens everything that a run of the recipe needs. */
export async function prepareRun(
  given: ResolvedRecipe,
  options: PrepareOptions,
  emit: RunContext['emit'],
): Promise<PreparedRun & { data: PreparedData; runtime: Runtime }> {
  const recipe = given as TrainableRecipe
  const { found, runtime, opened, closing, closeAll } = await openParts(recipe, options.signal, emit)
  try {
    const data = await prepareData(opened, recipe.data, options, emit)
    closing.push(() => data.store.close())
    const loader = new Loader({
      store: data.store,
      seed: options.seed,
      maxLength: options.maxLength,
      packing: options.packing,
      microBatchSize: options.microBatchSize,
      gradientAccumulationSteps: options.gradientAccumulationSteps,
      ...(options.maxSteps === undefined ? { epochs: options.epochs } : {}),
      maxSteps: options.maxSteps,
      shuffle: options.shuffle,
    })
    const longest = Math.max(
      0,
      ...data.documents.map(({ ids }) => ids.length),
      ...data.choices.map(({ prompt, choices }) => prompt.length + Math.max(...choices.map((ids) => ids.length))),
      ...data.groups.map(({ documents }) => documents.reduce((sum, { ids }) => sum + ids.length, 0)),
    )
    const maxTokens = Math.max(loader.maxTokens, longest)
    const base = await loadBase(runtime, opened)
    closing.push(() => base.close())
    const adapter = openAdapter(opened, {
      lora: recipe.adapter,
      startAdapter: options.startAdapter,
      seed: options.seed,
      baseName: opened.source.name,
      hasScore: options.objective.head === 'score',
    })
    const reference = openReference(opened, options)
    emit({ type: 'progress', task: 'compiling', done: 0, total: 1, unit: 'programs' })
    const program = await openTrainProgram({
      base,
      layout: adapter.layout,
      adapter: adapter.layout.adapter,
      objective: options.objective,
      maxDims: options.maxDims,
      ...(reference === undefined ? {} : { reference }),
      maxTokens,
      precision: options.precision,
      recompute: options.recompute,
      memoryBudgetBytes: options.memoryBudgetMb === undefined ? undefined : options.memoryBudgetMb * mib,
      seed: options.seed,
    })
    closing.push(() => program.close())
    adapter.fill(program.params)
    emit({ type: 'progress', task: 'compiling', done: 1, total: 1, unit: 'programs' })

    const { info } = runtime
    return {
      program,
      loader,
      runtime,
      data,
      totalSteps: loader.totalSteps,
      maxTokens,
      heldOut: { documents: data.documents, choices: data.choices, groups: data.groups },
      *trainingRows(microBatchSize) {
        const { groupSize, lengths, numGroups } = data.store
        const tokensOf = (row: number) =>
          lengths.subarray(row * groupSize, (row + 1) * groupSize).reduce((a, b) => a + b, 0)
        for (const rows of groupByTokens(Array(numGroups).keys(), tokensOf, maxTokens, microBatchSize))
          yield collate(data.store, rows)
      },
      placesOf: (documents) => documents.map((document) => data.store.placeOf(document)),
      base: found.name,
      device: `${info.provider} ${info.isa ?? 'stock'}, ${info.threads} threads`,
      isa: info.isa ?? 'stock',
      versions: { espalier: packageVersion(), node: process.version, onnxruntime: info.ortVersion },
      hashes: {
        base: opened.source.sha256,
        tokenizer: data.tokenizer.hash,
        ...data.hashes,
        ...(reference ? { reference: hashOfAdapter(reference) } : {}),
      },
      exportAdapter: (folder) => adapter.save(folder, program.params),
      ...(info.kernels ? { measureCeiling: async () => (await runtime.measureCeiling(ceilingProbeMs)).gflops } : {}),
      async generate(prompt, { maxNewTokens = evaluationSampleTokens, adapter: withAdapter }) {
        const { tokenizer, template } = data
        const text = template
          ? template.render([{ role: 'user', content: prompt }], { addGenerationPrompt: true })
          : prompt
        const ids = tokenizer.encode(text)
        const session = await InferenceSession.open({
          base,
          adapter: withAdapter ? { shape: { ...adapter.layout.adapter, dropout: 0 }, params: program.params } : null,
          maxTokens: ids.length + maxNewTokens,
        })
        try {
          const generated: number[] = []
          const stopIds = [tokenizer.eosId, ...tokenizer.specialIds].filter((id) => id !== undefined)
          for await (const { id } of generateTokens(session, ids, { maxNewTokens, stopIds })) generated.push(id)
          return tokenizer.decode(Int32Array.from(generated))
        } finally {
          session.close()
        }
      },
      describeData: () => ({
        train: data.report,
        heldOut: data.heldOutReport,
        rows: previewRows(data.store, data.tokenizer, { seed: options.seed }),
      }),
      close: closeAll,
    }
  } catch (error) {
    await closeAll()
    throw error
  }
}
