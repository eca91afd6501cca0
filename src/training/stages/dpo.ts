// Direct preference optimization and its family (stop 8): pairs through the offline loop, beside a reference model.
import type { ReferenceModel, RunContext } from '../context.js'
import { policyScoreOf, termsOf } from '../losses/preference/index.js'
import { fillPairs, needsOf, type PreferenceOptions, pairBatch, preferenceObjective } from '../objectives/preference.js'
import { implicitRewards, preferenceMetrics } from '../preference-metrics.js'
import type { AccumulateResult, MicroBatch } from '../program.js'
import { cachedReferenceLogps } from '../reference-logps.js'
import { mean } from '../statistics.js'
import { type DpoOptions, dpoSchema } from './dpo-schema.js'
import { countGroups, evaluateGroups, groupBatches, outputOf } from './held-out-groups.js'
import { type OfflineStage, planOffline, preparation, runOffline } from './offline.js'
import { defineStage } from './stage.js'

/** Rewards, log-probabilities and the losses' own metrics of filled micro-batches. */
function measure(
  batches: readonly MicroBatch[],
  results: readonly AccumulateResult[],
  options: PreferenceOptions,
): Record<string, number> {
  const score = policyScoreOf(options.terms)
  const input = (name: string) => batches.flatMap(({ inputs }) => Array.from(inputs?.[name] ?? []))
  const side = (name: 'chosen' | 'rejected') => {
    const logps = outputOf(results, `${name}Logps`)
    const refLogps = outputOf(results, name === 'chosen' ? 'refChosenLogps' : 'refRejectedLogps')
    const lengths = input(`${name}Lengths`)
    return {
      logps,
      rewards: implicitRewards(
        { logps, refLogps: refLogps.length > 0 ? refLogps : null, lengths },
        options.beta,
        score,
      ),
    }
  }
  const chosen = side('chosen')
  const rejected = side('rejected')
  const own = Object.keys(results[0]?.outputs ?? {}).filter((name) => name.startsWith('metric.'))
  return {
    ...preferenceMetrics({
      chosenRewards: chosen.rewards,
      rejectedRewards: rejected.rewards,
      chosenLogps: chosen.logps,
      rejectedLogps: rejected.logps,
    }),
    ...Object.fromEntries(own.map((name) => [`train/${name.slice('metric.'.length)}`, mean(outputOf(results, name))])),
    'train/entropy': mean(outputOf(results, 'entropy')),
  }
}

const preferenceOptions = ({ loss, beta, ldAlpha, useWeighting }: DpoOptions): PreferenceOptions => ({
  terms: termsOf(loss),
  beta,
  ldAlpha,
  useWeighting,
})

async function open(context: RunContext, options: DpoOptions): Promise<OfflineStage> {
  const how = preferenceOptions(options)
  const needs = needsOf(how.terms)
  const reference: ReferenceModel | undefined = needs.reference ? (options.reference ?? 'base') : undefined
  const prepared = await context.prepare({
    ...preparation(context, options),
    rows: 'pairs',
    packing: false,
    objective: dpo.objective(options),
    maxDims: { P: options.microBatchSize },
    ...(reference === undefined ? {} : { reference }),
  })

  const compute = async (batch: MicroBatch) => (await prepared.program.score(batch, { model: 'reference' })).values
  const remembered =
    options.cacheReference && reference !== undefined && context.runDir !== undefined
      ? await cachedReferenceLogps(context, prepared, {
          microBatchSize: options.microBatchSize,
          precision: options.precision,
          targets: { name: needs.prompt ? 'prompts' : 'labels', of: (batch) => pairBatch(batch, how).batch },
        })
      : undefined
  /** @param referenceOf log-probabilities of the labelled rows of a micro-batch */
  const fill = async (
    batches: readonly MicroBatch[],
    referenceOf: (batch: MicroBatch) => Float32Array | Promise<Float32Array> = compute,
  ): Promise<MicroBatch[]> => {
    const pairs = batches.map((batch) => pairBatch(batch, how))
    const references: (Float32Array | undefined)[] = []
    for (const { batch } of pairs) references.push(reference === undefined ? undefined : await referenceOf(batch))
    return fillPairs(pairs, references, how)
  }
  const heldOut = groupBatches(prepared, options.microBatchSize)
  // The reference does not change: the first evaluation fills the batches for all
  let filledHeldOut: Promise<MicroBatch[]> | undefined
  const rows = countGroups(heldOut)
  return {
    prepared,
    samples: options.samples,
    hooks: {
      lossUnits: ({ microBatches }) => countGroups(microBatches),
      prepareStep: ({ microBatches }) => fill(microBatches, remembered),
      measureStep: (batches, results) => measure(batches, results, how),
    },
    ...(rows === 0
      ? {}
      : {
          heldOut: {
            rows,
            async run(onProgress) {
              filledHeldOut ??= fill(heldOut)
              const { loss, batches, results } = await evaluateGroups(prepared, heldOut, () => filledHeldOut!, {
                signal: context.signal,
                onProgress,
              })
              const metrics = Object.entries(measure(batches, results, how))
              return {
                loss,
                metrics: Object.fromEntries([
                  ...metrics.map(([name, value]) => [`eval/${name.replace(/^train\//, '')}`, value]),
                  ['eval/rows', rows],
                ]),
              }
            },
          },
        }),
  }
}

export const dpo = defineStage({
  summary: 'direct preference optimization and its family, from pairs',
  schema: dpoSchema,
  sequencesPerItem: 2,
  objective: (options) => preferenceObjective(preferenceOptions(options)),
  run: (context, options) => runOffline(context, options, () => open(context, options)),
  plan: (context, options) => planOffline(options, () => open(context, options)),
})
