// The reward model (stop 8): an adapter with a scalar head that scores the preferred completion higher (Bradley–Terry).
import type { RunContext } from '../context.js'
import { fillRewardPairs, rewardObjective } from '../objectives/reward.js'
import type { AccumulateResult, MicroBatch } from '../program.js'
import { calibrate, rewardMetrics } from '../reward-metrics.js'
import { countGroups, evaluateGroups, groupBatches, outputOf } from './held-out-groups.js'
import { type OfflineStage, planOffline, preparation, runOffline } from './offline.js'
import { type RewardStageOptions, rewardSchema } from './reward-schema.js'
import { defineStage } from './stage.js'

/** Scores of both sides of each pair; documents lie in twos, the chosen one first. */
function scoresOf(results: readonly AccumulateResult[]) {
  const scores = outputOf(results, 'scores')
  const side = (which: number) => scores.filter((_, d) => (d & 1) === which)
  return { chosen: side(0), rejected: side(1) }
}

/** Metrics under TRL's names, in a group. */
function named(group: string, { chosen, rejected }: ReturnType<typeof scoresOf>): Record<string, number> {
  const metrics = Object.entries(rewardMetrics(chosen, rejected))
  return Object.fromEntries(metrics.map(([name, value]) => [`${group}/${name}`, value]))
}

async function open(context: RunContext, options: RewardStageOptions): Promise<OfflineStage> {
  const prepared = await context.prepare({
    ...preparation(context, options),
    rows: 'pairs',
    packing: false,
    objective: reward.objective(options),
    maxDims: { P: options.microBatchSize },
  })
  const fill = async (batches: MicroBatch[]) =>
    batches.map((batch) => {
      const margins = options.useMargin ? batch.numbers?.margin : undefined
      if (options.useMargin && !margins) throw new Error('stage.useMargin: the rows have no column "margin"')
      return fillRewardPairs(batch, margins)
    })
  const heldOut = groupBatches(prepared, options.microBatchSize)
  const rows = countGroups(heldOut)
  return {
    prepared,
    hooks: {
      lossUnits: ({ microBatches }) => countGroups(microBatches),
      prepareStep: ({ microBatches }) => fill(microBatches),
      measureStep: (_, results) => named('rewards', scoresOf(results)),
    },
    ...(rows === 0
      ? {}
      : {
          heldOut: {
            rows,
            async run(onProgress) {
              const { loss, results } = await evaluateGroups(prepared, heldOut, fill, {
                signal: context.signal,
                onProgress,
              })
              const scores = scoresOf(results)
              const { eceConfidence, brier } = calibrate(scores.chosen, scores.rejected, new Array(rows).fill(1))
              const metrics = { ...named('eval', scores), 'eval/ece': eceConfidence, 'eval/brier': brier }
              return { loss, metrics: { ...metrics, 'eval/rows': rows } }
            },
          },
        }),
  }
}

export const reward = defineStage({
  summary: 'a reward model from preference pairs: an adapter with a scalar head',
  schema: rewardSchema,
  sequencesPerItem: 2,
  objective: rewardObjective,
  run: (context, options) => runOffline(context, options, () => open(context, options)),
  plan: (context, options) => planOffline(options, () => open(context, options)),
})
