// Group advantages and every policy loss with its gradient against the reference values.
import { describe, expect, it } from 'vitest'
import { backward } from '../../src/compiler/autodiff.js'
import { mul } from '../../src/compiler/ops/elementwise.js'
import { reduceSum } from '../../src/compiler/ops/reduce.js'
import { scalar } from '../../src/compiler/ops/tensor.js'
import {
  buildPolicyLoss,
  levelOf,
  type PolicyLossName,
  type PolicyObjectiveOptions,
  policyLosses,
} from '../../src/training/losses/policy/index.js'
import type { PolicyLoss } from '../../src/training/losses/policy/policy-loss.js'
import { groupAdvantages, leaveOneOut, type RewardScaling } from '../../src/training/online/group-advantages.js'
import { cappedRatio, clipRatios } from '../../src/training/policy-metrics.js'
import { expectClose, openKernels, readLosses, targets, tolerances } from './compare.js'
import { membershipOf, pack, type Ragged, raggedOf, spread } from './ragged.js'
import { runGraph, type Target } from './run-graph.js'

const golden = readLosses('grpo.json')
const kernels = openKernels('golden GRPO')
const exactly = (actual: ArrayLike<number>, expected: number[]) => expectClose(actual, expected, 1e-12, 'entry')
const orNaN = (values: (number | null)[]) => values.map((x) => x ?? Number.NaN)

const advantagesOf = (scaling: RewardScaling) =>
  groupAdvantages(golden.rewardsPerFunction, golden.rewardWeights, golden.numGenerations, scaling)

describe('advantages', () => {
  for (const given of golden.advantages)
    it(given.scaleRewards, () => {
      const { rewards, advantages, means, deviations } = advantagesOf(given.scaleRewards)
      expectClose(advantages, given.advantages, 1e-12, 'largest')
      if (given.rewards)
        for (const [i, reward] of orNaN(given.rewards).entries())
          if (Number.isNaN(reward)) expect(rewards[i]).toBeNaN()
          else exactly([rewards[i]!], [reward])
      const byRow = (values: number[]) =>
        golden.completionLengths.map((_: number, i: number) => values[Math.floor(i / golden.numGenerations)]!)
      if (given.groupMeans) exactly(byRow(means), given.groupMeans)
      if (given.std && given.scaleRewards === 'group') expectClose(byRow(deviations), given.std, 1e-12, 'largest')
    })
})

/** Tokens that count: those of truncated completions do not where the case says so. */
function raggedFor(maskTruncated: boolean): Ragged {
  const mask = (golden.mask as number[][]).map((row, i) =>
    maskTruncated && golden.truncated[i] ? row.map(() => 0) : row,
  )
  return raggedOf(mask)
}

interface Given {
  loss: PolicyLossName
  options: Partial<PolicyObjectiveOptions>
  advantages: number[]
  ragged: Ragged
  /** Tokens of the whole accumulated batch, where that is larger. */
  tokens?: number
}

/** Loss and gradient with respect to the log-probabilities that count, summed over the cuts of the rows. */
async function evaluate(given: Given, target: Target) {
  const { ragged, advantages } = given
  const options: PolicyObjectiveOptions = {
    loss: given.loss,
    level: 'token',
    epsilonLow: 0.2,
    epsilonHigh: 0.2,
    delta: null,
    temperaturePos: 1,
    temperatureNeg: 1.05,
    beta: 0,
    biasCorrectedKl: false,
    ...given.options,
  }
  const definition = policyLosses[given.loss] as PolicyLoss
  const M = ragged.starts.at(-1)!
  const Q = ragged.lengths.length
  const totals = { rows: Q, tokens: given.tokens ?? M, maxCompletionLength: golden.maxCompletionLength }
  const inputs = {
    logps: pack(golden.logps, ragged),
    oldLogps: pack(golden.oldLogps, ragged),
    refLogps: pack(golden.refLogps, ragged),
    advantages: spread(advantages, ragged),
    weights: spread(
      ragged.lengths.map((length) => definition.weight(length, totals)),
      ragged,
    ),
    membership: membershipOf(ragged),
    lengths: ragged.lengths,
  }
  const out = await runGraph({
    target,
    runtime: kernels.runtime,
    inputs,
    dims: { M, Q },
    build(g) {
      const leaf = (name: keyof typeof inputs, shape = ['M']) => g.leaf(name, 'input', g.floatType, shape)
      const logps = leaf('logps')
      const each = buildPolicyLoss(
        {
          logps,
          oldLogps: leaf('oldLogps'),
          refLogps: options.beta > 0 ? leaf('refLogps') : null,
          advantages: leaf('advantages'),
          membership: leaf('membership', ['Q', 'M']),
          lengths: leaf('lengths', ['Q']),
        },
        options,
      )
      const loss = reduceSum(mul(each, leaf('weights')), [0])
      g.output('loss', loss)
      g.output('gradLogps', backward(g, new Map([[loss, scalar(g, 1, g.floatType)]]), [logps]).get(logps)!)
    },
  })
  // What a row without a token that counts adds: it has no gradient
  const empty = ragged.lengths.map((length, q) =>
    length === 0 ? (definition.emptyRowLoss?.(advantages[q]!, totals) ?? 0) : 0,
  )
  return { loss: out.loss![0]! + empty.reduce((a, b) => a + b, 0), gradient: out.gradLogps!, options, inputs }
}

describe.each(targets)('losses, %s', (target) => {
  const allowed = tolerances.logps[target]
  for (const given of golden.losses) {
    const { lossType, scaleRewards, beta, importanceSamplingLevel: level, maskTruncatedCompletions } = given
    const name = [
      lossType,
      scaleRewards,
      `β ${beta}`,
      level,
      maskTruncatedCompletions ? 'masked' : '',
      given.delta ?? '',
      given.biasCorrectedKl ? 'corrected' : '',
      given.numItemsInBatch ?? '',
      given.epsilonHigh ?? '',
    ]
    it(name.filter((part) => part !== '').join(', '), async ({ skip }) => {
      kernels.skipUnlessBuilt(target, skip)
      const ragged = raggedFor(maskTruncatedCompletions)
      const set = (key: string) => (given[key] === undefined ? {} : { [key]: given[key] })
      const keys = ['epsilonLow', 'epsilonHigh', 'delta', 'temperaturePos', 'temperatureNeg', 'biasCorrectedKl']
      const { loss, gradient, options, inputs } = await evaluate(
        {
          loss: lossType,
          options: Object.assign({ level, beta }, ...keys.map(set)),
          advantages: advantagesOf(scaleRewards).advantages,
          ragged,
          tokens: given.numItemsInBatch,
        },
        target,
      )
      expectClose([loss], [given.loss], allowed.value, allowed.valueScale)
      expectClose(gradient, pack(given.gradLogps, ragged), allowed.gradient, allowed.gradientScale)

      // One entry per token, or per completion where the ratio is one of completions
      const isToken = levelOf(options) === 'token'
      const moves = inputs.logps.map((logp, i) => logp - inputs.oldLogps[i]!)
      const rows = ragged.lengths.flatMap((length, q) => (length > 0 ? [q] : []))
      const meanMove = (q: number) =>
        moves.slice(ragged.starts[q], ragged.starts[q + 1]).reduce((a, b) => a + b, 0) / ragged.lengths[q]!
      const all = ragged.lengths.map((length, q) => (length > 0 ? Math.exp(meanMove(q)) : 1))
      const ratios = isToken ? moves.map(Math.exp) : all
      const advantages = isToken ? inputs.advantages : advantagesOf(scaleRewards).advantages
      expect(rows.length).toBeGreaterThan(0)
      const { low, high, region } = clipRatios(ratios, advantages, options.epsilonLow, options.epsilonHigh)
      const ours: Record<string, number> = {
        'clip_ratio/low_mean': low,
        'clip_ratio/high_mean': high,
        'clip_ratio/region_mean': region,
        cispo_clip_ratio: cappedRatio(ratios, advantages, options.epsilonHigh),
      }
      for (const [metric, expected] of Object.entries(given.metrics as Record<string, number>))
        if (metric in ours) exactly([ours[metric]!], [expected])
    })
  }
})

describe.each(targets)('leave one out, %s', (target) => {
  const { epsilonLow, epsilonHigh, cases } = golden.rloo
  const allowed = tolerances.logps[target]
  for (const [index, given] of cases.entries())
    it(`case ${index}: β ${given.beta}`, async ({ skip }) => {
      kernels.skipUnlessBuilt(target, skip)
      const ragged = raggedFor(given.maskTruncatedCompletions)
      const old = pack(golden.oldLogps, ragged)
      const reference = pack(golden.refLogps, ragged)
      const kl = ragged.lengths.map((_, q) => {
        let sum = 0
        for (let m = ragged.starts[q]!; m < ragged.starts[q + 1]!; m++) sum += old[m]! - reference[m]!
        return sum
      })
      exactly(kl, given.kl)
      const rewards = advantagesOf('none').rewards.map((reward, q) => reward - given.beta * kl[q]!)
      const { baselines, advantages } = leaveOneOut(rewards, golden.numGenerations, given)
      const known = orNaN(given.baselines)
      for (const [q, baseline] of known.entries()) if (!Number.isNaN(baseline)) exactly([baselines[q]!], [baseline])
      expectClose(advantages, given.advantages, 1e-12, 'largest')
      const { loss, gradient } = await evaluate(
        { loss: 'rloo', options: { epsilonLow, epsilonHigh }, advantages, ragged },
        target,
      )
      expectClose([loss], [given.loss], allowed.value, allowed.valueScale)
      expectClose(gradient, pack(given.gradLogps, ragged), allowed.gradient, allowed.gradientScale)
    })
})
