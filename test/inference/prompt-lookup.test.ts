// Drafts from the text itself, against a search that looks at every place.
import { expect, it } from 'vitest'
import { createPromptLookup } from '../../src/inference/drafts/prompt-lookup.js'
import type { Draft } from '../../src/inference/drafts/source.js'
import { seeded } from '../training/toy-program.js'

const propose = (tokens: readonly number[], max = 4): Draft | null =>
  (createPromptLookup().propose([{ sequence: 0, tokens, max }]) as (Draft | null)[])[0]!

it('continues the longest match, of equal ones the latest', () => {
  expect(propose([1, 2, 3, 9, 9, 1, 2, 3])).toEqual({ ids: [9, 9, 1, 2], evidence: 3 })
  expect(propose([5, 1, 2, 7, 6, 1, 2, 8, 1, 2], 1)).toEqual({ ids: [8], evidence: 2 })
  // Four tokens match at the first place, two at the later one.
  expect(propose([3, 4, 1, 2, 7, 0, 1, 2, 8, 3, 4, 1, 2], 1)).toEqual({ ids: [7], evidence: 4 })
})

it('goes on into its own draft where the text repeats itself', () => {
  expect(propose([1, 2, 1, 2, 1, 2], 5)?.ids).toEqual([1, 2, 1, 2, 1])
})

it('has nothing to say without a match, or about less than two tokens', () => {
  expect(propose([1, 2, 3, 4, 5])).toBeNull()
  expect(propose([1, 2, 3, 2, 2, 1])).toBeNull()
  expect(propose([7])).toBeNull()
  expect(propose([])).toBeNull()
})

it('indexes a growing text as if it came at once, sequences apart', () => {
  const random = seeded(3)
  const lookup = createPromptLookup()
  const texts: [number[], number[]] = [[], []]
  let found = 0
  for (let i = 0; i < 1500; i++) {
    const sequence = i % 2
    const tokens = texts[sequence]!
    for (let n = Math.floor(random() * 3); n >= 0; n--) tokens.push(Math.floor(random() * (i < 700 ? 4 : 30)))
    const draft = (lookup.propose([{ sequence, tokens, max: 6 }]) as (Draft | null)[])[0]!
    expect(draft).toEqual(propose(tokens, 6))
    if (!draft) continue
    found++
    // What it continues did occur, and that often: a place where the evidence matches and the draft follows.
    const { evidence, ids } = draft
    const places = Array.from({ length: tokens.length - 1 }, (_, at) => at + 1).filter((at) =>
      Array.from(
        { length: Math.min(evidence, at) },
        (_, k) => tokens[at - 1 - k] === tokens[tokens.length - 1 - k],
      ).every(Boolean),
    )
    expect(places.some((at) => at >= evidence && tokens[at] === ids[0])).toBe(true)
  }
  expect(found).toBeGreaterThan(300)
  lookup.release(0)
  expect(lookup.propose([{ sequence: 0, tokens: [1, 2], max: 4 }])).toEqual([null])
})

it('takes constant time a proposal', () => {
  const time = (length: number) => {
    const lookup = createPromptLookup()
    const random = seeded(1)
    const tokens = Array.from({ length }, () => Math.floor(random() * 50_000))
    lookup.propose([{ sequence: 0, tokens, max: 8 }])
    const started = performance.now()
    for (let i = 0; i < 2000; i++) {
      tokens.push(tokens[i]!)
      lookup.propose([{ sequence: 0, tokens, max: 8 }])
    }
    return performance.now() - started
  }
  time(1000)
  // A scan would take a hundred times as long.
  expect(time(200_000)).toBeLessThan(20 * time(2000) + 50)
})
