// Reward heads over frozen features: the fit against its own optimality condition and a posterior by integration, what is learned,
// and where heads disagree.
import { describe, expect, it } from 'vitest'
import { CounterRandom } from '../../../src/data/index.js'
import { RewardEnsemble } from '../../../src/training/annotation/reward-ensemble.js'
import { dot } from '../../../src/training/annotation/vectors.js'

const draw = (count: number, width: number, name: string) => {
  const random = new CounterRandom(7, name)
  return Array.from({ length: count }, () => new Float32Array(width).map(() => random.nextNormal()))
}

describe('the mean head', () => {
  it('is where the gradient of the regularized loss is 0, from wherever the fit begins', async () => {
    const differences = draw(60, 5, 'pairs')
    const targets = differences.map(([x], i) => (i % 10 === 0 ? 0.5 : Number(x! > 0)))
    const ensemble = new RewardEnsemble(5, { numHeads: 0, priorDeviation: 2 })
    const weightsOf = () => Array.from({ length: 5 }, (_, f) => ensemble.margin(new Float32Array(5).fill(0).with(f, 1)))
    await ensemble.fit(differences, targets)
    const weights = weightsOf()
    for (let f = 0; f < 5; f++) {
      const slopes = differences.map((d, i) => (1 / (1 + Math.exp(-dot(d, weights))) - targets[i]!) * d[f]!)
      expect(slopes.reduce((a, b) => a + b, weights[f]! / 4)).toBeCloseTo(0, 4)
    }
    await ensemble.fit(
      differences,
      targets.map((target) => 1 - target),
    )
    for (const [f, weight] of weightsOf().entries()) expect(weight).toBeCloseTo(-weights[f]!, 4)
    await ensemble.fit([], [])
    expect(weightsOf()).toEqual([0, 0, 0, 0, 0])
  })

  it('has a finite place where answers contradict nothing, and features are large', async () => {
    const ensemble = new RewardEnsemble(1, { numHeads: 2, priorDeviation: 10 })
    const large = [Float32Array.of(1000), Float32Array.of(-3000)]
    await ensemble.fit(large, [1, 0])
    const { margin, deviation } = ensemble.judge(Float32Array.of(1000))
    expect(margin).toBeGreaterThan(5)
    expect(margin).toBeLessThan(100)
    expect(deviation).toBeGreaterThan(0)
  })

  it('orders pairs that it has not seen as the rule does, the better the more labels there are', async () => {
    const rule = draw(1, 20, 'rule')[0]!
    const differences = draw(1200, 20, 'pairs')
    const accuracy = async (labels: number) => {
      const ensemble = new RewardEnsemble(20, { numHeads: 0 })
      const known = differences.slice(0, labels)
      await ensemble.fit(
        known,
        known.map((d) => Number(dot(d, rule) > 0)),
      )
      const unseen = differences.slice(600)
      return unseen.filter((d) => ensemble.margin(d) > 0 === dot(d, rule) > 0).length / unseen.length
    }
    const all = await accuracy(600)
    expect(all).toBeGreaterThan(0.95)
    expect(all).toBeGreaterThan(await accuracy(20))
  })
})

describe('the other heads', () => {
  it('deviate as the posterior does', async () => {
    const differences = draw(200, 2, 'posterior')
    const targets = differences.map((d, i) => Number(d[0]! + 0.5 * d[1]! + (i % 3) - 1 > 0))
    const ensemble = new RewardEnsemble(2, { numHeads: 4096 })
    await ensemble.fit(differences, targets)
    // The posterior of (θ₀, θ₁) on a grid about the mode.
    const [first, second] = [Float32Array.of(1, 0), Float32Array.of(0, 1)]
    const mode = [ensemble.margin(first), ensemble.margin(second)]
    let [mass, variance0, variance1, covariance] = [0, 0, 0, 0]
    const logPosterior = (a: number, b: number) =>
      differences.reduce(
        (sum, d, i) => {
          const margin = a * d[0]! + b * d[1]!
          return sum + targets[i]! * margin - Math.log1p(Math.exp(margin))
        },
        -(a * a + b * b) / 8,
      )
    const highest = logPosterior(mode[0]!, mode[1]!)
    for (let i = -40; i <= 40; i++)
      for (let j = -40; j <= 40; j++) {
        const [x, y] = [i / 32, j / 32]
        const weight = Math.exp(logPosterior(mode[0]! + x, mode[1]! + y) - highest)
        mass += weight
        variance0 += weight * x * x
        variance1 += weight * y * y
        covariance += weight * x * y
      }
    const [spread0, spread1] = [ensemble.spread(first), ensemble.spread(second)]
    // 4,096 draws tell a variance to 2 %; Laplace's approximation adds a few.
    expect(dot(spread0, spread0) / (variance0 / mass)).toBeCloseTo(1, 0.8)
    expect(dot(spread1, spread1) / (variance1 / mass)).toBeCloseTo(1, 0.8)
    expect(dot(spread0, spread1)).toBeCloseTo(covariance / mass, 2)
  })

  it('disagree less where labels speak', async () => {
    const [seen, unseen] = [Float32Array.of(1, 0), Float32Array.of(0, 1)]
    const ensemble = new RewardEnsemble(2)
    const before = ensemble.judge(seen).deviation
    expect(Math.abs(before / 2 - 1)).toBeLessThan(0.2) // the prior's
    const pairs = Array.from({ length: 80 }, (_, i) => (i % 2 === 0 ? seen : seen.map((x) => -x)))
    await ensemble.fit(
      pairs,
      pairs.map((_, i) => Number(i % 4 < 2)),
    )
    expect(ensemble.judge(seen).deviation).toBeLessThan(before / 3)
    expect(ensemble.judge(unseen).deviation).toBeGreaterThan(before / 3)
    expect(() => new RewardEnsemble(2, { numHeads: 1 }).judge(seen)).toThrow(/no disagreement/)
  })
})
