// Which pairs are asked about: an answer's variance against numerical integration, the choice against the whole covariance and
// against what it must avoid, and what it saves.
import { describe, expect, it } from 'vitest'
import { CounterRandom } from '../../../src/data/index.js'
import { answerVariance, chooseRound } from '../../../src/training/annotation/acquisition.js'
import { RewardEnsemble } from '../../../src/training/annotation/reward-ensemble.js'
import { simulateAnnotation } from '../../../src/training/annotation/simulate.js'
import { dot } from '../../../src/training/annotation/vectors.js'
import { ruledPairs } from './pairs.js'

/** Probability of an answer of 1 for a Gaussian margin, by the trapezium rule. */
function probability(margin: number, deviation: number): number {
  const [steps, reach] = [4000, 10]
  let sum = 0
  for (let i = 0; i <= steps; i++) {
    const z = -reach + (2 * reach * i) / steps
    const weight = ((Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI)) * 2 * reach) / steps
    sum += weight / (1 + Math.exp(-(margin + deviation * z)))
  }
  return sum
}

it('the variance of an answer is that of its probability over all heads', () => {
  for (const margin of [0, 0.5, -1.5, 3]) {
    for (const deviation of [0, 0.2, 0.6, 1.2, 3]) {
      const p = probability(margin, deviation)
      expect(answerVariance({ margin, deviation }) / (p * (1 - p))).toBeCloseTo(1, 1)
    }
  }
})

describe('a round', () => {
  it('asks what the heads do not know, and not twice the same', async () => {
    const unit = (f: number) => new Float32Array(4).fill(0).with(f, 1)
    const ensemble = new RewardEnsemble(4)
    const known = Array.from({ length: 200 }, (_, i) => unit(0).map((x) => (i % 2 ? x : -x)))
    await ensemble.fit(
      known,
      known.map(([x]) => Number(x! > 0)),
    )
    // The first is known; the others are alike two by two, but for their sign
    const candidates = [unit(0), ...[1, 2, 3].flatMap((f) => [unit(f), unit(f).map((x) => -x)])]
    const chosen = chooseRound(ensemble, candidates, 3)
    expect(chosen.map((i) => Math.ceil(i / 2)).toSorted()).toEqual([1, 2, 3])
    // One that is like no other tells less than one of four that are alike
    const more = [unit(1), ...Array.from({ length: 4 }, () => unit(2))]
    expect(chooseRound(ensemble, more, 1)[0]).toBeGreaterThan(0)
    expect(new Set(chooseRound(ensemble, candidates, 99))).toEqual(new Set(candidates.keys()))
    expect(chooseRound(ensemble, [], 3)).toEqual([])
  })

  it('chooses as the covariance of all margins does, updated by each answer to come', async () => {
    const random = new CounterRandom(11, 'candidates')
    const draw = (count: number) =>
      Array.from({ length: count }, () => new Float32Array(6).map(() => random.nextNormal()))
    const ensemble = new RewardEnsemble(6)
    const known = draw(20)
    await ensemble.fit(
      known,
      known.map(([x, y]) => Number(x! > y!)),
    )
    const candidates = draw(40)
    const spreads = candidates.map((candidate) => ensemble.spread(candidate))
    const covariance = spreads.map((a) => spreads.map((b) => dot(a, b)))
    const answers = candidates.map((candidate) => answerVariance(ensemble.judge(candidate)))
    const expected: number[] = []
    while (expected.length < 10) {
      // What the answer would take from the variances of all margins, each weighed by the variance of its answer
      const scores = answers.map((answer, i) => {
        if (expected.includes(i)) return -1
        const taken = covariance[i]!.map((c, j) => answers[j]! * c ** 2)
        return taken.reduce((a, b) => a + b) / (covariance[i]![i]! + 1 / answer)
      })
      const best = scores.indexOf(Math.max(...scores))
      expected.push(best)
      // Kalman's update by a measurement of noise 1 / answer
      const column = covariance.map((row) => row[best]!)
      const innovation = column[best]! + 1 / answers[best]!
      for (const [i, row] of covariance.entries())
        for (let j = 0; j < row.length; j++) row[j]! -= (column[i]! * column[j]!) / innovation
    }
    expect(chooseRound(ensemble, candidates, 10)).toEqual(expected)
  })
})

describe('the simulation', () => {
  const labelled = (count: number, seed: number) => {
    const { differences, targets } = ruledPairs(count, { width: 24, noise: 0.5, seed })
    return { differences, targets }
  }

  it('finds that active choice needs fewer labels, gives the same figures again, and stops when told', async () => {
    const [pool, heldOut] = [labelled(600, 5), labelled(1000, 6)]
    const seen: number[] = []
    const run = (signal?: AbortSignal) =>
      simulateAnnotation(pool, heldOut, { seeds: 3, signal, onProgress: (done, total) => seen.push(done / total) })
    const result = await run()
    expect(result.labelShare).toBeLessThan(0.7 * result.randomLabelShare)
    expect(result.accuracyOfAll).toBeGreaterThan(0.85)
    expect(result.targetAccuracy).toBeCloseTo(0.98 * result.accuracyOfAll, 12)
    expect(result).toMatchObject({ pairs: 600, heldOutPairs: 1000, seeds: 3, labelsPerRound: 12 })
    // Both orders begin with the same round
    expect(result.curve[0]).toMatchObject({ labels: 12, active: result.curve[0]!.random })
    expect(result.curve.length).toBeGreaterThanOrEqual(25)
    expect(seen.at(-1)).toBe(1)
    expect(await run()).toEqual(result)
    await expect(run(AbortSignal.abort(new Error('enough')))).rejects.toThrow('enough')
  })

  it('counts labels as the curve of each seed says', async () => {
    const { bySeed, labelShare, randomLabelShare, pairs, labelsPerRound } = await simulateAnnotation(
      labelled(200, 7),
      labelled(300, 8),
      { seeds: 2, roundShare: 0.05 },
    )
    expect(labelsPerRound).toBe(10)
    expect(labelShare).toBeCloseTo((bySeed[0]!.labelShare + bySeed[1]!.labelShare) / 2, 12)
    expect(randomLabelShare).toBeCloseTo((bySeed[0]!.randomLabelShare + bySeed[1]!.randomLabelShare) / 2, 12)
    for (const seed of bySeed) expect((seed.labelShare * pairs) % labelsPerRound).toBeCloseTo(0, 9)
  })

  it('gives active choice no lead where labels are noise', async () => {
    const random = new CounterRandom(3, 'noise')
    const noise = (set: ReturnType<typeof labelled>) => ({ ...set, targets: set.targets.map(() => random.nextInt(2)) })
    const result = await simulateAnnotation(noise(labelled(200, 9)), noise(labelled(2000, 10)), { seeds: 3 })
    expect(Math.abs(result.accuracyOfAll - 0.5)).toBeLessThan(0.05)
    for (const { active, random: other } of result.curve) expect(Math.abs(active - other)).toBeLessThan(0.05)
  })

  it('says what is missing', async () => {
    await expect(simulateAnnotation(labelled(10, 1), labelled(50, 2))).rejects.toThrow(/there are 10 and 50/)
  })
})
