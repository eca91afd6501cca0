// Rows → chat template → ids and labels → a token file in the cache (stop 6 of a run). The file's name is a hash of the rows, the
// tokenizer, the template and the options, so a copy made by another tokenizer can never be taken for this one.
import { mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { BatchWriter } from './batch-writer.js'
import { DataError } from './errors.js'
import { type LengthQuantiles, lengthQuantiles } from './quantiles.js'
import { type EncodeOptions, RowEncoder } from './row-encoder.js'
import type { RowSource } from './row-source.js'
import { isGrouped } from './row-types/grouped.js'
import { detectRowType, type RowTypeName } from './row-types/index.js'
import { countTargets, type Row } from './row-types/row-type.js'
import { cacheKey, cacheVersion, publish, readCached, removeLeftovers } from './token-cache.js'
import { openTokenStore, type TokenStore } from './token-store.js'

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
  publish(temporary, path, reportPath, report)
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

/** The token file of a source, opened. */
export async function prepareStore(options: PrepareOptions): Promise<PreparedTokens & { store: TokenStore }> {
  const prepared = await prepareTokens(options)
  return { ...prepared, store: await openTokenStore(prepared.path) }
}
