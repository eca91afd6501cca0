// JSON lines from standard input. A pipe may be a socket, which cannot be opened by a path, so it is read as a stream.
import { createInterface } from 'node:readline'
import type { PlacedRow } from '../index.js'

export async function* stdinRows(input: NodeJS.ReadableStream = process.stdin): AsyncGenerator<PlacedRow> {
  let line = 0
  for await (const text of createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })) {
    const place = `stdin:${++line}`
    if (text.trim() === '') continue
    let row: unknown
    try {
      row = JSON.parse(text)
    } catch (error) {
      throw new Error(`${place}: is not valid JSON (${(error as Error).message}); each line must hold one JSON object`)
    }
    yield { row, place }
  }
}
