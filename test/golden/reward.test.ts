// The reward model's loss, metrics, calibration and reading position against the reference values.
import { describe, expect, it } from 'vitest'
import { backward } from '../../src/compiler/autodiff.js'
import { scale } from '../../src/compiler/ops/elementwise.js'
import { reduceSum } from '../../src/compiler/ops/reduce.js'
import { scalar } from '../../src/compiler/ops/tensor.js'
import { bradleyTerry } from '../../src/training/losses/reward/bradley-terry.js'
import { calibrate, lastRealIndex, type ReliabilityBin, rewardMetrics } from '../../src/training/reward-metrics.js'
import { camel, expectClose, openKernels, readLosses, targets, tolerances } from './compare.js'
import { runGraph } from './run-graph.js'

const golden = readLosses('reward.json')
const kernels = openKernels('golden reward loss')

describe.each(targets)('Bradley-Terry loss, %s', (target) => {
  const P = golden.chosen.length
  for (const given of golden.cases)
    it(given.name, async ({ skip }) => {
      kernels.skipUnlessBuilt(target, skip)
      const out = await runGraph({
        target,
        runtime: kernels.runtime,
        inputs: { chosen: golden.chosen, rejected: golden.rejected, margin: golden.margin },
        dims: { P },
        build(g) {
          const leaf = (name: string) => g.leaf(name, 'input', g.floatType, ['P'])
          const [chosen, rejected] = [leaf('chosen'), leaf('rejected')]
          const pairs = { chosen, rejected, margin: given.useMargin ? leaf('margin') : null }
          const loss = scale(reduceSum(bradleyTerry(pairs, given.centerRewardsCoefficient), [0]), 1 / P)
          const gradients = backward(g, new Map([[loss, scalar(g, 1, g.floatType)]]), [chosen, rejected])
          g.output('loss', loss)
          g.output('gradChosen', gradients.get(chosen)!)
          g.output('gradRejected', gradients.get(rejected)!)
        },
      })
      const allowed = tolerances.logps[target]
      expectClose(out.loss!, [given.loss], allowed.value, allowed.valueScale)
      for (const name of ['gradChosen', 'gradRejected'])
        expectClose(out[name]!, given[name], allowed.gradient, allowed.gradientScale)
    })
})

it('metrics, ties counted as lost', () => {
  const metrics = rewardMetrics(golden.chosen, golden.rejected) as unknown as Record<string, number>
  for (const [name, expected] of Object.entries(golden.metrics as Record<string, number>))
    expectClose([metrics[camel(name)]!], [expected], 1e-12, 'entry')
  expect(rewardMetrics(golden.ties.chosen, golden.ties.rejected).accuracy).toBe(golden.ties.accuracy)
})

it('calibration', () => {
  const { scoreA, scoreB, preferA, ...expected } = golden.calibration
  const actual = calibrate(scoreA, scoreB, preferA)
  for (const name of ['ece', 'eceConfidence', 'brier', 'nll', 'accuracy'] as const)
    expectClose([actual[name]], [expected[name]], 1e-12, 'entry')
  for (const name of ['reliability', 'reliabilityConfidence'] as const) {
    expect(actual[name]).toHaveLength(expected.bins)
    for (const [i, bin] of (expected[name] as Record<keyof ReliabilityBin, number | null>[]).entries())
      for (const [field, value] of Object.entries(bin)) {
        const ours = actual[name][i]![field as keyof ReliabilityBin]
        if (value === null) expect(ours).toBeNaN()
        else expectClose([ours], [value], 1e-12, 'entry')
      }
  }
})

describe('reading position', () => {
  for (const { name, attentionMask, lastIndex } of golden.readingPosition)
    it(name, () => {
      if (lastIndex === null) expect(() => lastRealIndex(attentionMask)).toThrow()
      else expect(lastRealIndex(attentionMask)).toBe(lastIndex)
    })
})
