// DiscoPOP (arXiv 2406.08414): a blend of the logistic and the exponential loss that a search found.
import { z } from 'zod'
import { add, exp, logSigmoid, mul, neg, scale, sub } from '../../../compiler/ops/elementwise.js'
import { divergenceOptions } from './divergence.js'
import { margin } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const discopop = definePreferenceLoss({
  summary: 'DiscoPOP: logistic loss of negative margins, exponential of positive ones',
  options: z.strictObject({ tau: z.number().positive().default(0.05), ...divergenceOptions }),
  needsReference: true,
  // −ls(h)(1 − m) + e^(−h) m with m = σ(h/τ), as −ls(h) e^(ls(−h/τ)) + e^(ls(h/τ) − h): no overflow
  build(pairs, options) {
    const h = margin(pairs, options)
    const sharp = scale(h, 1 / options.tau)
    const logistic = mul(neg(logSigmoid(h)), exp(logSigmoid(neg(sharp))))
    return add(logistic, exp(sub(logSigmoid(sharp), h)))
  },
})
