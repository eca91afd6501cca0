// The objective of the preference stage: a mixture of losses over pairs, meant over the pairs of the whole step.
import type { Value } from '../../compiler/graph.js'
import { mul } from '../../compiler/ops/elementwise.js'
import { reduceSum } from '../../compiler/ops/reduce.js'
import { buildMixture, type PreferenceTerm, preferenceLosses } from '../losses/preference/index.js'
import { ldWeights } from '../losses/preference/length-desensitized.js'
import type { PairValues, PreferenceLoss } from '../losses/preference/preference-loss.js'
import { sumBySequence } from '../losses/preference/sequence-sums.js'
import { wpoWeights } from '../losses/preference/wpo-weights.js'
import { type Objective, programInputs } from '../objective.js'
import { type MicroBatch, targetsOf } from '../program.js'
import { membership, type PairRows, pairInputs, pairRows } from './pairs.js'

export interface PreferenceOptions {
  readonly terms: readonly PreferenceTerm[]
  readonly beta: number
  /** Weight of the tokens beyond the shorter completion (LD-DPO, arXiv 2409.06411); 1: none. */
  readonly ldAlpha: number
  /** Weigh pairs by how likely the policy finds them (WPO, arXiv 2406.11827). */
  readonly useWeighting: boolean
}

const lossOf = ({ type }: PreferenceTerm) => preferenceLosses[type] as PreferenceLoss

/** What the losses of a mixture read beside the policy's completions. */
export function needsOf(terms: readonly PreferenceTerm[]) {
  const some = (key: 'needsReference' | 'needsPrompt' | 'couplesPairs') => terms.some((term) => lossOf(term)[key])
  return { reference: some('needsReference'), prompt: some('needsPrompt'), couplesPairs: some('couplesPairs') }
}

/** Further inputs: the reference's log-probabilities [M], `promptRows` [P, M], lengths [P], means over the step [1]. */
const inputs = {
  refLogps: 'refLogps',
  promptRows: 'promptRows',
  promptLengths: 'promptLengths',
  meanChosenLength: 'meanChosenLength',
  meanPromptLength: 'meanPromptLength',
} as const

/** Outputs `chosenLogps`, `rejectedLogps` [P] and those of the reference, with weighting `weights` [P], and `metric.<name>` [P] of the losses' own. */
export function preferenceObjective(options: PreferenceOptions): Objective {
  const { terms, beta } = options
  const needs = needsOf(terms)
  return {
    head: 'logProbs',
    build({ logps, logSumSquares, input, output }) {
      const rows = (name: string) => input(name, ['P', 'M'])
      const perPair = (name: string) => input(name, ['P'])
      const chosenRows = rows(pairInputs.chosenRows)
      const rejectedRows = rows(pairInputs.rejectedRows)
      const refLogps = needs.reference ? input(inputs.refLogps, ['M']) : null
      const pairs: PairValues = {
        chosenLogps: sumBySequence(chosenRows, logps),
        rejectedLogps: sumBySequence(rejectedRows, logps),
        chosenLengths: perPair(pairInputs.chosenLengths),
        rejectedLengths: perPair(pairInputs.rejectedLengths),
        // Summed as the policy's are: equal log-probabilities give equal sums, to the last bit
        refChosenLogps: refLogps && sumBySequence(chosenRows, refLogps),
        refRejectedLogps: refLogps && sumBySequence(rejectedRows, refLogps),
        promptLogps: needs.prompt ? sumBySequence(rows(inputs.promptRows), logps) : null,
        promptLengths: needs.prompt ? perPair(inputs.promptLengths) : null,
        meanChosenLength: input(inputs.meanChosenLength, [1]),
        meanPromptLength: needs.prompt ? input(inputs.meanPromptLength, [1]) : null,
      }
      for (const name of ['chosenLogps', 'rejectedLogps', 'refChosenLogps', 'refRejectedLogps'] as const)
        if (pairs[name]) output(name, pairs[name])
      for (const { type, options: own } of terms) {
        const metrics = (preferenceLosses[type] as PreferenceLoss).metrics?.(pairs, { ...own, beta }) ?? {}
        for (const [name, value] of Object.entries(metrics)) output(`metric.${name}`, value)
      }
      let losses: Value = buildMixture(pairs, terms, beta) // [P]
      if (options.useWeighting) {
        const weights = wpoWeights({ logps, logSumSquares: logSumSquares(), chosenRows, rejectedRows })
        output('weights', weights)
        losses = mul(losses, weights)
      }
      return reduceSum(mul(losses, input(programInputs.lossScale, [1])), [0])
    },
  }
}

/** A micro-batch of pairs with what the objective reads; made once, filled when the reference is known. */
export interface PairBatch {
  readonly batch: MicroBatch
  readonly rows: PairRows
  /** Weight of a row of a document in the sum over its completion. */
  weightOf(document: number, index: number): number
}

/** Chooses the labelled rows: completions, and with `needsPrompt` the chosen sequence's prompt too. */
export function pairBatch(batch: MicroBatch, options: PreferenceOptions): PairBatch {
  const withPrompt = needsOf(options.terms).prompt
  const targets = withPrompt ? targetsWithPrompts(batch) : targetsOf(batch)
  const filled: MicroBatch = { ...batch, targets }
  const rows = pairRows(filled)
  const weights = Array.from({ length: 2 * rows.pairs }, (_, d) =>
    ldWeights(rows.lengths[d]!, rows.lengths[d ^ 1]!, options.ldAlpha),
  )
  return { batch: filled, rows, weightOf: (d, index) => weights[d]![index - rows.prompts[d]!] ?? 0 }
}

/** Every predicted row of chosen documents, the labelled ones of rejected. */
function targetsWithPrompts({ inputIds, labels, cuSeqlens }: MicroBatch) {
  const rows: number[] = []
  for (let d = 0; d + 1 < cuSeqlens.length; d++) {
    for (let i = cuSeqlens[d]!; i + 1 < cuSeqlens[d + 1]!; i++) if ((d & 1) === 0 || labels[i]! >= 0) rows.push(i)
  }
  return { rows: Int32Array.from(rows), labels: Int32Array.from(rows, (i) => inputIds[i + 1]!) }
}

/**
 * The micro-batches of a step with all inputs of the objective.
 * @param references log-probabilities of the labelled rows under the reference [M] each, where one is needed
 */
export function fillPairs(
  batches: readonly PairBatch[],
  references: readonly (Float32Array | undefined)[],
  options: PreferenceOptions,
): MicroBatch[] {
  const pairs = batches.reduce((sum, { rows }) => sum + rows.pairs, 0)
  const meanOf = (of: (rows: PairRows) => number) => batches.reduce((sum, { rows }) => sum + of(rows), 0) / pairs
  const chosen = (values: Int32Array) => values.filter((_, d) => (d & 1) === 0)
  const total = (values: Int32Array) => values.reduce((a, b) => a + b, 0)
  const means = {
    [inputs.meanChosenLength]: Float32Array.of(meanOf(({ lengths }) => total(chosen(lengths)))),
    [inputs.meanPromptLength]: Float32Array.of(meanOf(({ prompts }) => total(chosen(prompts)))),
  }
  const needs = needsOf(options.terms)
  return batches.map(({ batch, rows, weightOf }, index) => {
    const reference = references[index]
    const isPrompt = (d: number, i: number) => ((d & 1) === 0 && i < rows.prompts[d]! ? 1 : 0)
    return {
      ...batch,
      dims: { P: rows.pairs },
      inputs: {
        ...membership(rows, weightOf),
        [pairInputs.chosenLengths]: Float32Array.from(chosen(rows.lengths)),
        [pairInputs.rejectedLengths]: Float32Array.from(rows.lengths.filter((_, d) => (d & 1) === 1)),
        [inputs.meanChosenLength]: means[inputs.meanChosenLength]!,
        ...(needs.prompt
          ? {
              [inputs.promptRows]: membership(rows, isPrompt).chosenRows,
              [inputs.promptLengths]: Float32Array.from(chosen(rows.prompts)),
              [inputs.meanPromptLength]: means[inputs.meanPromptLength]!,
            }
          : {}),
        ...(reference ? { [inputs.refLogps]: reference } : {}),
      },
    }
  })
}
