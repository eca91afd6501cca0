// Group-relative policy optimization and its kin (stop 8): several completions of each prompt, better or worse than each
// other, through the online loop. No value model.
import type { RunContext } from '../context.js'
import { type PolicyObjectiveOptions, policyLosses } from '../losses/policy/index.js'
import type { PolicyLoss } from '../losses/policy/policy-loss.js'
import { fillTokens, policyInputs, policyObjective } from '../objectives/policy.js'
import { pick } from '../online/completion-batches.js'
import { combineRewards, groupAdvantages, leaveOneOut } from '../online/group-advantages.js'
import { tokenKl } from '../online/kl.js'
import type { ScoredBatch } from '../online/scored-batch.js'
import type { MiniBatchResult, OnlineMethod, UpdatePlan } from '../online-loop.js'
import { cappedRatio, clipRatios, policyMove } from '../policy-metrics.js'
import { mean } from '../statistics.js'
import { type GrpoOptions, grpoSchema } from './grpo-schema.js'
import { type OnlineStage, planOnline, runOnline } from './online.js'
import { defineStage } from './stage.js'

const defaultCap = 5

function lossOptions(options: GrpoOptions): PolicyObjectiveOptions {
  return {
    loss: options.loss,
    level: options.importanceSamplingLevel,
    epsilonLow: options.epsilonLow,
    epsilonHigh: options.epsilonHigh ?? (options.loss === 'cispo' ? defaultCap : options.epsilonLow),
    delta: options.delta ?? null,
    temperaturePos: options.temperaturePos,
    temperatureNeg: options.temperatureNeg,
    beta: options.loss === 'rloo' ? 0 : options.beta, // of rloo the divergence is in the reward
    biasCorrectedKl: options.biasCorrectedKl,
  }
}

/** Advantage of each completion, with what is measured of the groups. */
function advantagesOf(batch: ScoredBatch, weights: readonly number[], options: GrpoOptions, kl: Float64Array | null) {
  const { numGenerations: size } = options
  const grouped = groupAdvantages(batch.scores, weights, size, options.scaleRewards)
  const metrics = {
    'rewards/groupStd': mean(grouped.deviations.filter((x) => !Number.isNaN(x))),
    'rewards/zeroStdShare': mean(grouped.deviations.map((x) => (x === 0 ? 1 : 0))),
  }
  if (options.loss !== 'rloo') return { advantages: grouped.advantages, metrics }
  const rewards = combineRewards(batch.scores, weights).map((reward, i) => {
    const own = kl ? kl.subarray(batch.starts[i]!, batch.starts[i + 1]!).reduce((a, b) => a + b, 0) : 0
    return reward - options.beta * own
  })
  return { advantages: leaveOneOut(rewards, size, options).advantages, metrics }
}

function methodOf(
  options: GrpoOptions,
  policy: OnlineMethod['programs'][string],
  weights: readonly number[],
): OnlineMethod {
  const how = lossOptions(options)
  const definition = policyLosses[how.loss] as PolicyLoss
  return {
    programs: { policy },
    needsReference: options.beta > 0,
    plan(batch): UpdatePlan {
      const { completions, starts, logps, refLogps } = batch
      const kl = refLogps ? tokenKl(logps, refLogps, 'k3') : null
      const { advantages, metrics } = advantagesOf(batch, weights, options, kl)
      const counts = (i: number) => !(options.maskTruncatedCompletions && completions[i]!.finishReason === 'length')
      const lengthOf = (i: number) => starts[i + 1]! - starts[i]!
      return {
        fill(members, filled, miniBatch) {
          const counted = miniBatch.filter(counts)
          const totals = {
            rows: miniBatch.length,
            tokens: counted.reduce((sum, i) => sum + lengthOf(i), 0),
            maxCompletionLength: options.maxCompletionLength,
          }
          const lengths = members.map(lengthOf)
          const spread = (value: (i: number) => number) =>
            Float32Array.from(members.flatMap((i) => new Array<number>(lengthOf(i)).fill(value(i))))
          return {
            policy: fillTokens(filled, lengths, {
              [policyInputs.oldLogps]: pick(logps, starts, members),
              ...(refLogps ? { [policyInputs.refLogps]: pick(refLogps, starts, members) } : {}),
              [policyInputs.advantages]: spread((i) => advantages[i]!),
              [policyInputs.tokenWeights]: spread((i) => (counts(i) ? definition.weight(lengthOf(i), totals) : 0)),
            }),
          }
        },
        metrics: {
          ...metrics,
          'advantages/meanAbsolute': mean(advantages.map(Math.abs)),
          ...(kl ? { 'kl/policyRef': mean(Array.from(kl)) } : {}),
        },
        measure: (results) => measure(results, batch, advantages, how),
      }
    },
  }
}

/** How far the policy moved over the updates, token by token. */
function measure(
  results: readonly MiniBatchResult[],
  { starts, logps }: ScoredBatch,
  advantages: readonly number[],
  { loss, epsilonLow, epsilonHigh }: PolicyObjectiveOptions,
): Record<string, number> {
  const current = results.flatMap(({ outputs }) => Array.from(outputs.policy!.outputs.logps!))
  const old = results.flatMap(({ members }) => Array.from(pick(logps, starts, members)))
  const of = results.flatMap(({ members }) =>
    members.flatMap((i) => new Array<number>(starts[i + 1]! - starts[i]!).fill(advantages[i]!)),
  )
  const ratios = current.map((logp, i) => Math.exp(logp - old[i]!))
  const { approxKlK3, ratioMean } = policyMove(current, old, epsilonHigh)
  const clipped =
    loss === 'cispo'
      ? { 'policy/cappedRatio': cappedRatio(ratios, of, epsilonHigh) }
      : Object.fromEntries(
          Object.entries(clipRatios(ratios, of, epsilonLow, epsilonHigh)).map(([name, x]) => [
            `policy/clip_${name}`,
            x,
          ]),
        )
  return {
    ...clipped,
    'policy/approxKl': approxKlK3,
    'policy/ratio': ratioMean,
    'policy/entropy': mean(results.flatMap(({ outputs }) => Array.from(outputs.policy!.outputs.entropy!))),
  }
}

async function open(context: RunContext, options: GrpoOptions): Promise<OnlineStage> {
  const prepared = await context.prepareOnline({
    ...options,
    objective: grpo.objective(options),
    reference: options.beta > 0 ? (options.reference ?? 'base') : undefined,
    value: undefined,
    maxEvaluationRows: options.evaluation.maxRows,
    signal: context.signal,
  })
  const weights = prepared.rewards.map(({ weight }) => weight)
  return {
    prepared,
    method: methodOf(options, prepared.policy, weights),
    temperature: options.temperature,
    numGenerations: options.numGenerations,
    learningRate: options.learningRate,
    numEpochs: options.numIterations,
    numMiniBatches: options.numMiniBatches,
    klCoefficient: options.beta,
  }
}

export const grpo = defineStage({
  summary: 'reinforcement by comparing several completions of each prompt (GRPO, Dr. GRPO, DAPO, RLOO, CISPO, …)',
  schema: grpoSchema,
  objective: (options) => policyObjective({ ...lossOptions(options), temperature: options.temperature }),
  run: (context, options) => runOnline(context, options, () => open(context, options)),
  plan: (context, options) => planOnline(options, () => open(context, options)),
})
