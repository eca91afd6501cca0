// What decides about drafts: expected tokens by measured times, as pure numbers.
import { describe, expect, it } from 'vitest'
import {
  acceptanceKey,
  chooseDrafts,
  createSpeculation,
  expectedAcceptance,
  makingCost,
  planDrafts,
  recordDraft,
  recordMaking,
  recordStep,
  stepCost,
} from '../../src/inference/speculation.js'

/** Every further row costs this share of a step. */
const linear = (share: number) => (rows: number) => 10 * (1 + share * (rows - 1))

describe('chooseDrafts', () => {
  it('takes what maximizes expected tokens per time', () => {
    for (const acceptance of [0.3, 0.6, 0.9])
      for (const share of [0.02, 0.1, 0.3]) {
        const cost = linear(share)
        const rate = (k: number) =>
          Array.from({ length: k }, (_, i) => acceptance ** (i + 1)).reduce((a, b) => a + b, 1) / cost(1 + k)
        const best = Array.from({ length: 17 }, (_, k) => k).reduce((a, b) => (rate(b) > rate(a) ? b : a))
        const [length] = chooseDrafts(1, [{ length: 16, acceptance }], cost, 64)
        expect(length).toBe(rate(best) > rate(0) * 1.02 ? best : 0)
      }
  })

  it('takes none where rows cost as much as steps, and all where they cost nothing', () => {
    expect(chooseDrafts(1, [{ length: 8, acceptance: 0.9 }], linear(1), 64)).toEqual([0])
    expect(chooseDrafts(1, [{ length: 8, acceptance: 0.2 }], () => 10, 64)).toEqual([8])
    expect(chooseDrafts(1, [{ length: 8, acceptance: 0.001 }], () => 10, 64)).toEqual([0])
  })

  it('gives rows to the likelier drafts, within the rows of a run', () => {
    const offers = [0.9, 0.2, 0.8].map((acceptance) => ({ length: 4, acceptance }))
    // Worth: 0.9, 0.81, 0.729, 0.656; 0.2, 0.04, …; 0.8, 0.64, …
    expect(chooseDrafts(3, offers, () => 10, 8)).toEqual([4, 0, 1])
    expect(chooseDrafts(8, offers, () => 10, 8)).toEqual([0, 0, 0])
  })

  it('counts the time of making a draft', () => {
    const cost = linear(0.05)
    expect(chooseDrafts(1, [{ length: 4, acceptance: 0.8 }], cost, 64)[0]).toBeGreaterThan(0)
    expect(chooseDrafts(1, [{ length: 4, acceptance: 0.8, tokenCost: 9 }], cost, 64)).toEqual([0])
  })
})

describe('what was measured', () => {
  it('gives medians, lines between them and beyond', () => {
    const state = createSpeculation()
    expect(stepCost(state, 1)).toBeNull()
    for (const time of [10, 11, 500, 9, 10]) recordStep(state, 1, time)
    expect(stepCost(state, 1)).toBe(10)
    // Nothing else is known: a further row is assumed to be cheap.
    expect(stepCost(state, 5)).toBeLessThan(15)
    recordStep(state, 9, 26)
    expect(stepCost(state, 5)).toBe(18)
    expect(stepCost(state, 11)).toBe(30)
    for (let i = 0; i < 9; i++) recordStep(state, 1, 20)
    expect(stepCost(state, 1)).toBe(20)
  })

  it('counts acceptance by source and evidence, the latest most', () => {
    const state = createSpeculation()
    const key = acceptanceKey('lookup', 4)
    expect(acceptanceKey('lookup', 16)).not.toBe(key)
    for (let i = 0; i < 40; i++) recordDraft(state, key, 4, 4)
    expect(expectedAcceptance(state, key)).toBeGreaterThan(0.9)
    expect(expectedAcceptance(state, acceptanceKey('lookup', 16))).toBeCloseTo(0.6)
    for (let i = 0; i < 60; i++) recordDraft(state, key, 4, 0)
    expect(expectedAcceptance(state, key)).toBeLessThan(0.25)
  })

  it('counts no token behind the first wrong one', () => {
    const state = createSpeculation()
    recordDraft(state, 'a', 8, 1)
    expect(state.acceptance.get('a')).toEqual({ accepted: 1, tried: 2 })
  })
})

describe('planDrafts', () => {
  const simulate = (acceptance: number, share: number, steps: number) => {
    const state = createSpeculation()
    let time = 0
    let tokens = 0
    let draws = 0
    // A fixed sequence of numbers in [0, 1): the golden ratio's multiples.
    const draw = () => (draws++ * 0.618033988749895) % 1
    let drafted = 0
    for (let step = 0; step < steps; step++) {
      const offer = { length: 16, acceptance: expectedAcceptance(state, 'a') }
      const [length] = planDrafts(state, 1, [{ key: null, offers: [offer] }], 64).lengths as [number]
      let accepted = 0
      while (accepted < length && draw() < acceptance) accepted++
      if (length > 0) recordDraft(state, 'a', length, accepted)
      if (length > 0) drafted++
      const cost = linear(share)(1 + length)
      recordStep(state, 1 + length, cost)
      time += cost
      tokens += 1 + accepted
    }
    return { speedUp: (tokens * 10) / time, drafted: drafted / steps }
  }

  it('is faster where drafts pay', () => {
    expect(simulate(0.9, 0.1, 500).speedUp).toBeGreaterThan(2)
    expect(simulate(0.6, 0.1, 500).speedUp).toBeGreaterThan(1.25)
  })

  it('switches itself off where they do not, losing next to nothing', () => {
    for (const [acceptance, share] of [
      [0.05, 0.3],
      [0.3, 0.5],
      [0.6, 0.9],
    ] as const) {
      const { speedUp, drafted } = simulate(acceptance, share, 1000)
      expect(speedUp).toBeGreaterThan(0.98)
      expect(drafted).toBeLessThan(0.1)
    }
  })

  it('tries again now and then, and goes on where it pays again', () => {
    const state = createSpeculation()
    const step = (isRight: boolean) => {
      const offers = [{ length: 8, acceptance: expectedAcceptance(state, 'a') }]
      const [length] = planDrafts(state, 1, [{ key: null, offers }], 64).lengths as [number]
      if (length > 0) recordDraft(state, 'a', length, isRight ? length : 0)
      recordStep(state, 1 + length, linear(0.2)(1 + length))
      return length
    }
    for (let i = 0; i < 200; i++) step(false)
    const wrong = Array.from({ length: 200 }, () => step(false)).filter((length) => length > 0)
    expect(wrong.length).toBeGreaterThan(0)
    expect(wrong.length).toBeLessThan(6)
    for (let i = 0; i < 2000; i++) step(true)
    expect(step(true)).toBeGreaterThan(3)
  })

  it('never drafts before a step was measured, nor without an offer', () => {
    const state = createSpeculation()
    const lengths = (length: number) =>
      planDrafts(state, 1, [{ key: 'a', offers: [{ length, acceptance: 1 }] }], 64).lengths
    expect(lengths(8)).toEqual([0])
    recordStep(state, 1, 10)
    for (let i = 0; i < 100; i++) expect(lengths(0)).toEqual([0])
    expect(lengths(8)).toEqual([2])
  })

  it('finds the way to draft that pays best, by measured times and acceptance', () => {
    // Deeper drafts hold more often and cost more: tokens per millisecond are best in the middle.
    const variants = [
      { acceptance: 0.3, making: 0.5 },
      { acceptance: 0.85, making: 1.5 },
      { acceptance: 0.9, making: 9 },
    ]
    const state = createSpeculation()
    recordStep(state, 1, 10)
    const taken = variants.map(() => 0)
    let draws = 0
    const draw = () => (draws++ * 0.618033988749895) % 1
    for (let step = 0; step < 600; step++) {
      const { variant, lengths } = planDrafts(
        state,
        1,
        variants.map((_, v) => {
          const offer = { acceptance: expectedAcceptance(state, `${v}`), tokenCost: makingCost(state, `${v}`) }
          return { key: `${v}`, offers: [{ length: 8, ...offer }] }
        }),
        64,
      )
      const length = lengths[0]!
      if (length === 0) continue
      taken[variant]!++
      recordMaking(state, `${variant}`, length, length * variants[variant]!.making)
      let accepted = 0
      while (accepted < length && draw() < variants[variant]!.acceptance) accepted++
      recordDraft(state, `${variant}`, length, accepted)
      recordStep(state, 1 + length, linear(0.05)(1 + length))
    }
    expect(taken[1]).toBeGreaterThan(500)
    // Every one was tried.
    expect(Math.min(...taken)).toBeGreaterThan(0)
  })
})
