// Cross-entropy over target tokens, the loss of supervised fine-tuning. With every weight 1 / (target tokens of
// the whole optimizer step) the sum over micro-batches is the step's token mean, however it was cut.
import { defineLoss } from './loss.js'

export const crossEntropy = defineLoss({
  summary: 'mean negative log-likelihood of the target tokens',
  isLinear: true,
  // L = −Σ w_i · logp_i
  value(logps, weights) {
    let sum = 0
    for (let i = 0; i < logps.length; i++) sum -= weights[i]! * logps[i]!
    return sum
  },
  // ∂L/∂logp_i = −w_i
  dLogps(logps, weights) {
    const d = new Float32Array(logps.length)
    for (let i = 0; i < d.length; i++) d[i] = -weights[i]!
    return d
  },
})
