// Pairs whose better side a rule knows, with features that tell it, and a log to answer into.
import { type Comparison, CounterRandom, compareAnswers } from '../../../src/data/index.js'
import { dot } from '../../../src/training/annotation/vectors.js'

export interface RuledPairs {
  readonly comparisons: Comparison[]
  /** Features of the first less those of the second. */
  readonly differences: Float32Array[]
  /** 1: the first is better. */
  readonly targets: number[]
}

/** @param noise standard deviation of what the rule adds to the reward of an answer */
export function ruledPairs(count: number, { width = 12, noise = 0, seed = 3 } = {}): RuledPairs {
  const random = new CounterRandom(seed, 'ruled pairs')
  const draw = () => new Float32Array(width).map(() => random.nextNormal())
  const rule = new CounterRandom(1, 'rule')
  const weights = new Float32Array(width).map(() => rule.nextNormal())
  const result: RuledPairs = { comparisons: [], differences: [], targets: [] }
  for (let i = 0; i < count; i++) {
    const comparison = compareAnswers(`prompt ${i}`, [` answer a${i}`, ` answer b${i}`], { place: `row ${i}` })
    const sides = [draw(), draw()] as const
    const [first, second] = sides.map((features) => dot(features, weights) + noise * random.nextNormal())
    result.comparisons.push(comparison)
    result.differences.push(sides[0].map((x, f) => x - sides[1][f]!))
    result.targets.push(Number(first! > second!))
  }
  return result
}
