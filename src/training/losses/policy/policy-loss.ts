// What a policy-gradient loss declares (stop 8): a value of every sampled token, and how tokens are weighed together. One
// file per loss and one line in index.ts. Notation: w the importance ratio π/π_old, A the advantage.
import type { Value } from '../../../compiler/graph.js'

/** What a loss may read, over the M completion tokens of a micro-batch. */
export interface PolicyTokens {
  /** Log-probabilities under the policy in training [M]. */
  readonly logps: Value
  /** π/π_old [M]: of the token, or of its whole completion. */
  readonly ratio: Value
  /** [M] */
  readonly advantages: Value
}

export interface PolicyLossOptions {
  readonly epsilonLow: number
  /** Of `cispo` the cap of the ratio itself. */
  readonly epsilonHigh: number
  /** Cap of the unclipped ratio (two-sided clipping, arXiv 2405.04706); null: none. */
  readonly delta: number | null
  /** Of `sapo`: temperatures for positive and negative advantages. */
  readonly temperaturePos: number
  readonly temperatureNeg: number
}

/** Of the whole optimizer step. */
export interface StepTotals {
  /** Completions, those without a token that counts included. */
  readonly rows: number
  /** Tokens that count. */
  readonly tokens: number
  readonly maxCompletionLength: number
}

/** Over what the ratio is taken: each token, the mean of a completion (GSPO, arXiv 2507.18071), or its sum. */
export type RatioLevel = 'token' | 'sequence' | 'sum'

export interface PolicyLoss {
  readonly summary: string
  /** Fixed where the loss is defined on one level only. */
  readonly level?: RatioLevel
  /** Loss of each token [M], without its weight. */
  tokenLoss(tokens: PolicyTokens, options: PolicyLossOptions): Value
  /** Weight of a token of a completion of `length` counted tokens; the step's loss is the weighted sum over all tokens. */
  weight(length: number, totals: StepTotals): number
  /** What a completion adds of which no token counts; it has no gradient. Default 0. */
  emptyRowLoss?(advantage: number, totals: StepTotals): number
}

export const definePolicyLoss = (loss: PolicyLoss): PolicyLoss => loss
