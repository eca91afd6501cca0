// A thousand damaged copies of a token file of pairs: all documents, numbers and places within bounds, or an error that names the
// file and says that it will be made again; never another error, a crash or a hang.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { DataError } from '../../src/data/errors.js'
import { prepareStore } from '../../src/data/prepare.js'
import { CounterRandom } from '../../src/data/random.js'
import { iterableSource } from '../../src/data/row-source.js'
import { openTokenStore, type TokenStore } from '../../src/data/token-store.js'
import { mutate } from './mutate.js'
import { inTemporaryFolder, toyTokenizer } from './toy.js'

const numCopies = 1000
const maxMilliseconds = 2000
const maxLength = 64

const rows = Array.from({ length: 40 }, (_, i) => ({
  prompt: `question ${i} `,
  chosen: 'c'.repeat(1 + (i % 7)),
  rejected: 'r'.repeat(1 + (i % 5)),
  margin: i + 0.5,
}))

async function withTokenFile(use: (path: string, bytes: Buffer) => Promise<void>): Promise<void> {
  await inTemporaryFolder(async (folder) => {
    const source = iterableSource('pairs', () => rows)
    const { store, path } = await prepareStore({ tokenizer: toyTokenizer, source, maxLength, cacheDir: folder })
    store.close()
    await use(join(folder, 'damaged.arrow'), readFileSync(path))
  })
}

/** Everything that a store gives out. */
function readAll(store: TokenStore): { tokens: number; values: number[] } {
  let tokens = 0
  const values: number[] = []
  for (let row = 0; row < store.numRows; row++) {
    const { inputIds, labels } = store.read(row)
    expect(labels.length).toBe(inputIds.length)
    expect(inputIds.length).toBe(store.lengths[row])
    store.placeOf(row)
    store.sourceRow(row)
    tokens += inputIds.length
  }
  for (let group = 0; group < store.numGroups; group++) values.push(store.valueOf(group))
  return { tokens, values }
}

it('opens what is whole, and refuses the rest', () =>
  withTokenFile(async (path, original) => {
    const random = new CounterRandom(Number(process.env.ESPALIER_FUZZ_SEED ?? 11), 'token file')
    let refused = 0
    for (let copy = 0; copy < numCopies; copy++) {
      writeFileSync(path, mutate(original, random))
      const begin = performance.now()
      try {
        const store = await openTokenStore(path)
        try {
          const { tokens, values } = readAll(store)
          expect(tokens * 8, `copy ${copy}`).toBeLessThanOrEqual(original.length + 64)
          if (store.valueName !== undefined) expect(values.every(Number.isFinite), `copy ${copy}`).toBe(true)
        } finally {
          store.close()
        }
      } catch (error) {
        if (!(error instanceof DataError)) throw new Error(`copy ${copy}`, { cause: error })
        expect(error.message).toMatch(/damaged\.arrow: .*; delete it and it will be made again$/s)
        refused++
      }
      expect(performance.now() - begin, `copy ${copy}`).toBeLessThan(maxMilliseconds)
    }
    // Some damage is in the tokens and passes, most is in the structure
    expect(refused).toBeGreaterThan(numCopies / 10)
    expect(refused).toBeLessThan(numCopies)
    writeFileSync(path, original)
    const store = await openTokenStore(path)
    expect(readAll(store).values).toEqual(rows.map(({ margin }) => margin))
    store.close()
  }))

it('refuses a column of numbers that holds one which is not finite', () =>
  withTokenFile(async (path, original) => {
    const number = Buffer.alloc(8)
    for (const wrong of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const bytes = Buffer.from(original)
      number.writeDoubleLE(17.5)
      const at = bytes.indexOf(number)
      expect(at).toBeGreaterThan(0)
      bytes.writeDoubleLE(wrong, at)
      writeFileSync(path, bytes)
      await expect(openTokenStore(path)).rejects.toThrow(
        /damaged\.arrow: holds a margin that is not finite; delete it and it will be made again/,
      )
    }
  }))
