// Base beside adapter on held-out rows: every metric against what the SDK's own calls give, intervals, choices of metrics.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type AnsweredRow, defineDataset } from '../../src/data/index.js'
import { openModel } from '../../src/inference/index.js'
import { evaluateAdapter, type TrainableRecipe } from '../../src/training/index.js'
import { writeTinyAdapter } from '../inference/tiny-model.js'
import { importTiny, tinyRecipe, words } from './tiny-base.js'

let folder: string
let base: string
let adapter: string
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-evaluate-'))
  base = await importTiny(folder)
  adapter = writeTinyAdapter(base, join(folder, 'adapter'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const recipeWith = (data: Partial<TrainableRecipe['data']> = {}) => tinyRecipe({ folder, base, data })
const rows = () =>
  readFileSync(join(folder, 'held-out.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { prompt: string; completion: string })

describe('an evaluation', () => {
  it('gives perplexity and metrics over answers, base beside adapter, as the model itself gives them', async () => {
    const seen: AnsweredRow[] = []
    const metrics = {
      answerLength: (answered: AnsweredRow) => {
        seen.push(answered)
        return answered.answer.length
      },
      hasVowel: async ({ answer }: AnsweredRow) => /[aeiou]/.test(answer),
    }
    const found = await evaluateAdapter(recipeWith({ metrics }), { adapter, precision: 'strict', maxNewTokens: 6 })
    expect(Object.keys(found.metrics)).toEqual(['perplexity', 'exactMatch', 'answerLength', 'hasVowel'])

    const model = await openModel({ base, adapter, precision: 'strict' })
    try {
      for (const [side, name] of [
        ['base', null],
        ['adapter', 'adapter'],
      ] as const) {
        const scored = await model.logps(rows(), { adapter: name })
        const nll = scored.reduce((sum, row) => sum + row.nll, 0) / scored.reduce((sum, row) => sum + row.tokens, 0)
        expect(Math.log(found.metrics.perplexity![side]!.value)).toBeCloseTo(nll, 4)
        let length = 0
        for (const { prompt } of rows())
          length += (await model.generate({ text: prompt }, { adapter: name, maxNewTokens: 6 }).result).text.length
        expect(found.metrics.answerLength![side]!.value).toBeCloseTo(length / 12, 6)
      }
    } finally {
      await model.close()
    }
    expect(seen).toHaveLength(24)
    expect(seen.map(({ expected }) => expected).sort()).toEqual(
      rows()
        .flatMap(({ completion }) => [completion, completion])
        .sort(),
    )
    for (const { base: ofBase, adapter: ofAdapter, difference, rows: count } of Object.values(found.metrics)) {
      expect(count).toBe(12)
      expect(difference!.value).toBeCloseTo(ofAdapter!.value - ofBase!.value, 9)
      for (const { low, value, high } of [ofBase!, ofAdapter!]) {
        expect(low).toBeLessThanOrEqual(value)
        expect(high).toBeGreaterThanOrEqual(value)
      }
    }
    expect(found.loss).toBeCloseTo(Math.log(found.metrics.perplexity!.adapter!.value), 6)
  })

  it('judges by choices where there are some, and leaves out what is not asked for', async () => {
    const options = { adapter, metrics: ['accuracy'], precision: 'strict' } as const
    const found = await evaluateAdapter(recipeWith({ choices: [...words] }), options)
    expect(Object.keys(found.metrics)).toEqual(['accuracy'])
    expect(found.metrics.accuracy!.adapter!.value).toBe(found.accuracy)
    const again = await evaluateAdapter(recipeWith({ choices: [...words] }), { ...options, compare: false })
    expect(again.metrics.accuracy).toEqual({ rows: 12, adapter: found.metrics.accuracy!.adapter })
  })

  it('counts an answer as exact when it is the one of the row', async () => {
    const model = await openModel({ base, precision: 'strict' })
    const [first] = rows()
    const { text } = await model.generate({ text: first!.prompt }, { maxNewTokens: 3 }).result
    await model.close()
    const heldOut = join(folder, 'exact.jsonl')
    const lines = [
      { prompt: first!.prompt, completion: text },
      { prompt: first!.prompt, completion: 'something else' },
    ]
    writeFileSync(heldOut, lines.map((line) => JSON.stringify(line)).join('\n'))
    const found = await evaluateAdapter(recipeWith({ heldOut }), {
      metrics: ['exactMatch'],
      maxNewTokens: 3,
      precision: 'strict',
    })
    expect(found.metrics.exactMatch!.base).toMatchObject({ value: 0.5, low: 0, high: 1 })
  })

  it('takes the metrics of a dataset module, with all columns of its rows', async () => {
    const row = (level: number) => ({ prompt: 'red ', completion: 'green', level })
    const dataset = defineDataset({
      name: 'levels',
      description: 'rows with a level',
      source: 'this test',
      license: 'CC0',
      type: 'prompt-completion',
      metrics: { level: ({ row }) => Number(row.level) },
      load: () => ({ train: [row(0), row(0)], heldOut: [row(1), row(2), row(6)] }),
    })
    const recipe = recipeWith({ dataset, train: undefined, heldOut: undefined } as never)
    const found = await evaluateAdapter(recipe, { metrics: ['level'], maxNewTokens: 1 })
    expect(found.metrics.level!.base!.value).toBeCloseTo(3, 9)
  })

  it('names a metric that is not there, and a row whose metric is no number', async () => {
    await expect(evaluateAdapter(recipeWith(), { metrics: ['bleu'] })).rejects.toThrow(
      /no metric bleu.*perplexity, exactMatch/,
    )
    const metrics = { broken: () => Number.NaN }
    await expect(evaluateAdapter(recipeWith({ metrics }), { maxNewTokens: 2 })).rejects.toThrow(
      /metric broken gives NaN for .*held-out\.jsonl:\d+/,
    )
  })
})
