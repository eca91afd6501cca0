// Rows → chat template → ids and labels → a token file in the cache (stop 6 of a run). The file's name is a hash of the rows, the
// tokenizer, the template and the options, so a copy made by another tokenizer can never be taken for this one.
import { createHash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { ChatTemplate } from './chat-template.js'
import { DataError } from './errors.js'
import { checkMask } from './mask-checks.js'
import { type LengthQuantiles, lengthQuantiles } from './quantiles.js'
import type { RowSource } from './row-source.js'
import { type GroupedRowType, isGrouped } from './row-types/grouped.js'
import { detectRowType, type RowTypeName, rowTypes } from './row-types/index.js'
import { type EncodeContext, type EncodedRow, ignoreIndex, type Row, type RowType } from './row-types/row-type.js'
import { openTokenStore, type TokenStore } from './token-store.js'
import type { Tokenizer } from './tokenizer.js'

/** Changes when the same rows would give other token files. */
const cacheVersion = 2
const batchTokens = 1 << 17
const batchRows = 4096
const leftoverMs = 24 * 3600 * 1000

/** What to do with a row longer than `maxLength`: cut its end or its beginning, cut it into several, leave it out, or stop. */
export const truncations = ['keepStart', 'keepEnd', 'split', 'drop', 'error'] as const
export type Truncation = (typeof truncations)[number]

export interface EncodeOptions {
  tokenizer: Tokenizer
  template?: ChatTemplate | undefined
  /** The type of the rows; found from the first row where absent. */
  type?: RowTypeName | undefined
  /** Longest document in tokens. */
  maxLength: number
  /** Default `keepStart`. */
  truncation?: Truncation | undefined
  /** Train on all assistant messages (default) or the last one. */
  assistantTurns?: 'all' | 'last' | undefined
  /** End texts and completions with the end-of-sequence token (default true). */
  appendEos?: boolean | undefined
  /** Which pairs several scored answers make: the best against the worst (default), or every two. */
  pairs?: 'extremes' | 'all' | undefined
  /** Accept rows whose stop token is not trained. */
  allowUntrainedStop?: boolean | undefined
  templateVariables?: Record<string, unknown> | undefined
}

export interface PrepareOptions extends EncodeOptions {
  source: RowSource
  cacheDir: string
  onProgress?: (progress: { done: number; total?: number }) => void
  signal?: AbortSignal | undefined
}

/** What became of the rows. */
export interface DataReport {
  source: string
  type: RowTypeName
  /** Documents that are in the token file. */
  rows: number
  /** Rows that were read. */
  sourceRows: number
  tokens: number
  /** Tokens that the loss counts: labels other than −100 from the second position on. */
  targetTokens: number
  maskedTokens: number
  /** Rows cut to `maxLength`, and the tokens that fell away. */
  truncated: number
  truncatedTokens: number
  /** Rows cut into several documents. */
  split: number
  /** Rows (of preference data: groups) left out, and why. */
  dropped: number
  droppedTooLong: number
  droppedWithoutTarget: number
  droppedEmpty: number
  /** Pairs or labelled completions, of preference data. */
  groups?: number
  /** Comparisons left out because neither side is better. */
  ties?: number
  /** Mean tokens of the documents of a group, in their order: chosen, rejected. */
  meanLengths?: number[]
  /** Columns that no one reads. */
  ignoredColumns: string[]
  lengthQuantiles: LengthQuantiles
  maxLength: number
}

export interface PreparedTokens {
  path: string
  key: string
  report: DataReport
  /** True where the file was there already. */
  isCached: boolean
}

/** A row encoded, checked and cut: no document where it is dropped, several where it is split. */
export interface RowOutcome {
  documents: EncodedRow[]
  truncatedTokens: number
  /** Of rows that make groups: the number of each. */
  values?: number[]
  ties?: number
  dropped?: 'droppedTooLong' | 'droppedWithoutTarget' | 'droppedEmpty'
  /** Of rows that make groups: how many of them are dropped. */
  droppedGroups?: number
}

function countTargets({ labels }: EncodedRow): number {
  let count = 0
  for (let i = 1; i < labels.length; i++) if (labels[i] !== ignoreIndex) count++
  return count
}

function cut(row: EncodedRow, start: number, end: number): EncodedRow {
  return { inputIds: row.inputIds.subarray(start, end), labels: row.labels.subarray(start, end) }
}

/** Encodes rows of one type under one set of options; shared by preparation, preview and evaluation. */
export class RowEncoder {
  readonly type: RowType
  readonly #context: EncodeContext
  readonly #options: EncodeOptions

  constructor(options: EncodeOptions & { type: RowTypeName }) {
    this.type = rowTypes[options.type]
    this.#options = options
    if (!(Number.isInteger(options.maxLength) && options.maxLength >= 2)) {
      throw new Error(`maxLength must be an integer of at least 2, not ${options.maxLength}`)
    }
    if (options.truncation === 'split' && !this.type.canSplit) {
      throw new Error(
        `truncation "split" would cut ${this.type.name} rows away from their prompts; use keepStart, keepEnd or drop`,
      )
    }
    this.#context = {
      tokenizer: options.tokenizer,
      template: options.template,
      assistantTurns: options.assistantTurns ?? 'all',
      appendEos: options.appendEos ?? true,
      pairs: options.pairs,
      templateVariables: options.templateVariables,
    }
  }

  /** The whole row with its mask checked, not cut. */
  encodeWhole(row: unknown, place: string): EncodedRow {
    const encoded = this.type.encode(row, place, this.#context)
    if (encoded.inputIds.length > 0) {
      checkMask(encoded, this.type, this.#options.tokenizer, place, this.#options.allowUntrainedStop ?? false)
    }
    return encoded
  }

  encode(row: unknown, place: string): RowOutcome {
    if (isGrouped(this.type)) return this.#encodeGroups(this.type, row, place)
    const { maxLength, truncation = 'keepStart' } = this.#options
    const whole = this.encodeWhole(row, place)
    const length = whole.inputIds.length
    if (length < 2) return { documents: [], truncatedTokens: 0, dropped: 'droppedEmpty' }
    if (length <= maxLength) {
      const hasTarget = countTargets(whole) > 0
      return hasTarget
        ? { documents: [whole], truncatedTokens: 0 }
        : { documents: [], truncatedTokens: 0, dropped: 'droppedWithoutTarget' }
    }
    if (truncation === 'error') {
      throw new DataError(place, `has ${length} tokens and maxLength is ${maxLength}; raise it, or set \`truncation\``)
    }
    if (truncation === 'drop') return { documents: [], truncatedTokens: 0, dropped: 'droppedTooLong' }
    if (truncation === 'split') {
      const documents: EncodedRow[] = []
      for (let start = 0; start < length - 1; start += maxLength) {
        const part = cut(whole, start, Math.min(length, start + maxLength))
        if (countTargets(part) > 0) documents.push(part)
      }
      return documents.length > 0
        ? { documents, truncatedTokens: 0 }
        : { documents, truncatedTokens: 0, dropped: 'droppedWithoutTarget' }
    }
    const part = truncation === 'keepStart' ? cut(whole, 0, maxLength) : cut(whole, length - maxLength, length)
    return countTargets(part) > 0
      ? { documents: [part], truncatedTokens: length - maxLength }
      : { documents: [], truncatedTokens: 0, dropped: 'droppedWithoutTarget' }
  }

  #encodeGroups(type: GroupedRowType, row: unknown, place: string): RowOutcome {
    const { maxLength, truncation = 'keepStart', tokenizer, allowUntrainedStop = false } = this.#options
    const { groups, ties } = type.encodeGroups(row, place, this.#context)
    const outcome = {
      documents: [] as EncodedRow[],
      values: [] as number[],
      truncatedTokens: 0,
      ties,
      droppedGroups: 0,
    }
    let dropped: RowOutcome['dropped']
    for (const { documents, value } of groups) {
      for (const document of documents) checkMask(document, type, tokenizer, place, allowUntrainedStop)
      checkSamePrompt(documents, place)
      const tooLong = documents.reduce((sum, { inputIds }) => sum + Math.max(0, inputIds.length - maxLength), 0)
      if (tooLong > 0 && truncation === 'error') {
        const longest = Math.max(...documents.map(({ inputIds }) => inputIds.length))
        throw new DataError(
          place,
          `has ${longest} tokens and maxLength is ${maxLength}; raise it, or set \`truncation\``,
        )
      }
      if (tooLong > 0 && truncation === 'drop') {
        dropped = 'droppedTooLong'
        outcome.droppedGroups++
        continue
      }
      const kept =
        tooLong > 0 ? cutGroup(documents, maxLength, truncation === 'keepEnd' ? truncation : 'keepStart') : documents
      if (!kept) {
        dropped = 'droppedWithoutTarget'
        outcome.droppedGroups++
        continue
      }
      // Cut before their first difference, or the same answer scored twice: neither is better
      if (kept.length > 1 && kept.every(({ inputIds }) => isSame(inputIds, kept[0]!.inputIds))) {
        outcome.ties++
        continue
      }
      const tokensOf = (all: EncodedRow[]) => all.reduce((sum, { inputIds }) => sum + inputIds.length, 0)
      outcome.truncatedTokens += tokensOf(documents) - tokensOf(kept)
      outcome.documents.push(...kept)
      outcome.values.push(value)
    }
    return dropped ? { ...outcome, dropped } : outcome
  }
}

const isSame = (a: Int32Array, b: Int32Array): boolean => a.length === b.length && a.every((id, i) => id === b[i])

/** @throws where the sides of a pair do not answer the same tokens */
function checkSamePrompt([first, ...others]: EncodedRow[], place: string): void {
  const length = promptLength(first!)
  for (const other of others) {
    if (
      promptLength(other) === length &&
      first!.inputIds.subarray(0, length).every((id, i) => id === other.inputIds[i])
    )
      continue
    throw new DataError(
      place,
      'the prompt becomes other tokens before one answer than before the other; begin both answers alike (with a space, or a letter), or end the prompt with white space',
    )
  }
}

/** Tokens before the first trained one. */
function promptLength({ labels }: EncodedRow): number {
  const first = labels.findIndex((label) => label !== ignoreIndex)
  return first < 0 ? labels.length : first
}

/** The sides of a group cut to `maxLength`; undefined where they lose the whole prompt, or one of them all that is trained. */
function cutGroup(documents: EncodedRow[], maxLength: number, keep: 'keepStart' | 'keepEnd'): EncodedRow[] | undefined {
  const longest = Math.max(...documents.map(({ inputIds }) => inputIds.length))
  // From the prompt as much on both sides, so that they still answer the same one
  const start = keep === 'keepEnd' ? Math.max(0, longest - maxLength) : 0
  if (start > 0 && start >= promptLength(documents[0]!)) return undefined
  const parts = documents.map((document) => cut(document, start, Math.min(document.inputIds.length, start + maxLength)))
  return parts.every((part) => countTargets(part) > 0) ? parts : undefined
}

/** Gathers documents and writes them by record batch. */
class BatchWriter {
  readonly #writer: import('./arrow.js').TokenFileWriter
  readonly #inputIds: Int32Array
  readonly #labels: Int32Array
  readonly #offsets = new Int32Array(batchRows + 1)
  readonly #rows = new Int32Array(batchRows)
  readonly #values: Float64Array | undefined
  // As bytes: strings that wait for the flush would end up in the old generation.
  #places = Buffer.alloc(batchRows * 32)
  readonly #placeOffsets = new Int32Array(batchRows + 1)
  #count = 0

  constructor(writer: import('./arrow.js').TokenFileWriter, maxLength: number, hasValues: boolean) {
    this.#writer = writer
    this.#values = hasValues ? new Float64Array(batchRows) : undefined
    this.#inputIds = new Int32Array(batchTokens + maxLength)
    this.#labels = new Int32Array(batchTokens + maxLength)
  }

  add(document: EncodedRow, row: number, place: string, value = Number.NaN): void {
    const count = this.#count++
    const offset = this.#offsets[count]!
    this.#inputIds.set(document.inputIds, offset)
    this.#labels.set(document.labels, offset)
    this.#offsets[count + 1] = offset + document.inputIds.length
    this.#rows[count] = row
    if (this.#values) this.#values[count] = value
    const placeAt = this.#placeOffsets[count]!
    while (placeAt + place.length * 3 > this.#places.length) this.#places = Buffer.concat([this.#places, this.#places])
    this.#placeOffsets[count + 1] = placeAt + this.#places.write(place, placeAt)
    if (this.#count === batchRows || this.#offsets[count + 1]! >= batchTokens) this.flush()
  }

  flush(): void {
    const numRows = this.#count
    if (numRows === 0) return
    const tokens = this.#offsets[numRows]!
    this.#writer.write({
      numRows,
      offsets: this.#offsets.subarray(0, numRows + 1),
      inputIds: this.#inputIds.subarray(0, tokens),
      labels: this.#labels.subarray(0, tokens),
      rows: this.#rows.subarray(0, numRows),
      places: this.#places.subarray(0, this.#placeOffsets[numRows]!),
      placeOffsets: this.#placeOffsets.subarray(0, numRows + 1),
      ...(this.#values ? { values: this.#values.subarray(0, numRows) } : {}),
    })
    this.#count = 0
  }
}

/** Everything that decides the content of a token file. */
function cacheKey(sourceHash: string, type: RowTypeName, options: EncodeOptions): string {
  const parts = [
    cacheVersion,
    sourceHash,
    type,
    options.tokenizer.hash,
    options.template?.hash ?? null,
    options.maxLength,
    options.truncation ?? 'keepStart',
    options.assistantTurns ?? 'all',
    options.appendEos ?? true,
    options.allowUntrainedStop ?? false,
    options.templateVariables ?? null,
    ...(options.pairs ? [options.pairs] : []),
  ]
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex')
}

async function firstRowType(source: RowSource): Promise<RowTypeName> {
  for await (const { row, place } of source.rows()) return detectRowType(row, place)
  throw new DataError(source.name, 'holds no rows')
}

/**
 * Makes the token file of a source, or finds it in the cache. Throws a DataError for the first row that cannot be used; whatever
 * is cut or left out is counted in the report.
 */
export async function prepareTokens(options: PrepareOptions): Promise<PreparedTokens> {
  const { source, cacheDir, onProgress, signal } = options
  const { sha256, numRows } = await source.hash()
  const type = options.type ?? (await firstRowType(source))
  const encoder = new RowEncoder({ ...options, type })
  const key = cacheKey(sha256, type, options)
  const path = join(cacheDir, `${key}.arrow`)
  const reportPath = join(cacheDir, `${key}.json`)
  const cached = readCached(path, reportPath)
  if (cached) return { path, key, report: cached, isCached: true }

  mkdirSync(cacheDir, { recursive: true })
  removeLeftovers(cacheDir)
  const { TokenFileWriter } = await import('./arrow.js')
  const temporary = join(cacheDir, `.${key}.${process.pid}.${Date.now().toString(36)}`)
  const grouped = isGrouped(encoder.type) ? encoder.type : undefined
  const { groupSize = 1, valueName } = grouped ?? {}
  const metadata = { espalier: String(cacheVersion), key, source: source.name }
  const groupMetadata: Record<string, string> =
    valueName === undefined ? {} : { groupSize: String(groupSize), valueName }
  const writer = new TokenFileWriter(temporary, { ...metadata, ...groupMetadata }, grouped !== undefined)
  const report: DataReport = {
    source: source.name,
    type,
    rows: 0,
    sourceRows: 0,
    tokens: 0,
    targetTokens: 0,
    maskedTokens: 0,
    truncated: 0,
    truncatedTokens: 0,
    split: 0,
    dropped: 0,
    droppedTooLong: 0,
    droppedWithoutTarget: 0,
    droppedEmpty: 0,
    ignoredColumns: [],
    lengthQuantiles: lengthQuantiles(new Int32Array(0)),
    maxLength: options.maxLength,
  }
  const batches = new BatchWriter(writer, options.maxLength, grouped !== undefined)
  const groupTokens = new Array<number>(groupSize).fill(0)
  let ties = 0
  const ignored = new Set<string>()
  const known = new Set([...encoder.type.columns, ...encoder.type.optionalColumns])
  let lengths = new Int32Array(1024)
  const tell = (): void =>
    onProgress?.({ done: report.sourceRows, ...(numRows === undefined ? {} : { total: numRows }) })
  try {
    for await (const { row, place } of source.rows()) {
      const outcome = encoder.encode(row, place)
      for (const [i, document] of outcome.documents.entries()) {
        groupTokens[i % groupSize]! += document.inputIds.length
        if (report.rows === lengths.length) {
          const grown = new Int32Array(lengths.length * 2)
          grown.set(lengths)
          lengths = grown
        }
        lengths[report.rows++] = document.inputIds.length
        report.tokens += document.inputIds.length
        report.targetTokens += countTargets(document)
        batches.add(document, report.sourceRows, place, outcome.values?.[Math.floor(i / groupSize)])
      }
      if (outcome.dropped) {
        const count = outcome.droppedGroups ?? 1
        report.dropped += count
        report[outcome.dropped] += count
      }
      if (outcome.truncatedTokens > 0) report.truncated++
      if (!grouped && outcome.documents.length > 1) report.split++
      ties += outcome.ties ?? 0
      report.truncatedTokens += outcome.truncatedTokens
      if (ignored.size < 64) for (const column of Object.keys(row as Row)) if (!known.has(column)) ignored.add(column)
      if (++report.sourceRows % 256 === 0) {
        await nextTurn()
        signal?.throwIfAborted()
        tell()
      }
    }
    signal?.throwIfAborted()
    if (numRows !== undefined && numRows !== report.sourceRows) {
      throw new DataError(
        source.name,
        `gave ${numRows} rows and then ${report.sourceRows}; a dataset must give the same rows each time`,
      )
    }
    if (report.rows === 0) {
      throw new DataError(source.name, describeNothing(report, ties))
    }
    batches.flush()
    writer.close()
  } catch (error) {
    writer.abort()
    rmSync(temporary, { force: true })
    throw error
  }
  report.maskedTokens = report.tokens - report.targetTokens
  if (grouped) {
    report.groups = report.rows / groupSize
    report.ties = ties
    report.meanLengths = groupTokens.map((tokens) => tokens / report.groups!)
  }
  report.ignoredColumns = [...ignored]
  report.lengthQuantiles = lengthQuantiles(lengths.subarray(0, report.rows))
  renameSync(temporary, path)
  writeDurably(reportPath, JSON.stringify({ bytes: statSync(path).size, report }))
  tell()
  return { path, key, report, isCached: false }
}

function describeNothing(report: DataReport, ties: number): string {
  if (report.sourceRows === 0) return 'holds no rows'
  const reasons = [
    `${report.droppedTooLong} longer than maxLength ${report.maxLength}`,
    `${report.droppedWithoutTarget} without a trained token within it`,
    `${report.droppedEmpty} empty`,
    ...(ties > 0 ? [`${ties} ties, where neither side is better`] : []),
  ]
  return `none of its ${report.sourceRows} rows can be used: ${reasons.join(', ')}; raise maxLength or choose another truncation`
}

/** Removes what preparations that were killed have left, a day later. */
function removeLeftovers(cacheDir: string): void {
  for (const name of readdirSync(cacheDir)) {
    if (!/^\.[0-9a-f]{64}\./.test(name)) continue
    const path = join(cacheDir, name)
    const found = statSync(path, { throwIfNoEntry: false })
    if (found && Date.now() - found.mtimeMs > leftoverMs) rmSync(path, { force: true })
  }
}

/** The report of a file that is whole. */
function readCached(path: string, reportPath: string): DataReport | undefined {
  if (!existsSync(path) || !existsSync(reportPath)) return undefined
  try {
    const { bytes, report } = JSON.parse(readFileSync(reportPath, 'utf8')) as { bytes: number; report: DataReport }
    return statSync(path).size === bytes ? report : undefined
  } catch {
    return undefined
  }
}

function writeDurably(path: string, text: string): void {
  const temporary = `${path}.${process.pid}`
  writeFileSync(temporary, text)
  const file = openSync(temporary, 'r')
  fsyncSync(file)
  closeSync(file)
  renameSync(temporary, path)
}

/** The token file of a source, opened. */
export async function prepareStore(options: PrepareOptions): Promise<PreparedTokens & { store: TokenStore }> {
  const prepared = await prepareTokens(options)
  return { ...prepared, store: await openTokenStore(prepared.path) }
}
