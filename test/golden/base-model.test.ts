// The imported real base against the reference: log-probabilities, logits, greedy continuations and perplexity in strict
// arithmetic; the fast path by its mean NLL.
import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { generateTokens, topTokens } from '../../src/inference/generate.js'
import { scoreRow } from '../../src/inference/score.js'
import { InferenceSession, packSequences } from '../../src/inference/session.js'
import { useReferenceBase } from '../models/reference-base.js'
import { goldenDir } from './folder.js'
import { readTensors } from './safetensors.js'

const read = <T>(name: string) => JSON.parse(readFileSync(goldenDir('models', 'base', name), 'utf8')) as T
const { prompts } = read<{ prompts: { name: string; ids: number[] }[] }>('prompts.json')
const { continuations } = read<{ continuations: { name: string; ids: number[]; gaps: number[] }[] }>('greedy.json')
const perplexity = read<{
  ids: number[]
  window: number
  windows: number
  nll_mean: number
  nll_sum_per_window: number[]
}>('perplexity.json')
const expected = readTensors(goldenDir('models', 'base', 'logits.safetensors'))

/** Ten times what float32 transformers is off by (the README of the values). */
const LOGIT_TOLERANCE = 5e-4
const NLL_TOLERANCE = 1e-5

const loaded = useReferenceBase('the base against its reference values')
let strict: InferenceSession
beforeAll(async () => {
  const base = loaded()
  if (base) strict = await InferenceSession.open({ base, precision: 'strict' })
})
afterAll(() => strict?.close())

const meanNll = async (session: InferenceSession) => {
  const sums: number[] = []
  for (let w = 0; w < perplexity.windows; w++) {
    const inputIds = perplexity.ids.slice(w * perplexity.window, (w + 1) * perplexity.window)
    sums.push((await scoreRow(session, { inputIds })).nll)
  }
  return sums
}

describe('the real base', () => {
  for (const { name, ids } of prompts) {
    it(`${name}: logits and log-probabilities`, async ({ skip }) => {
      if (!loaded()) skip()
      const sequences = packSequences([ids])
      const logits = await strict.logits(sequences, Int32Array.of(ids.length - 1))
      const reference = expected.get(`${name}.last_logits`)!.data
      let worst = 0
      logits.forEach((x, i) => {
        worst = Math.max(worst, Math.abs(x - reference[i]!))
      })
      expect(worst).toBeLessThan(LOGIT_TOLERANCE)

      const { logps } = await scoreRow(strict, { inputIds: ids })
      const logpReference = expected.get(`${name}.logps`)!.data
      logps.slice(1).forEach((x, i) => {
        expect(Math.abs(x! - logpReference[i]!)).toBeLessThan(LOGIT_TOLERANCE)
      })

      const top = topTokens(logits, 5)
      const topIds = expected.get(`${name}.top5_ids`)!.data
      const topLogps = expected.get(`${name}.top5_logps`)!.data
      const last = (ids.length - 1) * 5
      expect(top.map((t) => t.id)).toEqual(Array.from({ length: 5 }, (_, i) => topIds[last + i]))
      top.forEach((t, i) => {
        expect(Math.abs(t.logp - topLogps[last + i]!)).toBeLessThan(LOGIT_TOLERANCE)
      })
    }, 120_000)
  }

  for (const { name, ids, gaps } of continuations) {
    it(`${name}: greedy continuation`, async ({ skip }) => {
      if (!loaded()) skip()
      const generated: number[] = []
      const prompt = prompts.find((p) => p.name === name)!.ids
      for await (const token of generateTokens(strict, prompt, { maxNewTokens: ids.length })) generated.push(token.id)
      // A near-tie may fall either way; up to the first of them the tokens are equal.
      const nearTie = gaps.findIndex((gap) => gap < 2 * LOGIT_TOLERANCE)
      const length = nearTie < 0 ? ids.length : nearTie
      expect(generated.slice(0, length)).toEqual(ids.slice(0, length))
    }, 240_000)
  }

  it('perplexity, strict', async ({ skip }) => {
    if (!loaded()) skip()
    const sums = await meanNll(strict)
    const targets = perplexity.windows * (perplexity.window - 1)
    expect(Math.abs(sums.reduce((a, b) => a + b, 0) / targets - perplexity.nll_mean)).toBeLessThan(NLL_TOLERANCE)
  }, 240_000)

  it('perplexity, fast', async ({ skip }) => {
    if (!loaded()) skip()
    const fast = await InferenceSession.open({ base: loaded()!, precision: 'fast' })
    const sums = await meanNll(fast)
    fast.close()
    const targets = perplexity.windows * (perplexity.window - 1)
    expect(Math.abs(sums.reduce((a, b) => a + b, 0) / targets - perplexity.nll_mean)).toBeLessThan(0.02)
  }, 240_000)
})
