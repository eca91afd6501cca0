// What a loss over single completions with a label declares (stop 8): a graph of their summed log-probabilities.
// Notation: ρ = log π − log ref of the completion, w_d and w_u the weights of both classes.
import { z } from 'zod'
import type { Value } from '../../../compiler/graph.js'
import { add, mul, neg, scale, shift, sigmoid } from '../../../compiler/ops/elementwise.js'

/** Vectors over the B completions of a micro-batch. */
export interface UnpairedValues {
  /** Log-probabilities summed over the completion's tokens [B], of policy and reference. */
  readonly logps: Value
  readonly refLogps: Value
  /** 1 desirable, 0 undesirable [B]. */
  readonly labels: Value
  /** Estimate of KL(π‖ref) [1], without a gradient (`estimateKl`); only where the loss needs it. */
  readonly kl: Value | null
}

export const unpairedOptions = z.strictObject({
  desirableWeight: z.number().nonnegative().default(1),
  undesirableWeight: z.number().nonnegative().default(1),
})

export interface UnpairedLoss<Schema extends z.ZodObject = typeof unpairedOptions> {
  readonly summary: string
  /** Strict, with defaults: the options of this loss beside `beta`. */
  readonly options: Schema
  /** Reads the KL estimate, and so needs mismatched pairs scored. */
  readonly needsKl: boolean
  /** Loss of each completion [B]; the step's loss is its sum over the number of completions of the step, both classes. */
  build(values: UnpairedValues, options: z.output<Schema> & { readonly beta: number }): Value
}

export function defineUnpairedLoss<Schema extends z.ZodObject>(loss: UnpairedLoss<Schema>): UnpairedLoss<Schema> {
  return loss
}

/** w_d (1 − σ(x)) of desirable completions and w_u σ(x) of undesirable ones. */
export function weightedByClass(x: Value, labels: Value, weights: z.output<typeof unpairedOptions>): Value {
  const other = shift(neg(labels), 1)
  const signs = shift(scale(labels, -2), 1) // −1 desirable, 1 undesirable: 1 − σ(x) = σ(−x)
  const weight = add(scale(labels, weights.desirableWeight), scale(other, weights.undesirableWeight))
  return mul(weight, sigmoid(mul(signs, x)))
}
