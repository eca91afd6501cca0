// Packing and the loader: every document once per epoch, isolated, in an order that seed and position decide.
import { expect, it } from 'vitest'
import { collate, Loader, type LoaderOptions } from '../../src/data/loader.js'
import { packBestFit } from '../../src/data/packing.js'
import { prepareStore } from '../../src/data/prepare.js'
import { CounterRandom } from '../../src/data/random.js'
import { iterableSource } from '../../src/data/row-source.js'
import { ignoreIndex } from '../../src/data/row-types/row-type.js'
import type { TokenStore } from '../../src/data/token-store.js'
import { inTemporaryFolder, toyTokenizer } from './toy.js'

const maxLength = 64

function withStore(numRows: number, use: (store: TokenStore) => Promise<void> | void): Promise<void> {
  return inTemporaryFolder(async (folder) => {
    const random = new CounterRandom(1, 'lengths')
    const rows = Array.from({ length: numRows }, () => {
      const prompt = Array.from({ length: 1 + random.nextInt(40) }, () => 3 + random.nextInt(200))
      const completion = Array.from({ length: 1 + random.nextInt(20) }, () => 3 + random.nextInt(200))
      return { inputIds: [...prompt, ...completion], labels: [...prompt.map(() => ignoreIndex), ...completion] }
    })
    const source = iterableSource('random', () => rows)
    const { store } = await prepareStore({ source, tokenizer: toyTokenizer, maxLength, cacheDir: folder })
    await use(store)
    store.close()
  })
}

async function all(options: LoaderOptions) {
  const steps = []
  for await (const step of new Loader(options)) steps.push(step)
  return steps
}

it('packs best fit: no pack too long, none that could take another whole', () => {
  const random = new CounterRandom(3, 'packing')
  const lengths = Int32Array.from({ length: 3000 }, () => 1 + random.nextInt(100))
  const order = Uint32Array.from({ length: 3000 }, (_, i) => i)
  const packs = packBestFit(order, lengths, 100)
  const totals = packs.map((pack) => pack.reduce((sum, document) => sum + lengths[document]!, 0))
  expect(Math.max(...totals)).toBeLessThanOrEqual(100)
  expect(packs.flat().sort((a, b) => a - b)).toEqual([...order])
  const total = lengths.reduce((sum, length) => sum + length, 0)
  expect(packs.length).toBeLessThanOrEqual(Math.ceil(total / 100) * 1.01)
  // By hand: 6 and 4, 5 and 5, 3 + 3 + 3 into packs of 10.
  expect(packBestFit([0, 1, 2, 3, 4, 5, 6], Int32Array.from([6, 5, 4, 3, 3, 5, 3]), 10)).toEqual([
    [0, 2],
    [1, 5],
    [3, 4, 6],
  ])
  expect(() => packBestFit([0], Int32Array.from([11]), 10)).toThrow(/11 tokens/)
})

it('lays documents end to end with restarted positions and aligned labels', () =>
  withStore(20, (store) => {
    const batch = collate(store, [3, 0, 7])
    expect(batch.documents).toEqual([3, 0, 7])
    for (const [i, document] of batch.documents.entries()) {
      const { inputIds, labels } = store.read(document)
      const [start, end] = [batch.cuSeqlens[i]!, batch.cuSeqlens[i + 1]!]
      expect([...batch.inputIds.subarray(start, end)]).toEqual([...inputIds])
      expect([...batch.labels.subarray(start, end)]).toEqual([...labels.subarray(1), ignoreIndex])
      expect([...batch.positionIds.subarray(start, end)]).toEqual([...inputIds.keys()])
    }
    expect(batch.inputIds.length).toBe(batch.cuSeqlens[3])
  }))

it('gives every document once per epoch, packed or not, in another order each epoch', () =>
  withStore(203, async (store) => {
    for (const packing of [false, true]) {
      const base = { store, seed: 5, maxLength, packing, microBatchSize: 2, gradientAccumulationSteps: 3, epochs: 2 }
      const steps = await all(base)
      expect(steps.map(({ step }) => step)).toEqual(steps.map((_, i) => i + 1))
      expect(steps.length).toBe(new Loader(base).totalSteps)
      expect(steps.at(-1)!.epoch).toBe(2)
      const perEpoch = [steps.filter(({ epoch }) => epoch <= 1), steps.filter(({ epoch }) => epoch > 1)]
      const orders = perEpoch.map((list) =>
        list.flatMap(({ microBatches }) => microBatches.flatMap(({ documents }) => documents)),
      )
      for (const order of orders) expect([...order].sort((a, b) => a - b)).toEqual([...store.lengths.keys()])
      expect(orders[0]).not.toEqual(orders[1])
      for (const { microBatches, targetTokens } of steps) {
        expect(microBatches.length).toBeLessThanOrEqual(3)
        expect(targetTokens).toBe(
          microBatches.reduce((sum, { labels }) => sum + labels.filter((label) => label !== ignoreIndex).length, 0),
        )
        for (const { inputIds } of microBatches) expect(inputIds.length).toBeLessThanOrEqual(2 * maxLength)
      }
      expect((await all({ ...base, seed: 6 }))[0]).not.toEqual(steps[0])
      expect(await all(base)).toEqual(steps)
      const full = await all({ ...base, dropLast: true })
      for (const { microBatches } of full) expect(microBatches.length).toBe(3)
      expect((await all({ ...base, epochs: undefined, maxSteps: 100 })).length).toBe(100)
      expect((await all({ ...base, maxSteps: 3 })).length).toBe(3)
    }
    const inOrder = await all({ store, seed: 1, maxLength, shuffle: false })
    expect(inOrder.flatMap(({ microBatches }) => microBatches[0]!.documents)).toEqual([...store.lengths.keys()])
  }))

it('continues from a saved state bit for bit, and refuses another one', () =>
  withStore(97, async (store) => {
    const options = {
      store,
      seed: 9,
      maxLength,
      packing: true,
      microBatchSize: 1,
      gradientAccumulationSteps: 2,
      epochs: 3,
    }
    const whole = await all(options)
    for (const stop of [0, 1, whole.length >> 1, whole.length - 1, whole.length]) {
      const first = new Loader(options)
      for (let i = 0; i < stop; i++) await first.next()
      const state = JSON.parse(JSON.stringify(first.getState()))
      const second = new Loader(options)
      second.setState(state)
      const rest = []
      for await (const step of second) rest.push(step)
      expect(rest).toEqual(whole.slice(stop))
    }
    const state = new Loader(options).getState()
    expect(() => new Loader({ ...options, seed: 10 }).setState(state)).toThrow(/not those of the checkpoint/)
    expect(() => new Loader(options).setState({ ...state, position: -1 })).toThrow(/damaged/)
  }))

it('starts with short documents under a length curriculum and leaves none out', () =>
  withStore(400, async (store) => {
    for (const packing of [false, true]) {
      const curriculum = { startLength: 16, fraction: 0.5 }
      const steps = await all({ store, seed: 2, maxLength, packing, curriculum })
      const documents = steps.flatMap(({ microBatches }) => microBatches[0]!.documents)
      expect([...documents].sort((a, b) => a - b)).toEqual([...store.lengths.keys()])
      const early = documents.slice(0, 20).map((document) => store.lengths[document]!)
      expect(Math.max(...early)).toBeLessThanOrEqual(16)
    }
  }))

it('says which option is wrong', () =>
  withStore(5, (store) => {
    expect(() => new Loader({ store, seed: 1, maxLength: 8 })).toThrow(/longest document/)
    expect(() => new Loader({ store, seed: 1, maxLength, microBatchSize: 0 })).toThrow(
      /microBatchSize must be a positive integer/,
    )
    expect(() => new Loader({ store, seed: 1, maxLength, microBatchSize: 9, dropLast: true })).toThrow(
      /not one full optimizer step/,
    )
  }))
