// Where rows come from: files of a known format, or anything that can be iterated more than once. A source has a hash of its
// content, by which tokenized copies are found again.
import { createHash } from 'node:crypto'
import { open, stat } from 'node:fs/promises'
import { DataError, messageOf, nearest } from './errors.js'
import type { PlacedRow } from './formats/format.js'
import { type FormatName, formatOf, formats } from './formats/index.js'
import type { Row } from './row-types/row-type.js'

export interface RowSource {
  /** For people: a path or the name of a dataset. */
  name: string
  /** sha256 over the content, and the number of rows where they had to be read for it. */
  hash(): Promise<{ sha256: string; numRows?: number }>
  rows(): AsyncIterable<PlacedRow>
}

export interface FileSourceOptions {
  /** By the ending of the name where absent. */
  format?: FormatName
  /** Columns to take under other names: { text: 'body' } reads the file's `body` as `text`. */
  columns?: Readonly<Record<string, string>>
}

/** The row with columns renamed; a column that the file lacks is an error. */
function renamed({ row, place }: PlacedRow, columns: Readonly<Record<string, string>>): PlacedRow {
  const given = row as Row
  const result: Row = { ...given }
  for (const [name, from] of Object.entries(columns)) {
    if (!Object.hasOwn(given, from)) {
      const meant = nearest(from, Object.keys(given))
      const have = Object.keys(given).map((column) => `"${column}"`)
      throw new DataError(
        place,
        `there is no column "${from}"${meant ? ` (is it "${meant}"?)` : ''}; the row has ${have.join(', ') || 'none'}`,
      )
    }
    result[name] = given[from]
  }
  return { row: result, place }
}

/** Rows of one or several files, in order. */
export function fileSource(paths: string | readonly string[], options: FileSourceOptions = {}): RowSource {
  const list = typeof paths === 'string' ? [paths] : paths
  if (list.length === 0) throw new Error('a dataset needs at least one file')
  const readers = list.map((path) => ({ path, format: options.format ? formats[options.format] : formatOf(path) }))
  return {
    name: list.length === 1 ? list[0]! : `${list[0]} and ${list.length - 1} more`,
    async hash() {
      const hash = createHash('sha256')
      const chunk = Buffer.allocUnsafe(1 << 18)
      for (const { path, format } of readers) {
        const found = await stat(path).catch((error: unknown) => {
          throw new DataError(path, `cannot be read (${messageOf(error)}); see that the path is right`, {
            cause: error,
          })
        })
        if (!found.isFile()) throw new DataError(path, 'is not a file; name the files of the dataset one by one')
        // The path is part of the places that the copy holds.
        hash.update(JSON.stringify([path, format.name, options.columns ?? null, found.size]))
        const file = await open(path)
        try {
          for (;;) {
            const { bytesRead } = await file.read(chunk, 0, chunk.length, null)
            if (bytesRead === 0) break
            hash.update(chunk.subarray(0, bytesRead))
          }
        } finally {
          await file.close()
        }
      }
      return { sha256: hash.digest('hex') }
    },
    async *rows() {
      for (const { path, format } of readers) {
        for await (const placed of format.read(path)) yield options.columns ? renamed(placed, options.columns) : placed
      }
    },
  }
}

/** Rows of anything that `iterate` can start again from the beginning; it must give the same rows each time. */
export function iterableSource(name: string, iterate: () => AsyncIterable<Row> | Iterable<Row>): RowSource {
  async function* rows(): AsyncGenerator<PlacedRow> {
    let index = 0
    for await (const row of iterate()) yield { row, place: `${name} row ${index++}` }
  }
  return {
    name,
    async hash() {
      const hash = createHash('sha256').update(name)
      let numRows = 0
      for await (const { row } of rows()) {
        hash.update(JSON.stringify(row) ?? 'undefined').update('\n')
        numRows++
      }
      return { sha256: hash.digest('hex'), numRows }
    },
    rows,
  }
}
