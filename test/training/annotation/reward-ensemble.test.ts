// Reward heads over frozen features: the fit against its own optimality condition, what is learned, and where heads disagree.
import { expect, it } from 'vitest'
import { CounterRandom } from '../../../src/data/index.js'
import { dot } from '../../../src/training/annotation/minimize.js'
import { differenceOf, RewardEnsemble, scaleFeatures } from '../../../src/training/annotation/reward-ensemble.js'

const draw = (count: number, width: number, name: string) => {
  const random = new CounterRandom(7, name)
  return Array.from({ length: count }, () => new Float32Array(width).map(() => random.nextNormal()))
}

it('the mean head is where the gradient of the regularized loss is 0', async () => {
  const differences = draw(60, 5, 'pairs')
  const targets = differences.map(([x], i) => (i % 10 === 0 ? 0.5 : Number(x! > 0)))
  const ensemble = new RewardEnsemble(5, { numHeads: 0, priorDeviation: 2 })
  await ensemble.fit(differences, targets)
  const weights = Array.from({ length: 5 }, (_, f) => ensemble.margin(new Float32Array(5).fill(0).with(f, 1)))
  for (let f = 0; f < 5; f++) {
    const slopes = differences.map((d, i) => (1 / (1 + Math.exp(-dot(d, weights))) - targets[i]!) * d[f]!)
    expect(slopes.reduce((a, b) => a + b, weights[f]! / 4)).toBeCloseTo(0, 2)
  }
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

it('heads disagree less where labels speak', async () => {
  const [seen, unseen] = [Float32Array.of(1, 0), Float32Array.of(0, 1)]
  const ensemble = new RewardEnsemble(2, { numHeads: 16 })
  const before = ensemble.judge(seen).deviation
  const pairs = Array.from({ length: 80 }, (_, i) => (i % 2 === 0 ? seen : seen.map((x) => -x)))
  await ensemble.fit(
    pairs,
    pairs.map((_, i) => Number(i % 4 < 2)),
  )
  expect(ensemble.judge(seen).deviation).toBeLessThan(before / 3)
  expect(ensemble.judge(unseen).deviation).toBeGreaterThan(before / 3)
  expect(() => new RewardEnsemble(2, { numHeads: 1 }).judge(seen)).toThrow(/no disagreement/)
})

it('scales features to unit variance, and what does not vary to 0', () => {
  const scaled = scaleFeatures([Float32Array.of(1, 5), Float32Array.of(3, 5)])
  expect(Array.from(differenceOf(scaled[1]!, scaled[0]!))).toEqual([expect.closeTo(2 / Math.SQRT2, 6), 0])
})
