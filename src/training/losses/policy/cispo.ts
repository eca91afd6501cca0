// CISPO (arXiv 2506.13585): the capped ratio weighs the gradient of log π and has none of its own.
import { min, mul, neg, stopGradient } from '../../../compiler/ops/elementwise.js'
import { scalar } from '../../../compiler/ops/tensor.js'
import { definePolicyLoss } from './policy-loss.js'

export const cispo = definePolicyLoss({
  summary: 'the capped ratio weighs the gradient of the log-probability',
  // −stop(min(w, ε_high)) A log π
  tokenLoss({ logps, ratio, advantages }, { epsilonHigh }) {
    const capped = stopGradient(min(ratio, scalar(ratio.graph, epsilonHigh, ratio.dtype)))
    return neg(mul(mul(capped, advantages), logps))
  },
  weight: (_, { tokens }) => 1 / Math.max(1, tokens),
})
