// A thousand mutated copies of a file of each format: rows or a DataError that names the file, never another error, a crash or a hang.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import * as arrow from 'apache-arrow'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { expect, it } from 'vitest'
import { DataError } from '../../src/data/errors.js'
import { CounterRandom } from '../../src/data/random.js'
import { fileSource } from '../../src/data/row-source.js'
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

/** Flips bits, overwrites numbers with extreme ones, cuts, repeats or removes stretches; mostly near the ends, where the heads are. */
function mutate(original: Uint8Array, random: CounterRandom): Buffer {
  let bytes = Buffer.from(original)
  const extremes = [0, 1, 0x7f, 0x80, 0xff]
  for (let count = 1 + random.nextInt(4); count > 0; count--) {
    const size = bytes.length
    if (size < 16) break
    const nearEnd = random.nextInt(3)
    const range = Math.min(size, 700)
    const at =
      nearEnd === 0 ? random.nextInt(size) : nearEnd === 1 ? random.nextInt(range) : size - 1 - random.nextInt(range)
    const kind = random.nextInt(7)
    if (kind === 0) bytes[at]! ^= 1 << random.nextInt(8)
    else if (kind === 1) bytes[at] = random.nextInt(256)
    else if (kind === 2)
      bytes.fill(extremes[random.nextInt(extremes.length)]!, at, Math.min(size, at + 1 + random.nextInt(8)))
    else if (kind === 3) bytes = bytes.subarray(0, at)
    else if (kind === 4) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + random.nextInt(16))])
    else if (kind === 5)
      bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.max(0, at - random.nextInt(64)))])
    else if (at + 4 <= size) bytes.writeInt32LE(random.nextInt(2) === 0 ? 0x7fffffff : -1, at)
  }
  return bytes
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
