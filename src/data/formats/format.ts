// What a dataset format is: rows of a file, one after another, each with the place that error messages name. One file per format
// and one line in index.ts.
import { messageOf } from '../errors.js'

/** A row as it came and where it was: `train.jsonl:17` (line) or `train.parquet row 16` (counted from 0). */
export interface PlacedRow {
  row: unknown
  place: string
}

export interface Format {
  name: string
  /** File name endings, with the dot. */
  extensions: readonly string[]
  /** Rows in order, never all in memory; throws a DataError that names file and place. */
  read(path: string): AsyncIterable<PlacedRow>
}

export function defineFormat(format: Format): Format {
  return format
}

/** What to do about a file that cannot be read, where the error does not say it. */
export function remedyFor(error: unknown): string {
  return /\bwrite\b/.test(messageOf(error)) ? '' : '; the file is damaged or of another format, write it again'
}

/**
 * A value of a columnar file in the form that JSON would give it: lists as arrays, 64-bit integers as numbers, and struct fields
 * that are null left out, because a columnar schema gives every row the fields of all rows (tool calls of other messages leaked
 * into prompts that way in other toolkits).
 */
export function plainValue(value: unknown): unknown {
  if (typeof value === 'bigint') {
    const number = Number(value)
    return Number.isSafeInteger(number) ? number : String(value)
  }
  if (typeof value !== 'object' || value === null) return value
  if (value instanceof Int32Array || value instanceof Date) return value
  if (Array.isArray(value)) return value.map(plainValue)
  if (ArrayBuffer.isView(value)) return Array.from(value as unknown as ArrayLike<unknown>, plainValue)
  if (Symbol.iterator in value && !('toJSON' in value && !('length' in value))) {
    return Array.from(value as Iterable<unknown>, plainValue)
  }
  const entries = Object.entries(value as Record<string, unknown>)
  return Object.fromEntries(
    entries.flatMap(([key, item]) => (item === null || item === undefined ? [] : [[key, plainValue(item)]])),
  )
}
