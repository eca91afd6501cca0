// Robust DPO (arXiv 2403.00409): unbiased where a share ε of the pairs is the wrong way round.
import { z } from 'zod'
import { logSigmoid, neg, scale, sub } from '../../../compiler/ops/elementwise.js'
import { divergenceOptions } from './divergence.js'
import { labelSmoothing, margin } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const robust = definePreferenceLoss({
  summary: 'DPO corrected for a known share of wrong labels',
  options: z.strictObject({ labelSmoothing, ...divergenceOptions }),
  needsReference: true,
  // [−(1−ε) ls(h) + ε ls(−h)] / (1−2ε)
  build(pairs, options) {
    const h = margin(pairs, options)
    const wrong = options.labelSmoothing
    return scale(sub(scale(logSigmoid(neg(h)), wrong), scale(logSigmoid(h), 1 - wrong)), 1 / (1 - 2 * wrong))
  },
})
