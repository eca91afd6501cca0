// The shipped datasets: what they promise about balance, leaks and duplicates, checked on the rows themselves.
import { describe, expect, it } from 'vitest'
import spamAssassin, { createSpamAssassin } from '../../datasets/spam-assassin.js'
import tinyCorpus from '../../datasets/tiny-corpus.js'
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

it('refuses a dataset that does not say whose it is', () => {
  const rest = { name: 'x', description: 'y', source: 'z', load: () => ({ train: [] }) }
  expect(() => defineDataset({ ...rest, license: '' })).toThrow(/"license" must be/)
  expect(isDataset({ ...rest, license: 'MIT' })).toBe(false)
  expect(isDataset(defineDataset({ ...rest, license: 'MIT' }))).toBe(true)
})
