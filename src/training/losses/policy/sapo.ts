// SAPO (arXiv 2511.20347): a smooth gate in the place of clipping.
import { cast, div, greater, mul, neg, scale, shift, sigmoid, where } from '../../../compiler/ops/elementwise.js'
import { scalar } from '../../../compiler/ops/tensor.js'
import { definePolicyLoss } from './policy-loss.js'

export const sapo = definePolicyLoss({
  summary: 'a smooth gate around a ratio of 1 in the place of clipping',
  // −A · 4 σ(τ (w − 1)) / τ, τ by the sign of A
  tokenLoss({ ratio, advantages }, { temperaturePos, temperatureNeg }) {
    const number = (value: number) => scalar(ratio.graph, value, ratio.dtype)
    const tau = where(greater(advantages, number(0)), number(temperaturePos), number(temperatureNeg))
    const gate = div(scale(sigmoid(mul(tau, shift(ratio, -1))), 4), tau)
    return neg(mul(cast(advantages, ratio.dtype), gate))
  },
  weight: (length, { rows }) => 1 / (rows * Math.max(1, length)),
})
