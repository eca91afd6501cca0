// Proximal policy optimization (stop 8): rewards of completions spread over their tokens by a value model, with the
// divergence from a reference in the reward. Policy, reference, reward and value model are adapters over one base.
import type { RunContext } from '../context.js'
import { policyLosses } from '../losses/policy/index.js'
import { fillTokens, policyInputs, policyObjective, valueObjective } from '../objectives/policy.js'
import { pick } from '../online/completion-batches.js'
import { generalizedAdvantages } from '../online/gae.js'
import { combineRewards } from '../online/group-advantages.js'
import { adaptCoefficient, tokenKl } from '../online/kl.js'
import type { ScoredBatch } from '../online/scored-batch.js'
import { penalised, tokenRewards } from '../online/token-rewards.js'
import { whiten } from '../online/whiten.js'
import type { MiniBatchResult, OnlineMethod, UpdatePlan } from '../online-loop.js'
import { policyClipFraction, policyMove, valueClipFraction } from '../policy-metrics.js'
import { mean } from '../statistics.js'
import type { LiveProgram } from '../step.js'
import { type OnlineStage, planOnline, runOnline } from './online.js'
import { type PpoOptions, ppoSchema } from './ppo-schema.js'
import { defineStage } from './stage.js'

/** Sums of token values by completion. */
const sums = (values: ArrayLike<number>, starts: Int32Array) =>
  Array.from({ length: starts.length - 1 }, (_, i) => {
    let sum = 0
    for (let t = starts[i]!; t < starts[i + 1]!; t++) sum += values[t]!
    return sum
  })

/** 1 − Var(returns − values) / Var(returns) */
function explainedVariance(returns: ArrayLike<number>, values: ArrayLike<number>): number {
  const variance = (list: readonly number[]) => {
    const average = mean(list)
    return mean(list.map((x) => (x - average) ** 2))
  }
  const total = variance(Array.from(returns))
  return total > 0 ? 1 - variance(Array.from(returns, (r, i) => r - values[i]!)) / total : 0
}

function planUpdates(
  batch: ScoredBatch,
  weights: readonly number[],
  options: PpoOptions,
  klCoefficient: number,
): UpdatePlan {
  const { completions, starts, logps } = batch
  const refLogps = batch.refLogps!
  const values = batch.values!
  const combined = combineRewards(batch.scores, weights)
  const unscored = combined.findIndex(Number.isNaN)
  if (unscored >= 0) {
    throw new Error(
      `no reward scored the completion ${JSON.stringify(completions[unscored]!.text.slice(0, 200))}: PPO needs one for each`,
    )
  }
  const scores = combined.map((score, i) =>
    penalised(score, completions[i]!.finishReason === 'stop', options.missingEosPenalty),
  )
  const kl = tokenKl(logps, refLogps, options.klEstimator)
  const plain = tokenRewards(kl, starts, scores, klCoefficient)
  const rewards = options.whitenRewards ? whiten(plain, { keepMean: true }) : plain
  const { advantages: raw, returns } = generalizedAdvantages(rewards, values, starts, options)
  const advantages = Float32Array.from(options.whitenAdvantages ? whiten(raw) : raw)
  const targets = Float32Array.from(returns)
  const lengthOf = (i: number) => starts[i + 1]! - starts[i]!
  return {
    fill(members, filled, miniBatch) {
      const totals = {
        rows: miniBatch.length,
        tokens: miniBatch.reduce((sum, i) => sum + lengthOf(i), 0),
        maxCompletionLength: options.maxCompletionLength,
      }
      const lengths = members.map(lengthOf)
      const tokens = lengths.reduce((a, b) => a + b, 0)
      const weight = policyLosses.ppo.weight(0, totals)
      return {
        policy: fillTokens(filled, lengths, {
          [policyInputs.oldLogps]: pick(logps, starts, members),
          [policyInputs.advantages]: pick(advantages, starts, members),
          [policyInputs.tokenWeights]: new Float32Array(tokens).fill(weight),
        }),
        value: fillTokens(filled, lengths, {
          [policyInputs.oldValues]: pick(values, starts, members),
          [policyInputs.returns]: pick(targets, starts, members),
          [policyInputs.tokenWeights]: new Float32Array(tokens).fill(weight * options.vfCoef),
        }),
      }
    },
    metrics: {
      'kl/policyRef': mean(sums(kl, starts)),
      'kl/perToken': mean(Array.from(kl)),
      'rewards/rlhf': mean(sums(plain, starts)),
      'values/mean': mean(Array.from(values)),
      'values/explainedVariance': explainedVariance(returns, values),
    },
    measure: (results) => measure(results, batch, advantages, targets, options),
  }
}

function measure(
  results: readonly MiniBatchResult[],
  { starts, logps, values }: ScoredBatch,
  advantages: Float32Array,
  returns: Float32Array,
  { clipRange, clipRangeValue, vfCoef }: PpoOptions,
): Record<string, number> {
  const all = (from: Float32Array) => results.flatMap(({ members }) => Array.from(pick(from, starts, members)))
  const output = (model: string, name: string) =>
    results.flatMap(({ outputs }) => Array.from(outputs[model]!.outputs[name]!))
  const current = output('policy', 'logps')
  const old = all(logps)
  const ratios = current.map((logp, i) => Math.exp(logp - old[i]!))
  const move = policyMove(current, old, clipRange)
  const updates = Math.max(1, new Set(results.map((_, i) => i)).size)
  const lossOf = (model: string) => results.reduce((sum, { outputs }) => sum + outputs[model]!.lossSum, 0) / updates
  return {
    'policy/approxKl': move.approxKlK3,
    'policy/ratio': move.ratioMean,
    'policy/ratioVariance': move.ratioVariance,
    'policy/clipFraction': policyClipFraction(ratios, all(advantages), clipRange, clipRange),
    'policy/entropy': mean(output('policy', 'entropy')),
    'values/clipFraction': valueClipFraction(output('value', 'scores'), all(values!), all(returns), clipRangeValue),
    'values/loss': lossOf('value') / vfCoef,
  }
}

function methodOf(
  options: PpoOptions,
  policy: LiveProgram,
  value: LiveProgram,
  weights: readonly number[],
): OnlineMethod {
  const { adaptiveKl, learningRate } = options
  return {
    programs: { policy, value },
    rateFactors: { value: (options.value.learningRate ?? learningRate) / learningRate },
    needsReference: true,
    value,
    plan: (batch, { klCoefficient }) => planUpdates(batch, weights, options, klCoefficient),
    ...(adaptiveKl
      ? {
          adapt: (coefficient: number, metrics: Readonly<Record<string, number>>, n: number) =>
            adaptCoefficient(coefficient, metrics['kl/policyRef']!, { ...adaptiveKl, n }),
        }
      : {}),
  }
}

async function open(context: RunContext, options: PpoOptions): Promise<OnlineStage> {
  const { temperature } = options
  const prepared = await context.prepareOnline({
    ...options,
    numGenerations: 1,
    objective: ppo.objective(options),
    reference: options.reference ?? 'base',
    value: {
      objective: valueObjective({ clipRange: options.clipRangeValue }),
      startAdapter: options.value.startAdapter,
      rank: options.value.rank,
    },
    maxEvaluationRows: options.evaluation.maxRows,
    signal: context.signal,
  })
  const weights = prepared.rewards.map(({ weight }) => weight)
  return {
    prepared,
    method: methodOf(options, prepared.policy, prepared.value!, weights),
    temperature,
    numGenerations: 1,
    learningRate: options.learningRate,
    numEpochs: options.numPpoEpochs,
    numMiniBatches: options.numMiniBatches,
    klCoefficient: options.klCoefficient,
  }
}

export const ppo = defineStage({
  summary: 'proximal policy optimization with a value model',
  schema: ppoSchema,
  objective: ({ clipRange, temperature }) =>
    policyObjective({
      loss: 'ppo',
      level: 'token',
      epsilonLow: clipRange,
      epsilonHigh: clipRange,
      delta: null,
      temperaturePos: 1,
      temperatureNeg: 1,
      beta: 0,
      biasCorrectedKl: false,
      temperature,
    }),
  run: (context, options) => runOnline(context, options, () => open(context, options)),
  plan: (context, options) => planOnline(options, () => open(context, options)),
})
