// The engine's tokens are the model's: against decoding without a cache, every token computed from its whole sequence,
// with our kernels and with the lowering that states what they mean.
import { beforeAll, describe, expect, it } from 'vitest'
import type { Draft, FreeSource } from '../../src/inference/drafts/source.js'
import type { Engine } from '../../src/inference/engine.js'
import { InferenceSession, packSequences } from '../../src/inference/session.js'
import type { LoadedBase } from '../../src/models/loaded-base.js'
import { PlainEngine } from './plain-engine.js'
import { mixture, openEngine, openTiny, prompts, readAll, readEach, type Text, writeAdapter } from './tiny-engine.js'

function expectClose(texts: readonly Text[], expected: readonly Text[]): void {
  expect(texts.map(({ ids }) => ids)).toEqual(expected.map(({ ids }) => ids))
  for (const [i, { logps }] of texts.entries())
    for (const [j, logp] of logps.entries()) expect(Math.abs(logp - expected[i]!.logps[j]!)).toBeLessThan(1e-5)
}

describe.each([
  { path: 'kernels', runtime: { allowFallback: false }, scale: 3 },
  { path: 'lowered', runtime: { kernels: false }, scale: 1 },
])('$path', ({ runtime, scale }) => {
  let base: LoadedBase
  let plain: PlainEngine
  beforeAll(async () => {
    base = await openTiny(runtime)
    plain = await PlainEngine.open({ base, precision: 'strict', maxSequenceTokens: 256 })
    return () => plain.close()
  })

  it('one sequence, its prompt in chunks, with the likeliest alternatives', async () => {
    const engine = await openEngine(base, { maxSequences: 1, prefillTokens: 24 })
    const requests = mixture(3 * scale, 5).map((request) => ({
      ...request,
      sampling: { ...request.sampling, topLogps: 5 },
    }))
    const expected = await readEach(plain, requests)
    const texts = await readEach(engine, requests)
    expectClose(texts, expected)
    for (const [i, { tokens }] of texts.entries())
      for (const [j, { top }] of tokens.entries()) {
        const wanted = expected[i]!.tokens[j]!.top!
        expect(top!.map(({ id }) => id)).toEqual(wanted.map(({ id }) => id))
        for (const [k, { logp }] of top!.entries()) expect(Math.abs(logp - wanted[k]!.logp)).toBeLessThan(1e-5)
      }
  })

  it('many sequences with adapters and the base, prefixes, drafts and too few blocks', async () => {
    const engine = await openEngine(base, {
      maxAdapters: 2,
      blocks: 9,
      prefillTokens: 40,
      drafts: 'prompt-lookup',
      speculation: 'fixed',
    })
    const adapters = { plain: writeAdapter(base, 'plain', 1), dora: writeAdapter(base, 'dora', 2, { useDora: true }) }
    for (const [name, folder] of Object.entries(adapters)) {
      await engine.loadAdapter(name, folder)
      await plain.loadAdapter(name, folder)
    }
    const shared = prompts(1, 7, 1)[0]!.concat(new Array(40).fill(11))
    const requests = mixture(5 * scale, 6).map((request, i) => ({
      ...request,
      promptIds: i % 4 === 3 ? shared : request.promptIds,
      adapter: ['plain', null, 'dora'][i % 3]!,
      sampling: { ...request.sampling, maxNewTokens: 40 },
    }))
    expectClose(await readAll(engine, requests), await readAll(plain, requests))
    const { drafts, preemptions } = engine.statistics()
    expect(drafts.accepted).toBeGreaterThan(0)
    if (scale > 1) expect(preemptions).toBeGreaterThan(0)
  })
})

describe('drafts keep the distribution', () => {
  const samples = 4000
  let base: LoadedBase
  beforeAll(async () => {
    base = await openTiny({ allowFallback: false })
  })

  /** Proposes the same token always. */
  const insisting = (id: number): FreeSource => ({
    name: 'insisting',
    kind: 'free',
    propose: (requests) => requests.map(({ max }): Draft => ({ ids: new Array(max).fill(id), evidence: 1 })),
    release() {},
  })

  /** Counts of the first three tokens together, from `samples` seeds. */
  async function count(engine: Engine, promptIds: number[]): Promise<Map<string, number>> {
    const texts = await readAll(
      engine,
      Array.from({ length: samples }, (_, seed) => ({
        promptIds,
        sampling: { maxNewTokens: 3, temperature: 1.3, topK: 3, seed },
      })),
    )
    const counts = new Map<string, number>()
    for (const { ids } of texts) counts.set(ids.join(), (counts.get(ids.join()) ?? 0) + 1)
    return counts
  }

  it('by a chi-squared test of three tokens over 27 outcomes', async () => {
    const [promptIds] = prompts(1, 20) as [number[]]
    const session = await InferenceSession.open({ base, precision: 'strict', maxTokens: 256 })
    // p of every outcome: the three likeliest tokens at temperature 1.3, renormalized, three times.
    let outcomes = [{ ids: [] as number[], p: 1 }]
    for (let i = 0; i < 3; i++) {
      const next: typeof outcomes = []
      for (const { ids, p } of outcomes) {
        const sequence = [...promptIds, ...ids]
        const logits = await session.logits(packSequences([sequence]), Int32Array.of(sequence.length - 1))
        const best = Array.from(logits, (x, id) => ({ id, weight: Math.exp(x / 1.3) }))
        best.sort((a, b) => b.weight - a.weight)
        const total = best.slice(0, 3).reduce((sum, { weight }) => sum + weight, 0)
        for (const { id, weight } of best.slice(0, 3)) next.push({ ids: [...ids, id], p: (p * weight) / total })
      }
      outcomes = next
    }
    session.close()
    // A draft that is often right, and one that seldom is.
    const likeliest = outcomes.reduce((a, b) => (b.p > a.p ? b : a)).ids
    for (const id of [likeliest[1]!, outcomes.at(-1)!.ids[1]!]) {
      const engine = await openEngine(base, { maxSequences: 32, drafts: insisting(id), speculation: 'fixed' })
      const counts = await count(engine, promptIds)
      const chiSquared = outcomes.reduce(
        (sum, { ids, p }) => sum + ((counts.get(ids.join()) ?? 0) - samples * p) ** 2 / (samples * p),
        0,
      )
      expect([...counts.values()].reduce((a, b) => a + b, 0)).toBe(samples)
      expect([...counts.keys()].every((key) => outcomes.some(({ ids }) => ids.join() === key))).toBe(true)
      // 26 degrees of freedom: the 0.999 quantile of chi-squared is 54.05.
      expect(chiSquared).toBeLessThan(54.05)
      const { drafts } = engine.statistics()
      expect(drafts.accepted).toBeGreaterThan(100)
      expect(drafts.proposed - drafts.accepted).toBeGreaterThan(100)
    }
  })
})
