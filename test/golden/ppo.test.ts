// PPO's rewards, advantages, losses and controller against the reference values; what lies outside the masks is filler
// there and is never read here.
import { describe, expect, it } from 'vitest'
import { backward } from '../../src/compiler/autodiff.js'
import { add, mul, scale } from '../../src/compiler/ops/elementwise.js'
import { reduceSum } from '../../src/compiler/ops/reduce.js'
import { scalar } from '../../src/compiler/ops/tensor.js'
import { buildPolicyLoss, policyLosses } from '../../src/training/losses/policy/index.js'
import { valueLoss } from '../../src/training/losses/policy/value-loss.js'
import { endOf } from '../../src/training/online/completion-mask.js'
import { generalizedAdvantages } from '../../src/training/online/gae.js'
import { adaptCoefficient, type KlEstimator, tokenKl } from '../../src/training/online/kl.js'
import { penalised, tokenRewards } from '../../src/training/online/token-rewards.js'
import { whiten } from '../../src/training/online/whiten.js'
import { policyClipFraction, policyMove, valueClipFraction } from '../../src/training/policy-metrics.js'
import { expectClose, openKernels, readLosses, targets, tolerances } from './compare.js'
import { membershipOf, pack, raggedOf, spread } from './ragged.js'
import { runGraph } from './run-graph.js'

const golden = readLosses('ppo.json')
const kernels = openKernels('golden PPO')
const ragged = raggedOf(golden.mask)
const packed = (padded: number[][]) => pack(padded, ragged)
const exactly = (actual: ArrayLike<number>, expected: number[]) => expectClose(actual, expected, 1e-12, 'entry')
const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length
const sums = (values: ArrayLike<number>) =>
  ragged.lengths.map((_, i) =>
    Array.from(values)
      .slice(ragged.starts[i], ragged.starts[i + 1])
      .reduce((a, b) => a + b, 0),
  )

it('completions end with the first end token', () => {
  for (const [i, ids] of (golden.rawCompletionIds as number[][]).entries())
    expect(endOf(ids, golden.eosTokenId)).toEqual({ length: golden.completionLengths[i], hasEnded: golden.hasEos[i] })
})

const scoresOf = (penalty: boolean): number[] =>
  golden.scores.map((score: number, i: number) =>
    penalised(score, golden.hasEos[i], penalty ? golden.missingEosPenalty : 0),
  )

describe('rewards', () => {
  for (const given of golden.rewards)
    it(`${given.klEstimator}, penalty ${given.missingEosPenalty}`, () => {
      const kl = tokenKl(packed(golden.logps), packed(golden.refLogps), given.klEstimator as KlEstimator)
      exactly(kl, packed(given.kl))
      const scores = scoresOf(given.missingEosPenalty)
      const rewards = tokenRewards(kl, ragged.starts, scores, golden.klCoef)
      exactly(rewards, packed(given.rewards))
      expectClose(whiten(rewards), packed(given.whitenedShiftMean), 1e-12, 'largest')
      expectClose(whiten(rewards, { keepMean: true }), packed(given.whitenedKeepMean), 1e-12, 'largest')
      const metrics = given.metrics
      exactly([mean(sums(kl))], [metrics['objective/kl']])
      exactly([mean(scores)], [metrics['objective/scores']])
      exactly([mean(sums(rewards))], [metrics['objective/rlhf_reward']])
      exactly([mean(sums(packed(golden.logps).map((logp) => -logp)))], [metrics['objective/entropy']])
    })
})

/** The rewards that a case says it starts from. */
function rewardsFrom(words: string): number[] {
  const [estimator, penalty, field] = words.split(', ')
  const wanted = golden.rewards.find(
    (given: { klEstimator: string; missingEosPenalty: boolean }) =>
      given.klEstimator === estimator && `missingEosPenalty ${given.missingEosPenalty}` === penalty,
  )
  return packed(wanted[field!])
}

describe('advantages', () => {
  for (const given of golden.gae)
    it(`${given.rewardsFrom}, γ ${given.gamma}, λ ${given.lambda}`, () => {
      const { advantages, returns } = generalizedAdvantages(
        rewardsFrom(given.rewardsFrom),
        packed(golden.values),
        ragged.starts,
        given,
      )
      expectClose(advantages, packed(given.advantages), 1e-12, 'largest')
      expectClose(returns, packed(given.returns), 1e-12, 'largest')
      expectClose(whiten(advantages), packed(given.whitenedAdvantages), 1e-12, 'largest')
    })
})

describe.each(targets)('losses, %s', (target) => {
  for (const given of golden.loss)
    it(`γ ${given.gamma}`, async ({ skip }) => {
      kernels.skipUnlessBuilt(target, skip)
      const gae = golden.gae.find(
        ({ gamma, rewardsFrom }: { gamma: number; rewardsFrom: string }) =>
          gamma === given.gamma && rewardsFrom.endsWith(', rewards'),
      )
      const tokens = ragged.starts.at(-1)!
      const totals = { rows: ragged.lengths.length, tokens, maxCompletionLength: golden.mask[0].length }
      const weights = spread(
        ragged.lengths.map((length) => policyLosses.ppo.weight(length, totals)),
        ragged,
      )
      const inputs = {
        logps: packed(golden.newLogps),
        oldLogps: packed(golden.logps),
        advantages: packed(gae.whitenedAdvantages),
        values: packed(golden.newValues),
        oldValues: packed(golden.values),
        returns: packed(gae.returns),
        weights,
        membership: membershipOf(ragged),
        lengths: ragged.lengths,
      }
      const Q = ragged.lengths.length
      const out = await runGraph({
        target,
        runtime: kernels.runtime,
        inputs,
        dims: { M: tokens, Q },
        build(g) {
          const leaf = (name: keyof typeof inputs, shape = ['M']) => g.leaf(name, 'input', g.floatType, shape)
          const [logps, values, each] = [leaf('logps'), leaf('values'), leaf('weights')]
          const policy = buildPolicyLoss(
            {
              logps,
              oldLogps: leaf('oldLogps'),
              refLogps: null,
              advantages: leaf('advantages'),
              membership: leaf('membership', ['Q', 'M']),
              lengths: leaf('lengths', ['Q']),
            },
            {
              loss: 'ppo',
              level: 'token',
              epsilonLow: given.clipRange,
              epsilonHigh: given.clipRange,
              delta: null,
              temperaturePos: 1,
              temperatureNeg: 1.05,
              beta: 0,
              biasCorrectedKl: false,
            },
          )
          const policyTotal = reduceSum(mul(policy, each), [0])
          const error = valueLoss(values, leaf('oldValues'), leaf('returns'), given.clipRangeValue)
          const valueTotal = reduceSum(mul(error, each), [0])
          const total = add(policyTotal, scale(valueTotal, given.vfCoef))
          const gradients = backward(g, new Map([[total, scalar(g, 1, g.floatType)]]), [logps, values])
          g.output('policyLoss', policyTotal)
          g.output('valueLoss', valueTotal)
          g.output('total', total)
          g.output('gradNewLogps', gradients.get(logps)!)
          g.output('gradNewValues', gradients.get(values)!)
        },
      })
      const allowed = tolerances.logps[target]
      for (const name of ['policyLoss', 'valueLoss', 'total'])
        expectClose(out[name]!, [given[name]], allowed.value, allowed.valueScale)
      for (const name of ['gradNewLogps', 'gradNewValues'])
        expectClose(out[name]!, packed(given[name]), allowed.gradient, allowed.gradientScale)

      const ratios = inputs.logps.map((logp, i) => Math.exp(logp - inputs.oldLogps[i]!))
      exactly(ratios, packed(given.ratio))
      const { metrics, clipRange, clipRangeValue } = given
      const { approxKlK1, approxKlK2, approxKlK3, ratioMean, ratioOutsideFraction } = policyMove(
        inputs.logps,
        inputs.oldLogps,
        clipRange,
      )
      exactly(
        [approxKlK1, approxKlK2, approxKlK3, ratioMean],
        [metrics.approxKlK1, metrics.approxKlK2, metrics.approxKlK3, metrics.ratioMean],
      )
      expect(ratioOutsideFraction).toBe(metrics.ratioOutsideFraction)
      expect(policyClipFraction(ratios, inputs.advantages, clipRange, clipRange)).toBe(metrics.policyClipFraction)
      expect(valueClipFraction(inputs.values, inputs.oldValues, inputs.returns, clipRangeValue)).toBe(
        metrics.valueClipFraction,
      )
    })
})

it('the weight of the divergence follows its target', () => {
  const { initial, target, horizon, stepsPerUpdate, sequence } = golden.adaptiveKl
  let coefficient = initial
  for (const { kl, coefficientAfter } of sequence) {
    coefficient = adaptCoefficient(coefficient, kl, { target, horizon, n: stepsPerUpdate })
    exactly([coefficient], [coefficientAfter])
  }
})
