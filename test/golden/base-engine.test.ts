// The engine over the real base: its greedy continuations are the reference's in strict arithmetic, whatever shares a
// step, and the fast mode's do not depend on the batch, on drafts or on preemption either.
import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { Engine, type EngineOptions } from '../../src/inference/engine.js'
import { useReferenceBase } from '../models/reference-base.js'
import { goldenDir } from './folder.js'

const read = <T>(name: string) => JSON.parse(readFileSync(goldenDir('models', 'base', name), 'utf8')) as T
const { prompts } = read<{ prompts: { name: string; ids: number[] }[] }>('prompts.json')
const { continuations } = read<{ continuations: { name: string; ids: number[]; gaps: number[] }[] }>('greedy.json')

/** Logits are right to 5e-4 (the README of the values): a smaller gap says nothing about the choice. */
const NEAR_TIE = 1e-3

const loaded = useReferenceBase('the engine over the base')

async function continueAll(options: Omit<EngineOptions, 'base'>, maxNewTokens: number, inOneBatch: boolean) {
  const engine = await Engine.open({
    base: loaded()!,
    maxSequenceTokens: 512,
    maxSequences: 8,
    maxAdapters: 0,
    ...options,
  })
  const texts: { ids: number[]; logps: number[] }[] = []
  const one = async (promptIds: number[]) => {
    const text = { ids: [] as number[], logps: [] as number[] }
    texts.push(text)
    for await (const { id, logp } of engine.submit({ promptIds, sampling: { maxNewTokens } })) {
      text.ids.push(id)
      text.logps.push(logp)
    }
  }
  if (inOneBatch) await Promise.all(prompts.map(({ ids }) => one(ids)))
  else for (const { ids } of prompts) await one(ids)
  const statistics = engine.statistics()
  await engine.close()
  return { texts, statistics }
}

it('continues greedily as the reference does', async ({ skip }) => {
  if (!loaded()) skip()
  const { texts } = await continueAll(
    { precision: 'strict', blocks: 64, prefillTokens: 96, speculation: 'fixed', maxDraftTokens: 4 },
    32,
    true,
  )
  for (const [i, { ids }] of texts.entries()) {
    const { name, ids: expected, gaps } = continuations[i]!
    const tie = gaps.findIndex((gap) => gap < NEAR_TIE)
    const sure = tie < 0 ? expected.length : tie
    expect(ids.slice(0, sure), name).toEqual(expected.slice(0, sure))
  }
})

it('gives the same in the fast mode alone, in a batch, with drafts and with too few blocks', async ({ skip }) => {
  if (!loaded()) skip()
  const alone = await continueAll({ blocks: 64, drafts: null }, 48, false)
  // The prompts and the second text's first token take all blocks, and each text goes on past the end of a block before any
  // of them is done: whatever the drafts let who run ahead, one has to make room.
  const needed = prompts.reduce((n, { ids }) => n + Math.ceil(ids.length / 32), 0)
  const together = await continueAll({ blocks: needed + 1, speculation: 'fixed', maxDraftTokens: 6 }, 48, true)
  expect(together.texts).toEqual(alone.texts)
  expect(together.statistics.preemptions).toBeGreaterThan(0)
  expect(together.statistics.drafts.accepted).toBeGreaterThan(0)
})
