// The engine over the real base: its greedy continuations are the reference's in strict arithmetic, whatever shares a
// step, and the fast mode's do not depend on the batch, on drafts or on preemption either.
import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { Engine, type EngineOptions } from '../../src/inference/engine.js'
import type { OpenedBase } from '../../src/models/base-directory.js'
import { type LoadedBase, loadBase } from '../../src/models/loaded-base.js'
import { openRuntime, type Runtime } from '../../src/runtime/index.js'
import { referenceBase } from '../models/reference-base.js'
import { goldenDir } from './folder.js'

const read = <T>(name: string) => JSON.parse(readFileSync(goldenDir('models', 'base', name), 'utf8')) as T
const { prompts } = read<{ prompts: { name: string; ids: number[] }[] }>('prompts.json')
const { continuations } = read<{ continuations: { name: string; ids: number[]; gaps: number[] }[] }>('greedy.json')

/** Logits are right to 5e-4 (the README of the values): a smaller gap says nothing about the choice. */
const NEAR_TIE = 1e-3

let opened: OpenedBase | null
let runtime: Runtime
let base: LoadedBase
beforeAll(async () => {
  opened = await referenceBase('the engine over the base')
  if (!opened) return
  runtime = await openRuntime()
  base = await loadBase(runtime, opened)
}, 300_000)
afterAll(async () => {
  base?.close()
  await runtime?.close()
})

async function continueAll(options: Omit<EngineOptions, 'base'>, maxNewTokens: number, inOneBatch: boolean) {
  const engine = await Engine.open({ base, maxSequenceTokens: 512, maxSequences: 8, maxAdapters: 0, ...options })
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
  if (!opened) skip()
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
  if (!opened) skip()
  const alone = await continueAll({ blocks: 64, drafts: null }, 48, false)
  // The prompts take most of the blocks.
  const needed = prompts.reduce((n, { ids }) => n + Math.ceil(ids.length / 32), 0)
  const together = await continueAll({ blocks: needed + 2, speculation: 'fixed', maxDraftTokens: 6 }, 48, true)
  expect(together.texts).toEqual(alone.texts)
  expect(together.statistics.preemptions).toBeGreaterThan(0)
  expect(together.statistics.drafts.accepted).toBeGreaterThan(0)
})
