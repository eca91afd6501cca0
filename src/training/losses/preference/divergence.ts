// The divergence that a loss keeps the policy near its reference with (f-DPO, arXiv 2309.16240): it turns the
// log-ratio x = log π − log ref of a completion into the score that takes its place.
import { z } from 'zod'
import type { Value } from '../../../compiler/graph.js'
import { exp, logSigmoid, min, neg, scale, shift } from '../../../compiler/ops/elementwise.js'
import { scalar } from '../../../compiler/ops/tensor.js'

// As TRL bounds it: e^80 is far from float32's largest number.
const LARGEST_EXPONENT = 80
// Nearer to 1 than this the α-divergence is its limit, the reverse KL divergence.
const ALPHA_RESOLUTION = 1e-6

const scores = {
  reverse_kl: (x: Value) => x,
  // 1 − e^(−x)
  forward_kl: (x: Value) => neg(shift(exp(neg(x)), -1)),
  // log 2 + ls(x)
  js_divergence: (x: Value) => shift(logSigmoid(x), Math.LN2),
  // (e^((α−1)x) − 1) / (α−1)
  alpha_divergence(x: Value, alpha: number) {
    const a = alpha - 1
    if (Math.abs(a) < ALPHA_RESOLUTION) return x
    const exponent = min(scale(x, a), scalar(x.graph, LARGEST_EXPONENT, x.dtype))
    return scale(shift(exp(exponent), -1), 1 / a)
  },
} satisfies Record<string, (x: Value, alpha: number) => Value>

type Divergence = keyof typeof scores

/** Options of the losses that are defined for any divergence. */
export const divergenceOptions = {
  divergence: z.enum(Object.keys(scores) as [Divergence, ...Divergence[]]).default('reverse_kl'),
  /** Of `alpha_divergence`. */
  alpha: z.number().default(0.5),
}
export interface DivergenceOptions {
  readonly divergence: Divergence
  readonly alpha: number
}

/** The score of a log-ratio, entry by entry. */
export function score(logRatio: Value, { divergence, alpha }: DivergenceOptions): Value {
  return scores[divergence](logRatio, alpha)
}
