// Intervals of the bootstrap: against the normal approximation, pairing, and determinism.
import { describe, expect, it } from 'vitest'
import { bootstrap, bootstrapDifference } from '../../src/training/bootstrap.js'
import { seeded } from './toy-program.js'

const shares = (values: number[]) => values.map((sum) => ({ sum, weight: 1 }))

describe('the bootstrap', () => {
  it('agrees with the normal approximation for a mean of many rows', () => {
    const random = seeded(4)
    const values = Array.from({ length: 400 }, () => Number(random() < 0.7))
    const mean = values.reduce((a, b) => a + b) / values.length
    const error = 1.96 * Math.sqrt((mean * (1 - mean)) / values.length)
    const found = bootstrap(shares(values), { seed: 1 })
    expect(found.value).toBeCloseTo(mean, 10)
    expect(Math.abs(found.low - (mean - error))).toBeLessThan(0.15 * error)
    expect(Math.abs(found.high - (mean + error))).toBeLessThan(0.15 * error)
  })

  it('weighs rows, then transforms', () => {
    const rows = [
      { sum: 6, weight: 3 },
      { sum: 4, weight: 2 },
    ]
    expect(bootstrap(rows, { seed: 0, transform: Math.exp })).toEqual({
      value: Math.exp(2),
      low: Math.exp(2),
      high: Math.exp(2),
    })
  })

  it('draws the same rows for both sides of a difference', () => {
    const random = seeded(9)
    const from = Array.from({ length: 50 }, () => random() * 10)
    const to = from.map((x) => x + 0.5) // always better by the same: no doubt is left
    const { value, low, high } = bootstrapDifference(shares(from), shares(to), { seed: 2 })
    for (const x of [value, low, high]) expect(x).toBeCloseTo(0.5, 9)
    const apart = bootstrap(shares(from), { seed: 2 })
    expect(apart.high - apart.low).toBeGreaterThan(1)
    expect(() => bootstrapDifference(shares([1]), shares([1, 2]), { seed: 2 })).toThrow(/same rows: 1 and 2/)
  })

  it('is the same for the same seed', () => {
    const rows = shares([1, 0, 0, 1, 1, 0, 1])
    expect(bootstrap(rows, { seed: 5 })).toEqual(bootstrap(rows, { seed: 5 }))
    const many = shares(Array.from({ length: 30 }, (_, i) => Math.sqrt(i)))
    expect(bootstrap(many, { seed: 5 })).not.toEqual(bootstrap(many, { seed: 6 }))
  })
})
