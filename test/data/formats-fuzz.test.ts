// A thousand mutated copies of a file of each format: rows or a DataError that names the file, never another error, a crash or a hang.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import * as arrow from 'apache-arrow'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { expect, it } from 'vitest'
import { DataError } from '../../src/data/errors.js'
import { CounterRandom } from '../../src/data/random.js'
import { fileSource } from '../../src/data/row-source.js'
import { mutate } from './mutate.js'
import { inTemporaryFolder } from './toy.js'

const numCopies = 1000
const maxMilliseconds = 5000

/** Files that pyarrow wrote: nested columns, other encodings and page versions. */
const foreign = [
  'messages-v1.parquet',
  'messages-v2.parquet',
  'ids-delta.parquet',
  'messages-stream.arrow',
  'messages-file.arrow',
]

const rows = Array.from({ length: 60 }, (_, i) => ({
  prompt: `question ${i} ${'é'.repeat(i % 5)}`,
  completion: 'x'.repeat(i),
}))

function columns(): { name: string; data: string[]; type: 'STRING' }[] {
  return (['prompt', 'completion'] as const).map((name) => ({
    name,
    data: rows.map((row) => row[name]),
    type: 'STRING',
  }))
}

/** Messages as lists of structs, so that nested types are damaged too. */
function arrowTable(): arrow.Table {
  const item = new arrow.Struct([
    new arrow.Field('role', new arrow.Utf8(), true),
    new arrow.Field('content', new arrow.Utf8(), true),
  ])
  const messages = rows.map(({ prompt, completion }) => [
    { role: 'user', content: prompt },
    { role: 'assistant', content: completion },
  ])
  const list = new arrow.List(new arrow.Field('item', item, true))
  const kinds = arrow.vectorFromArray(
    rows.map((_, i) => `kind ${i % 3}`),
    new arrow.Dictionary(new arrow.Utf8(), new arrow.Int32()),
  )
  return new arrow.Table({ messages: arrow.vectorFromArray(messages, list), kinds })
}

async function fuzz(name: string, original: Uint8Array): Promise<void> {
  await inTemporaryFolder(async (folder) => {
    const path = join(folder, name)
    const random = new CounterRandom(Number(process.env.ESPALIER_FUZZ_SEED ?? 11), name)
    let refused = 0
    for (let copy = 0; copy < numCopies; copy++) {
      writeFileSync(path, mutate(original, random))
      const begin = performance.now()
      try {
        for await (const { row, place } of fileSource(path).rows()) {
          expect(place).toContain(path)
          expect(typeof row).toBe('object')
        }
      } catch (error) {
        if (!(error instanceof DataError)) throw error
        expect(error.place.startsWith(path), `copy ${copy}: ${error.message}`).toBe(true)
        expect(error.message.length).toBeGreaterThan(path.length + 10)
        refused++
      }
      expect(performance.now() - begin, `copy ${copy}`).toBeLessThan(maxMilliseconds)
    }
    // Some damage is in the values and passes, most is in the structure.
    expect(refused).toBeGreaterThan(numCopies / 10)
    expect(refused).toBeLessThan(numCopies)
    writeFileSync(path, original)
    let numRows = 0
    for await (const _ of fileSource(path).rows()) numRows++
    expect(numRows).toBe(rows.length)
    expect(process.memoryUsage().rss).toBeLessThan(1.5 * 2 ** 30)
  })
}

it('JSONL', () => fuzz('a.jsonl', Buffer.from(rows.map((row) => `${JSON.stringify(row)}\n`).join(''))))
it('Parquet, Snappy', () =>
  fuzz('a.parquet', Buffer.from(parquetWriteBuffer({ columnData: columns(), rowGroupSize: [20], codec: 'SNAPPY' }))))
it('Parquet, uncompressed', () =>
  fuzz(
    'a.parquet',
    Buffer.from(parquetWriteBuffer({ columnData: columns(), rowGroupSize: [20], codec: 'UNCOMPRESSED' })),
  ))
it('Arrow file', () => fuzz('a.arrow', arrow.tableToIPC(arrowTable(), 'file')))
it('Arrow stream', () => fuzz('a.arrow', arrow.tableToIPC(arrowTable(), 'stream')))
it.each(foreign)('%s', (name) => fuzz(name, readFileSync(new URL(`files/${name}`, import.meta.url))))
