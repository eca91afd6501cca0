// The objective over single completions with a label (KTO and its kin), meant over the completions of the whole step.
import { mul } from '../../compiler/ops/elementwise.js'
import { reduceSum } from '../../compiler/ops/reduce.js'
import { sumBySequence } from '../losses/preference/sequence-sums.js'
import { type UnpairedLossName, unpairedLosses } from '../losses/unpaired/index.js'
import { rotateCompletions } from '../losses/unpaired/kl-estimate.js'
import { type Objective, programInputs } from '../objective.js'
import { type MicroBatch, targetsOf } from '../program.js'

export interface UnpairedOptions {
  readonly loss: UnpairedLossName
  readonly beta: number
  readonly desirableWeight: number
  readonly undesirableWeight: number
}

/** Membership [Q, M], log-probabilities of the reference [M], labels [Q], the estimate of the divergence [1]. */
const inputs = { rows: 'sequenceRows', refLogps: 'refLogps', labels: 'desirable', kl: 'kl' } as const

/** Outputs `sequenceLogps` and `refSequenceLogps` [Q]. */
export function unpairedObjective({ loss, ...options }: UnpairedOptions): Objective {
  const { build, needsKl } = unpairedLosses[loss]
  return {
    head: 'logProbs',
    build({ logps, input, output }) {
      const rows = input(inputs.rows, ['Q', 'M'])
      const values = {
        logps: sumBySequence(rows, logps),
        // Summed as the policy's are: equal log-probabilities give equal sums, to the last bit
        refLogps: sumBySequence(rows, input(inputs.refLogps, ['M'])),
        labels: input(inputs.labels, ['Q']),
        kl: needsKl ? input(inputs.kl, [1]) : null,
      }
      output('sequenceLogps', values.logps)
      output('refSequenceLogps', values.refLogps)
      return reduceSum(mul(build(values, options), input(programInputs.lossScale, [1])), [0])
    },
  }
}

/** First labelled row of each document, and M last. */
function rowStarts(batch: MicroBatch): Int32Array {
  const { rows } = targetsOf(batch)
  const documents = batch.cuSeqlens.length - 1
  const starts = new Int32Array(documents + 1)
  for (let d = 0, m = 0; d < documents; d++) {
    while (m < rows.length && rows[m]! < batch.cuSeqlens[d + 1]!) m++
    starts[d + 1] = m
  }
  return starts
}

/** Sums of the values of each document's labelled rows. */
export function sumByDocument(batch: MicroBatch, values: ArrayLike<number>): number[] {
  const starts = rowStarts(batch)
  return Array.from({ length: starts.length - 1 }, (_, d) => {
    let sum = 0
    for (let m = starts[d]!; m < starts[d + 1]!; m++) sum += values[m]!
    return sum
  })
}

/** The micro-batch with what the objective reads. */
export function fillUnpaired(
  batch: MicroBatch,
  given: { refLogps: Float32Array; labels: ArrayLike<number>; kl: number },
): MicroBatch {
  const starts = rowStarts(batch)
  const documents = starts.length - 1
  const rows = starts[documents]!
  const membership = new Float32Array(documents * rows)
  for (let d = 0; d < documents; d++) membership.fill(1, d * rows + starts[d]!, d * rows + starts[d + 1]!)
  return {
    ...batch,
    dims: { Q: documents },
    inputs: {
      [inputs.rows]: membership,
      [inputs.refLogps]: given.refLogps,
      [inputs.labels]: Float32Array.from(given.labels),
      [inputs.kl]: Float32Array.of(given.kl),
    },
  }
}

/**
 * The documents of a step with completions moved on by one behind their prompts: what the divergence is estimated on. A
 * prompt is what comes before the first labelled row.
 */
export function mismatched(batches: readonly MicroBatch[]): { ids: Int32Array; labels: Int32Array }[] {
  const documents = batches.flatMap((batch) => {
    const starts = rowStarts(batch)
    const { rows } = targetsOf(batch)
    return Array.from({ length: starts.length - 1 }, (_, d) => {
      const [from, to] = [batch.cuSeqlens[d]!, batch.cuSeqlens[d + 1]!]
      const first = rows[starts[d]!]! + 1 // the first token of the completion
      return { prompt: batch.inputIds.subarray(from, first), completion: batch.inputIds.subarray(first, to) }
    })
  })
  const completions = rotateCompletions(documents.map(({ completion }) => completion))
  return documents.map(({ prompt }, d) => {
    const completion = completions[d]!
    const ids = Int32Array.of(...prompt, ...completion)
    const labels = new Int32Array(ids.length).fill(-100)
    labels.set(completion, prompt.length - 1)
    return { ids, labels }
  })
}
