// The clipped surrogate that most policy losses share (PPO, arXiv 1707.06347), and the terms beside it.
import type { Value } from '../../../compiler/graph.js'
import { div, exp, max, min, mul, neg, shift, sub } from '../../../compiler/ops/elementwise.js'
import { matMul, transposeLast } from '../../../compiler/ops/linear-algebra.js'
import { reshape, unsqueeze } from '../../../compiler/ops/shape.js'
import { scalar } from '../../../compiler/ops/tensor.js'
import { sumBySequence } from '../preference/sequence-sums.js'
import type { PolicyLossOptions, PolicyTokens, RatioLevel } from './policy-loss.js'

const number = (like: Value, value: number) => scalar(like.graph, value, like.dtype)

/** max(low, min(high, x)) */
export const clip = (x: Value, low: number, high: number): Value => max(min(x, number(x, high)), number(x, low))

// −min(min(w, δ) A, clip(w, 1 − ε_low, 1 + ε_high) A)
export function clippedSurrogate({ ratio, advantages }: PolicyTokens, options: PolicyLossOptions): Value {
  const { epsilonLow, epsilonHigh, delta } = options
  const free = delta === null ? ratio : min(ratio, number(ratio, delta))
  return neg(min(mul(free, advantages), mul(clip(ratio, 1 - epsilonLow, 1 + epsilonHigh), advantages)))
}

/**
 * π/π_old of every token [M]; of a completion, its mean or summed log-ratio stands for each of its tokens.
 * @param membership [Q, M], 1 where a token counts for a completion
 * @param lengths counted tokens of the completions [Q]
 */
export function importanceRatio(
  logps: Value,
  oldLogps: Value,
  level: RatioLevel,
  { membership, lengths }: { membership: Value; lengths: Value },
): Value {
  const logRatio = sub(logps, oldLogps) // [M]
  if (level === 'token') return exp(logRatio)
  let bySequence = sumBySequence(membership, logRatio) // [Q]
  if (level === 'sequence') bySequence = mul(bySequence, inverse(lengths))
  const spread = matMul(transposeLast(membership), unsqueeze(bySequence, [1])) // [M, 1]
  return exp(reshape(spread, logps.shape))
}

/** 1 / max(1, x): a completion without a token that counts has no log-ratio. */
function inverse(lengths: Value): Value {
  const one = number(lengths, 1)
  return div(one, max(lengths, one))
}

// k3 = e^(ref − logp) − (ref − logp) − 1 (Schulman, "Approximating KL divergence", 2020)
export function k3(logps: Value, refLogps: Value): Value {
  const d = sub(refLogps, logps)
  return sub(shift(exp(d), -1), d)
}
