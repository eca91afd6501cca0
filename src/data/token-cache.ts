// The files of prepared tokens: what their names are made of, when one is whole, and what killed preparations leave behind
// (stop 6 of a run).
import { createHash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import type { DataReport } from './prepare.js'
import type { EncodeOptions } from './row-encoder.js'
import type { RowTypeName } from './row-types/index.js'

/** Changes when the same rows would give other token files. */
export const cacheVersion = 2
const leftoverMs = 24 * 3600 * 1000

/** A hash of everything that decides the content of a token file. */
export function cacheKey(sourceHash: string, type: RowTypeName, options: EncodeOptions): string {
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

/** Removes what preparations that were killed have left, a day later. */
export function removeLeftovers(cacheDir: string): void {
  for (const name of readdirSync(cacheDir)) {
    if (!/^\.[0-9a-f]{64}\./.test(name)) continue
    const path = join(cacheDir, name)
    const found = statSync(path, { throwIfNoEntry: false })
    if (found && Date.now() - found.mtimeMs > leftoverMs) rmSync(path, { force: true })
  }
}

/** The report of a file that is whole. */
export function readCached(path: string, reportPath: string): DataReport | undefined {
  if (!existsSync(path) || !existsSync(reportPath)) return undefined
  try {
    const { bytes, report } = JSON.parse(readFileSync(reportPath, 'utf8')) as { bytes: number; report: DataReport }
    return statSync(path).size === bytes ? report : undefined
  } catch {
    return undefined
  }
}

/** Puts a finished token file in its place, and the report beside it that says it is whole. */
export function publish(temporary: string, path: string, reportPath: string, report: DataReport): void {
  renameSync(temporary, path)
  writeDurably(reportPath, JSON.stringify({ bytes: statSync(path).size, report }))
}

function writeDurably(path: string, text: string): void {
  const temporary = `${path}.${process.pid}`
  writeFileSync(temporary, text)
  const file = openSync(temporary, 'r')
  fsyncSync(file)
  closeSync(file)
  renameSync(temporary, path)
}
