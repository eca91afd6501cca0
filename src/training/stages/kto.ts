// KTO (stop 8): single completions that are desirable or not, through the offline loop, beside a reference model.
import type { RunContext } from '../context.js'
import { groupByTokens, packDocuments } from '../evaluate.js'
import { unpairedLosses } from '../losses/unpaired/index.js'
import { estimateKl } from '../losses/unpaired/kl-estimate.js'
import { fillUnpaired, mismatched, sumByDocument, unpairedObjective } from '../objectives/unpaired.js'
import { implicitRewards, unpairedMetrics } from '../preference-metrics.js'
import type { AccumulateResult, MicroBatch } from '../program.js'
import { cachedReferenceLogps } from '../reference-logps.js'
import { countGroups, evaluateGroups, groupBatches, outputOf } from './held-out-groups.js'
import { type KtoOptions, ktoSchema } from './kto-schema.js'
import { type OfflineStage, planOffline, preparation, runOffline } from './offline.js'
import { defineStage } from './stage.js'

function measure(
  batches: readonly MicroBatch[],
  results: readonly AccumulateResult[],
  beta: number,
): Record<string, number> {
  const logps = outputOf(results, 'sequenceLogps')
  const refLogps = outputOf(results, 'refSequenceLogps')
  const labels = batches.flatMap(({ inputs }) => Array.from(inputs!.desirable!))
  const rewards = implicitRewards({ logps, refLogps, lengths: logps }, beta)
  const metrics = Object.entries(unpairedMetrics({ rewards, logps, labels }))
  const known = metrics.filter((entry): entry is [string, number] => entry[1] !== undefined)
  return { ...Object.fromEntries(known), 'train/kl': batches[0]!.inputs!.kl![0]! }
}

async function open(context: RunContext, options: KtoOptions): Promise<OfflineStage> {
  const { beta } = options
  const prepared = await context.prepare({
    ...preparation(context, options),
    rows: 'unpaired',
    packing: false,
    objective: kto.objective(options),
    maxDims: { Q: options.microBatchSize },
    reference: options.reference ?? 'base',
  })
  const { program } = prepared

  /** max(0, mean log-ratio) over the completions of the step behind each other's prompts, without a gradient. */
  const klOf = async (batches: readonly MicroBatch[]): Promise<number> => {
    if (!unpairedLosses[options.loss].needsKl || countGroups(batches) < 2) return 0
    const sums: { adapter: number[]; reference: number[] } = { adapter: [], reference: [] }
    // Cut to the longest document: a long completion behind a long prompt would not fit
    const documents = mismatched(batches).map(({ ids, labels }) => ({
      ids: ids.subarray(0, options.maxLength),
      labels: labels.subarray(0, options.maxLength),
    }))
    for (const group of groupByTokens(documents, ({ ids }) => ids.length, prepared.maxTokens)) {
      const batch = packDocuments(group)
      for (const model of ['adapter', 'reference'] as const)
        sums[model].push(...sumByDocument(batch, (await program.score(batch, { model })).values))
    }
    return estimateKl(sums.adapter, sums.reference)
  }
  const compute = async (batch: MicroBatch) => (await program.score(batch, { model: 'reference' })).values
  const remembered =
    options.cacheReference && context.runDir !== undefined
      ? await cachedReferenceLogps(context, prepared, options)
      : undefined
  const fill = async (
    batches: readonly MicroBatch[],
    referenceOf: (batch: MicroBatch) => Float32Array | Promise<Float32Array> = compute,
  ): Promise<MicroBatch[]> => {
    const kl = await klOf(batches)
    const filled: MicroBatch[] = []
    for (const batch of batches) {
      const labels = batch.numbers?.label
      if (!labels) throw new Error('the rows have no column "label"')
      filled.push(fillUnpaired(batch, { refLogps: await referenceOf(batch), labels, kl }))
    }
    return filled
  }
  const heldOut = groupBatches(prepared, options.microBatchSize)
  const rows = countGroups(heldOut)
  return {
    prepared,
    samples: options.samples,
    hooks: {
      lossUnits: ({ microBatches }) => countGroups(microBatches),
      prepareStep: ({ microBatches }) => fill(microBatches, remembered),
      measureStep: (batches, results) => measure(batches, results, beta),
    },
    ...(rows === 0
      ? {}
      : {
          heldOut: {
            rows,
            async run(onProgress) {
              const { loss, batches, results } = await evaluateGroups(prepared, heldOut, fill, {
                signal: context.signal,
                onProgress,
              })
              const metrics = Object.entries(measure(batches, results, beta))
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

export const kto = defineStage({
  summary: 'preference optimization from single completions, desirable or not (KTO)',
  schema: ktoSchema,
  objective: unpairedObjective,
  run: (context, options) => runOffline(context, options, () => open(context, options)),
  plan: (context, options) => planOffline(options, () => open(context, options)),
})
