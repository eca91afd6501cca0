// Drafts from another model: they change no token, and a model that is the same as its target is always right.
import { beforeAll, expect, it } from 'vitest'
import { createDraftModel } from '../../src/inference/drafts/index.js'
import type { Engine } from '../../src/inference/engine.js'
import type { LoadedBase } from '../../src/models/loaded-base.js'
import { mixture, openEngine, openTiny, prompts, readAll, readEach, sampled, type Text } from './tiny-engine.js'

let base: LoadedBase
let other: LoadedBase
let alone: Engine
beforeAll(async () => {
  base = await openTiny({ allowFallback: false })
  other = await openTiny({ allowFallback: false }, 'none', 'mistral')
  alone = await openEngine(base, { maxSequences: 1 })
})

const shown = (texts: readonly Text[]) => texts.map(({ ids, logps }) => ({ ids, logps }))
const vocabSize = 256

it('are all taken from a model that is the same, greedy and sampled', async () => {
  const requests = prompts(6, 30).map((promptIds, i) =>
    i % 2 ? sampled(promptIds, i, { maxNewTokens: 60 }) : { promptIds, sampling: { maxNewTokens: 60 } },
  )
  const drafts = await createDraftModel({
    base,
    vocabSize,
    precision: 'strict',
    maxSequences: 16,
    maxSequenceTokens: 256,
  })
  const engine = await openEngine(base, { drafts, speculation: 'fixed', maxDraftTokens: 5 })
  expect(shown(await readAll(engine, requests))).toEqual(shown(await readEach(alone, requests)))
  const { proposed, accepted } = engine.statistics().drafts
  expect(accepted).toBe(proposed)
  // One token of the prompt's, then six a step.
  expect(engine.statistics().steps).toBeLessThan(20)
})

it('change no token where the model is another, its cache is small and prompts are long', async () => {
  const requests = [
    ...mixture(8, 31).map((request) => ({ ...request, sampling: { ...request.sampling, maxNewTokens: 50 } })),
    sampled(
      Array.from({ length: 190 }, (_, i) => (7 * i) % 256),
      3,
      { maxNewTokens: 30 },
    ),
  ]
  const drafts = await createDraftModel({
    base: other,
    vocabSize,
    precision: 'strict',
    maxSequences: 16,
    maxSequenceTokens: 200,
    blocks: 12,
  })
  const engine = await openEngine(base, { blocks: 20, drafts, speculation: 'fixed', maxDraftTokens: 4 })
  expect(shown(await readAll(engine, requests))).toEqual(shown(await readEach(alone, requests)))
  const { proposed, accepted } = engine.statistics().drafts
  expect(proposed).toBeGreaterThan(100)
  expect(accepted).toBeLessThan(proposed)
})

it('are refused from a model of another vocabulary', async () => {
  await expect(createDraftModel({ base, vocabSize: 300 })).rejects.toThrow(/256 tokens and the model 300/)
})
