// JSON Lines: one object a line, UTF-8, blank lines allowed. Lines are bounded, so that a file that is no JSONL cannot fill the
// memory.
import { closeSync, openSync, readSync } from 'node:fs'
import { DataError, messageOf } from '../errors.js'
import { defineFormat, type PlacedRow } from './format.js'

/** Longest line: longer than any document that fits a context window, short enough to hold a few of them. */
export const maxLineBytes = 64 << 20
const chunkBytes = 1 << 18

/** Lines of a file as bytes, without their ends. */
function* readLines(path: string): Generator<Buffer> {
  const file = openSync(path, 'r')
  try {
    const chunk = Buffer.allocUnsafe(chunkBytes)
    let pending: Buffer[] = []
    let pendingBytes = 0
    let line = 1
    for (;;) {
      const length = readSync(file, chunk, 0, chunkBytes, null)
      if (length === 0) break
      let start = 0
      for (;;) {
        const end = chunk.subarray(0, length).indexOf(10, start)
        const stop = end < 0 ? length : end
        pendingBytes += stop - start
        if (pendingBytes > maxLineBytes) {
          throw new DataError(
            `${path}:${line}`,
            `the line is longer than ${maxLineBytes >> 20} MiB; is this a JSONL file?`,
          )
        }
        if (end < 0) {
          if (stop > start) pending.push(Buffer.from(chunk.subarray(start, stop)))
          break
        }
        const tail = chunk.subarray(start, stop)
        yield pending.length === 0 ? tail : Buffer.concat([...pending, tail])
        pending = []
        pendingBytes = 0
        line++
        start = end + 1
      }
    }
    if (pendingBytes > 0) yield Buffer.concat(pending)
  } finally {
    closeSync(file)
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true })

function parseLine(bytes: Buffer, place: string): unknown {
  let text: string
  try {
    text = utf8.decode(bytes)
  } catch (error) {
    throw new DataError(place, 'is not valid UTF-8; save the file as UTF-8', { cause: error })
  }
  if (text.trim() === '') return undefined
  let row: unknown
  try {
    row = JSON.parse(text)
  } catch (error) {
    throw new DataError(place, `is not valid JSON (${messageOf(error)}); each line must hold one JSON object`, {
      cause: error,
    })
  }
  if (typeof row !== 'object' || row === null || Array.isArray(row)) {
    throw new DataError(place, 'must be a JSON object; each line holds one row')
  }
  return row
}

async function* read(path: string): AsyncGenerator<PlacedRow> {
  let line = 0
  for (const bytes of readLines(path)) {
    const place = `${path}:${++line}`
    const row = parseLine(bytes, place)
    if (row !== undefined) yield { row, place }
  }
}

export const jsonl = defineFormat({ name: 'jsonl', extensions: ['.jsonl', '.ndjson', '.jsonlines'], read })
