// What a loss over preference pairs declares (stop 8): a graph of the summed log-probabilities of both completions.
// One file per loss and one line in index.ts. Notation of their formulas, by pair: u = log π(c) − log ref(c),
// v = log π(r) − log ref(r), s the score of a log-ratio (itself unless `divergence` says otherwise), h = β(s_c − s_r),
// z = log π(c) − log π(r), n the completion's tokens, ε = labelSmoothing, ls = log σ.
import type { z } from 'zod'
import type { Value } from '../../../compiler/graph.js'

/** What a loss may read; vectors over the P pairs of a micro-batch. */
export interface PairValues {
  /** Log-probabilities summed over the completion's tokens [P]. */
  readonly chosenLogps: Value
  readonly rejectedLogps: Value
  /** The same under the reference model [P]; only where the loss needs it. */
  readonly refChosenLogps: Value | null
  readonly refRejectedLogps: Value | null
  /** Tokens of the completions [P]. */
  readonly chosenLengths: Value
  readonly rejectedLengths: Value
  /** Summed log-probability and number of the predicted prompt tokens of the chosen sequence [P]; only where the loss needs them. */
  readonly promptLogps: Value | null
  readonly promptLengths: Value | null
  /** Chosen tokens, and predicted prompt tokens, of the whole optimizer step over its pairs [1]. */
  readonly meanChosenLength: Value
  readonly meanPromptLength: Value | null
}

/** What stands in the place of log π in the implicit reward, from a completion's summed log-probability and length. */
export type PolicyScore = (logp: number, length: number) => number

export interface PreferenceLoss<Schema extends z.ZodObject = z.ZodObject> {
  readonly summary: string
  /** Strict, with defaults: the options of this loss beside `beta`. */
  readonly options: Schema
  /** Reads the reference model's log-probabilities. */
  readonly needsReference: boolean
  /** Reads the log-probabilities of the prompt's tokens. */
  readonly needsPrompt?: boolean
  /** A pair's value depends on the other pairs of its micro-batch. */
  readonly couplesPairs?: boolean
  /** Averages over tokens of all pairs: only the mean over pairs has a meaning. */
  readonly averagesTokens?: boolean
  /** Without a reference the implicit reward is β times this; log π where a loss does not say. */
  policyScore?(options: z.output<Schema>): PolicyScore
  /** Further values of each pair [P] whose means over pairs are metrics. */
  metrics?(pairs: PairValues, options: z.output<Schema> & { readonly beta: number }): Record<string, Value>
  /** Loss of each pair [P]; the step's loss is its mean over all pairs of the step. */
  build(pairs: PairValues, options: z.output<Schema> & { readonly beta: number }): Value
}

export function definePreferenceLoss<Schema extends z.ZodObject>(loss: PreferenceLoss<Schema>): PreferenceLoss<Schema> {
  return loss
}
