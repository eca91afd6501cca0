// Cross-entropy over target tokens, the loss of supervised fine-tuning. With every weight 1 / (target tokens of
// the whole optimizer step) the sum over micro-batches is the step's token mean, however it was cut.
import { mul, neg } from '../../compiler/ops/elementwise.js'
import { reduceSum } from '../../compiler/ops/reduce.js'
import { defineLoss } from './loss.js'

export const crossEntropy = defineLoss({
  summary: 'mean negative log-likelihood of the target tokens',
  // L = −Σ w_i · logp_i
  build: (logps, weights) => neg(reduceSum(mul(logps, weights), [0])),
})
