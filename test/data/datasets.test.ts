// The shipped datasets: what they promise about balance, leaks and duplicates, checked on the rows themselves.
import { describe, expect, it } from 'vitest'
import spamAssassin, { createSpamAssassin } from '../../datasets/spam-assassin.js'
import tinyCorpus from '../../datasets/tiny-corpus.js'
import { createValence, goldReward } from '../../datasets/valence.js'
import { type Dataset, defineDataset, isDataset } from '../../src/data/dataset.js'
import { clusterNearDuplicates } from '../../src/data/near-duplicates.js'
import { rowTypes } from '../../src/data/row-types/index.js'
import type { Row } from '../../src/data/row-types/row-type.js'

const context = { seed: 0, log: () => {} }

async function rowsOf(dataset: Dataset): Promise<{ train: Row[]; heldOut: Row[] }> {
  const { train, heldOut } = await dataset.load(context)
  return { train: [...(train as Iterable<Row>)], heldOut: [...(heldOut as Iterable<Row>)] }
}

function shareOf(rows: Row[], dataset: Dataset, choice: string): number {
  const type = rowTypes[dataset.type!]
  return rows.filter((row) => type.answerOf!(row) === choice).length / rows.length
}

describe.each([spamAssassin, tinyCorpus])('$name', (dataset) => {
  it('is balanced and states its source and licence', async () => {
    expect(isDataset(dataset)).toBe(true)
    const { train, heldOut } = await rowsOf(dataset)
    for (const choice of dataset.choices!) {
      expect(shareOf(heldOut, dataset, choice)).toBe(1 / dataset.choices!.length)
      expect(shareOf(train, dataset, choice)).toBeCloseTo(1 / dataset.choices!.length, 1)
    }
    const trained = new Set(train.map((row) => JSON.stringify(row)))
    expect(heldOut.filter((row) => trained.has(JSON.stringify(row)))).toEqual([])
    expect((await rowsOf(dataset)).heldOut).toEqual(heldOut)
  })
})

it('spam-assassin is large enough and has no near-duplicates, headers or footers', async () => {
  const { train, heldOut } = await rowsOf(spamAssassin)
  expect(heldOut.length).toBeGreaterThanOrEqual(240)
  expect(train.length).toBeGreaterThanOrEqual(1200)
  const texts = [...train, ...heldOut].map((row) => (row.messages as { content: string }[])[1]!.content)
  const groups = clusterNearDuplicates(texts, { threshold: 0.5 })
  expect([...groups]).toEqual([...groups.keys()])
  for (const text of texts) {
    expect(text).not.toMatch(/^(Received|Return-Path|Message-Id|X-[\w-]+|List-[\w-]+):/im)
    expect(text).not.toMatch(/mailman\/listinfo|unsubscribe from this group|^_{10,}/im)
    expect(text.length).toBeLessThanOrEqual(280)
  }
  const small = await rowsOf(createSpamAssassin({ trainRows: 100, heldOutRows: 20, maxCharacters: 100 }))
  expect([small.train.length, small.heldOut.length]).toEqual([100, 20])
})

describe('valence', () => {
  const valence = createValence()
  const textsOf = (rows: Row[], ...columns: string[]) =>
    rows.flatMap((row) => columns.map((name) => row[name] as string))

  it('rewards by the stated rule', () => {
    // 16 words and fewer are divided by 4; good is 3, bad −3 and war −2 in AFINN-165.
    expect(goldReward('')).toBe(0)
    expect(goldReward(' The table is in the room.')).toBe(0)
    expect(goldReward(' A good day.')).toBe(3 / 4)
    expect(goldReward('GOOD, good “good” — a bad war!')).toBe((3 - 3 - 2) / 4)
    expect(goldReward(`good ${'and so on '.repeat(8)}`)).toBe(3 / 5)
    expect(goldReward(' good'.repeat(64))).toBe(3 / 8)
    expect(goldReward('constructor __proto__ toString')).toBe(0)
  })

  it('shares one split of the addresses, with nothing of one side on the other', async () => {
    const splits = await Promise.all(Object.values(valence).map(rowsOf))
    for (const { train, heldOut } of splits) {
      expect(heldOut).toHaveLength(320)
      expect(train.length).toBeGreaterThan(2500)
    }
    const [supervised, preferences, prompts] = splits as [(typeof splits)[0], (typeof splits)[0], (typeof splits)[0]]
    expect(prompts.heldOut).toEqual(supervised.heldOut.map(({ prompt }) => ({ prompt })))
    const trained = new Set(splits.flatMap(({ train }) => textsOf(train, 'prompt', 'completion', 'chosen', 'rejected')))
    const heldOut = splits.flatMap((rows) => textsOf(rows.heldOut, 'prompt', 'completion', 'chosen', 'rejected'))
    expect(heldOut.filter((text) => text !== undefined && trained.has(text))).toEqual([])
    expect(await rowsOf(createValence().preferences)).toEqual(preferences)

    const whole = [...supervised.train, ...supervised.heldOut].map(({ prompt, completion }) => `${prompt}${completion}`)
    const groups = clusterNearDuplicates(whole, { threshold: 0.3 })
    expect([...groups]).toEqual([...groups.keys()])
    for (const text of whole) {
      expect(text).toMatch(/^["'(]*[A-Z][^\n]*[.!?]["')]*$/)
      expect(text).not.toMatch(/[[(](applause|laughter|\d)/i)
    }
  })

  it('orders pairs by the rule, and neither length nor place tells the answer', async () => {
    const { train, heldOut } = await rowsOf(valence.preferences)
    const own = await rowsOf(valence.supervised)
    const passages = new Set([...own.train, ...own.heldOut].map(({ prompt, completion }) => `${prompt}|${completion}`))
    for (const [rows, isWhole] of [
      [train, true],
      [heldOut, false], // the passages of some pairs are past the 320 that the supervised rows hold
    ] as const) {
      for (const { chosen, rejected, margin } of rows as { chosen: string; rejected: string; margin: number }[]) {
        expect(goldReward(chosen) - goldReward(rejected)).toBeCloseTo(margin, 12)
        expect(margin).toBeGreaterThanOrEqual(0.3)
        expect(Math.max(chosen.length / rejected.length, rejected.length / chosen.length)).toBeLessThan(1.35)
      }
      const share = (test: (row: Row) => boolean) => rows.filter(test).length / rows.length
      expect(share((row) => (row.chosen as string).length > (row.rejected as string).length)).toBe(0.5)
      if (isWhole) expect(share(({ prompt, chosen }) => passages.has(`${prompt}|${chosen}`))).toBe(0.5)
    }
  })

  it('takes other sizes and says what there is', async () => {
    const small = await rowsOf(createValence({ trainRows: 40, heldOutRows: 8, minMargin: 1 }).preferences)
    expect([small.train.length, small.heldOut.length]).toEqual([40, 8])
    expect(Math.min(...small.train.map(({ margin }) => margin as number))).toBeGreaterThanOrEqual(1)
    await expect(rowsOf(createValence({ heldOutRows: 1e5 }).prompts)).rejects.toThrow(
      /heldOutRows 100000: there are \d+/,
    )
  })
})

it('refuses a dataset that does not say whose it is', () => {
  const rest = { name: 'x', description: 'y', source: 'z', load: () => ({ train: [] }) }
  expect(() => defineDataset({ ...rest, license: '' })).toThrow(/"license" must be/)
  expect(isDataset({ ...rest, license: 'MIT' })).toBe(false)
  expect(isDataset(defineDataset({ ...rest, license: 'MIT' }))).toBe(true)
})
