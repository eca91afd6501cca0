// The engine over a tiny model: whatever shares a step, a cache or a draft with a sequence, its tokens are those of
// decoding it alone, to the bit. That those are the model's is tested in
// engine-exact.test.ts.
import { beforeAll, describe, expect, it } from 'vitest'
import type { FreeSource } from '../../src/inference/drafts/source.js'
import type { Engine } from '../../src/inference/engine.js'
import type { EngineRequest, TokenConstraint } from '../../src/inference/request.js'
import type { LoadedBase } from '../../src/models/loaded-base.js'
import {
  mixture,
  openEngine,
  openTiny,
  prompts,
  read,
  readAll,
  readEach,
  sampled,
  type Text,
  writeAdapter,
} from './tiny-engine.js'

const modes = [
  { mode: 'strict', format: 'none', options: { precision: 'strict' } },
  { mode: 'fast', format: 'int4', options: { precision: 'fast' } },
  { mode: 'fast with an int8 cache', format: 'int4', options: { precision: 'fast', cacheType: 'int8' } },
] as const

/** The same tokens with the same log-probabilities, to the bit: a row never depends on others. */
function expectSame(texts: readonly (Text | null)[], expected: readonly Text[]): void {
  const shown = (text: Text) => ({ ids: text.ids, logps: text.logps })
  for (const [i, text] of texts.entries()) if (text) expect(shown(text)).toEqual(shown(expected[i]!))
}

/** The token at place i is i modulo 8. */
function countdown(): TokenConstraint {
  let at = 0
  const mask = new Int32Array(8)
  return {
    allowed() {
      mask.fill(0x01010101 << (at % 8))
      return mask
    },
    accept(id) {
      if (id % 8 !== at % 8) throw new Error(`token ${id} is not allowed at ${at}`)
      at++
    },
    rollback(count) {
      if (count > at) throw new Error('rolled back too far')
      at -= count
    },
    fork: countdown,
    free() {},
  }
}

describe.each(modes)('$mode', ({ format, options }) => {
  let base: LoadedBase
  /** One sequence at a time, no drafts, room for everything. */
  let alone: Engine
  beforeAll(async () => {
    base = await openTiny({ allowFallback: false }, format)
    alone = await openEngine(base, { ...options, maxSequences: 1 })
  })

  describe('one sequence', () => {
    it('ends at a stop token, which it does not return, and at the end of the context', async () => {
      const promptIds = prompts(1, 6)[0]!
      const free = await read(alone.submit({ promptIds, sampling: { maxNewTokens: 20 } }))
      const at = free.ids.findIndex((id, i) => i >= 5 && !free.ids.slice(0, i).includes(id))
      const stopped = await read(
        alone.submit({ promptIds, sampling: { maxNewTokens: 20, stopIds: [999, free.ids[Math.max(at, 0)]!] } }),
      )
      expect(stopped.reason).toBe('stop')
      expect(stopped.ids).toEqual(free.ids.slice(0, Math.max(0, at)))
      const long = await read(alone.submit({ promptIds: new Array(250).fill(7) }))
      expect(long.ids).toHaveLength(6)
      expect(long.reason).toBe('length')
    })
  })

  describe('many sequences', () => {
    it('in one batch, prompts in chunks, give what each gives alone', async () => {
      const requests = mixture(14, 1)
      const expected = await readEach(alone, requests)
      const engine = await openEngine(base, { ...options, prefillTokens: 24 })
      const texts = await readAll(engine, requests)
      expectSame(texts, expected)
      expect(new Set(texts.map((text) => text.ids.join())).size).toBeGreaterThan(5)
    })

    it('that begin alike share the prefix', async () => {
      const [system, ...questions] = prompts(6, 2) as [number[], ...number[][]]
      const prefix = Array.from({ length: 80 }, (_, i) => system[i % system.length]!)
      const requests = questions.map((question, i) => sampled([...prefix, ...question], i))
      const expected = await readEach(await openEngine(base, { ...options, maxSequences: 1, blocks: 9 }), requests)
      const engine = await openEngine(base, options)
      const texts = await readAll(engine, requests)
      expectSame(texts, expected)
      expect(texts.slice(1).map(({ cachedTokens }) => cachedTokens)).toEqual([64, 64, 64, 64])
    })

    it('of one prompt compute it once', async () => {
      const promptIds = prompts(1, 3)[0]!.concat(prompts(1, 4)[0]!)
      const requests = Array.from({ length: 16 }, (_, seed) => sampled(promptIds, seed))
      const expected = await readEach(alone, requests)
      const engine = await openEngine(base, options)
      const texts = await readAll(engine, requests)
      expectSame(texts, expected)
      expect(new Set(texts.map((text) => text.ids.join())).size).toBeGreaterThan(8)
      const { promptTokens, cachedTokens } = engine.statistics()
      expect(promptTokens).toBe(16 * promptIds.length)
      expect(promptTokens - cachedTokens).toBe(promptIds.length)
    })

    it('find a prompt that ran before', async () => {
      const engine = await openEngine(base, options)
      const promptIds = prompts(1, 8, 1)[0]!.concat(new Array(61).fill(9)).slice(0, 64)
      const [first, second] = await readEach(engine, [sampled(promptIds, 1), sampled(promptIds, 1)])
      expect(first!.cachedTokens).toBe(0)
      expect(second!.cachedTokens).toBe(63)
      expectSame([second!], [first!])
    })

    it('are swapped out when blocks run out and resume with the same text', async () => {
      const requests = mixture(10, 9).map((request) => ({
        ...request,
        sampling: { ...request.sampling, maxNewTokens: 90 },
      }))
      const expected = await readEach(alone, requests)
      const engine = await openEngine(base, { ...options, blocks: 9 })
      expectSame(await readAll(engine, requests), expected)
      const { preemptions, blocks } = engine.statistics()
      expect(preemptions).toBeGreaterThan(2)
      expect(blocks.used).toBe(0)
    })

    it('are not disturbed by others that are cancelled, and leave no block behind', async () => {
      const requests = mixture(12, 10).map((request) => ({
        ...request,
        sampling: { ...request.sampling, maxNewTokens: 120 },
      }))
      const expected = await readEach(alone, requests)
      const engine = await openEngine(base, {
        ...options,
        blocks: 9,
        maxSequences: 8,
        drafts: 'prompt-lookup',
        speculation: 'fixed',
      })
      const texts = await Promise.all(
        engine.submitMany(requests).map(async (stream, i) => {
          if (i % 3 !== 1) return read(stream)
          const some: number[] = []
          if (i === 4) stream.cancel()
          try {
            for await (const { id } of stream) {
              some.push(id)
              if (some.length > i) break
            }
          } catch (error) {
            expect((error as Error).name).toBe('AbortError')
          }
          await expect(stream.finished).rejects.toThrow(/cancelled/)
          expect(some).toEqual(expected[i]!.ids.slice(0, some.length))
          return null
        }),
      )
      expectSame(texts, expected)
      await engine.drain()
      expect(engine.statistics().preemptions).toBeGreaterThan(0)
      expect(engine.statistics()).toMatchObject({ running: 0, waiting: 0, swapped: 0, blocks: { used: 0 } })
    })
  })

  describe.each(['prompt-lookup', 'early-exit'] as const)('drafts by %s', (source) => {
    it('change no token, greedy or sampled, and are accepted', async () => {
      const requests = mixture(9, 11).map((request) => ({
        ...request,
        sampling: { ...request.sampling, maxNewTokens: 60 },
      }))
      const expected = await readEach(alone, requests)
      const engine = await openEngine(base, { ...options, drafts: source, speculation: 'fixed' })
      const texts = await readAll(engine, requests)
      expectSame(texts, expected)
      const { drafts, steps, generatedTokens } = engine.statistics()
      expect(drafts.accepted).toBeGreaterThan(50)
      expect(drafts.proposed).toBeGreaterThan(drafts.accepted)
      expect(generatedTokens).toBe(9 * 60)
      expect(steps).toBeLessThan(80)
    })

    it('as measured, and switched off for a request, change none either', async () => {
      const requests = mixture(6, 12)
      const expected = await readEach(alone, requests)
      const engine = await openEngine(base, { ...options, drafts: source })
      expectSame(await readEach(engine, requests), expected)
      const before = engine.statistics().drafts
      await readEach(
        engine,
        requests.map((request) => ({ ...request, speculate: false })),
      )
      expect(engine.statistics().drafts).toEqual(before)
    })

    it('obey a constraint', async () => {
      const requests = (): EngineRequest[] =>
        prompts(4, 13).map((promptIds, i) =>
          sampled(promptIds, i, { temperature: i, constraint: countdown(), maxNewTokens: 40, repetitionPenalty: 1.1 }),
        )
      const expected = await readEach(alone, requests())
      const engine = await openEngine(base, { ...options, drafts: source, speculation: 'fixed' })
      const texts = await readAll(engine, requests())
      expectSame(texts, expected)
      for (const text of texts) expect(text.ids.map((id) => id % 8)).toEqual(text.ids.map((_, i) => i % 8))
      expect(engine.statistics().drafts.proposed).toBeGreaterThan(0)
    })

    it('take blocks from nobody, and share none that they write', async () => {
      const [promptIds] = prompts(1, 15) as [number[]]
      const requests = [
        ...Array.from({ length: 6 }, (_, seed) => sampled(promptIds, seed, { maxNewTokens: 70 })),
        ...mixture(3, 16).map((request) => ({ ...request, sampling: { ...request.sampling, maxNewTokens: 70 } })),
      ]
      const expected = await readEach(alone, requests)
      const engine = await openEngine(base, { ...options, blocks: 12, drafts: source, speculation: 'fixed' })
      expectSame(await readAll(engine, requests), expected)
      expect(engine.statistics().preemptions).toBeGreaterThan(0)
      expect(engine.statistics().drafts.accepted).toBeGreaterThan(0)
    })
  })

  describe('adapters', () => {
    it('and the base in one batch give what each gives alone', async () => {
      const folders = {
        red: writeAdapter(base, 'red', 1),
        blue: writeAdapter(base, 'blue', 2, { useDora: true, rank: 8 }),
      }
      const engine = await openEngine(base, {
        ...options,
        ...options,
        maxAdapters: 2,
        drafts: 'prompt-lookup',
        speculation: 'fixed',
      })
      for (const [name, folder] of Object.entries(folders)) await engine.loadAdapter(name, folder)
      expect(engine.adapters()).toEqual(['red', 'blue'])
      const [promptIds] = prompts(1, 14) as [number[]]
      const names = ['red', null, 'blue', 'red', 'blue', null]
      const requests = names.map(
        (adapter, i): EngineRequest => ({
          promptIds: promptIds.slice(0, promptIds.length - (i >> 1)),
          adapter,
          sampling: { maxNewTokens: 30 },
        }),
      )
      const together = await readAll(engine, requests)
      const each = await readEach(engine, requests)
      expectSame(together, each)
      expect(new Set(together.map((text) => text.ids.join())).size).toBeGreaterThan(2)
      // Another adapter under a name that was used finds nothing of the old one.
      engine.unloadAdapter('red')
      await engine.loadAdapter('red', writeAdapter(base, 'green', 3))
      const again = await read(engine.submit(requests[0]!))
      expect(again.cachedTokens).toBe(0)
      expect(again.ids).not.toEqual(together[0]!.ids)
    })

    it('are refused where they do not fit, and kept while they are used', async () => {
      const engine = await openEngine(base, { ...options, maxAdapters: 1 })
      await expect(engine.loadAdapter('big', writeAdapter(base, 'big', 1, { rank: 16 }))).rejects.toThrow(/maxRank/)
      const folder = writeAdapter(base, 'one', 1)
      await engine.loadAdapter('one', folder)
      await expect(engine.loadAdapter('one', folder)).rejects.toThrow(/loaded already/)
      await expect(engine.loadAdapter('two', folder)).rejects.toThrow(/maxAdapters/)
      const stream = engine.submit({ promptIds: [1, 2, 3], adapter: 'one', sampling: { maxNewTokens: 50 } })
      expect(() => engine.unloadAdapter('one')).toThrow(/1 sequences use/)
      await read(stream)
      engine.unloadAdapter('one')
      expect(() => engine.submit({ promptIds: [1], adapter: 'one' })).toThrow(/no adapter "one" is loaded/)
      const small = await openEngine(base, { ...options, maxAdapters: 1, adapterFloats: 1000 })
      await expect(small.loadAdapter('one', folder)).rejects.toThrow(/adapterFloats/)
    })
  })

  describe('requests', () => {
    it('that can never run are refused before they are queued', () => {
      expect(() => alone.submit({ promptIds: [] })).toThrow(/empty prompt/)
      expect(() => alone.submit({ promptIds: [256] })).toThrow(/token 0 of the prompt is 256/)
      expect(() => alone.submit({ promptIds: new Array(256).fill(1) })).toThrow(/at most 256/)
      expect(() => alone.submit({ promptIds: [1], sampling: { topP: 0 } })).toThrow(/topP is 0/)
      expect(() => alone.submit({ promptIds: [1], sampling: { maxNewTokens: 0 } })).toThrow(/maxNewTokens/)
      expect(alone.statistics()).toMatchObject({ waiting: 0, running: 0 })
    })

    it('that are aborted reject with the reason', async () => {
      const late = new AbortController()
      const stream = alone.submit({ promptIds: [1, 2], signal: late.signal })
      const seen = (async () => {
        for await (const _ of stream) late.abort(new Error('enough'))
      })()
      await expect(seen).rejects.toThrow('enough')
      await expect(stream.finished).rejects.toThrow('enough')
      await expect(
        read(alone.submit({ promptIds: [1], signal: AbortSignal.abort(new Error('early')) })),
      ).rejects.toThrow('early')
    })

    it('may share a signal in any number, without a warning', async () => {
      const warnings: string[] = []
      const warn = (warning: Error) => warnings.push(warning.name)
      process.on('warning', warn)
      const engine = await openEngine(base, options)
      const controller = new AbortController()
      const requests = mixture(20, 17).map((request) => ({ ...request, signal: controller.signal }))
      await readAll(engine, requests)
      const streams = engine.submitMany(requests)
      const ends = streams.map((stream) => expect(read(stream)).rejects.toThrow('all of them'))
      controller.abort(new Error('all of them'))
      await Promise.all(ends)
      await engine.drain()
      process.off('warning', warn)
      expect(warnings).toEqual([])
      expect(engine.statistics()).toMatchObject({ running: 0, waiting: 0, blocks: { used: 0 } })
    })

    it('fail with the error of their draft source, and the engine goes on', async () => {
      let fails = true
      const drafts: FreeSource = {
        name: 'broken',
        kind: 'free',
        propose(requests) {
          if (fails) throw new Error('no drafts today')
          return requests.map(() => null)
        },
        release() {},
      }
      const engine = await openEngine(base, { ...options, maxSequences: 1, drafts })
      const request = { promptIds: [1, 2, 3], sampling: { maxNewTokens: 5 } }
      const [first, second] = engine.submitMany([request, { ...request, promptIds: [4, 5] }])
      await expect(read(first!)).rejects.toThrow('no drafts today')
      fails = false
      expect((await read(second!)).ids).toHaveLength(5)
      expect(engine.statistics().blocks.used).toBe(0)
    })

    it('run to their end while the engine drains, and no more are taken', async () => {
      const engine = await openEngine(base, options)
      const text = read(engine.submit({ promptIds: [1, 2, 3], sampling: { maxNewTokens: 30 } }))
      await engine.drain()
      expect((await text).ids).toHaveLength(30)
      expect(() => engine.submit({ promptIds: [1] })).toThrow(/shutting down/)
    })

    it('end with an error when the engine is closed', async () => {
      const engine = await openEngine(base, options)
      const text = read(engine.submit({ promptIds: [1, 2, 3] }))
      const closed = engine.close()
      await expect(text).rejects.toThrow(/cancelled/)
      await closed
    })
  })
})
