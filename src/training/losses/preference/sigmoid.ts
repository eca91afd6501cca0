// Direct preference optimization (arXiv 2305.18290); with label smoothing, conservative DPO.
import { z } from 'zod'
import { divergenceOptions } from './divergence.js'
import { labelSmoothing, margin, smoothedNll } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const sigmoid = definePreferenceLoss({
  summary: 'DPO: the logistic loss of the margin between both log-ratios',
  options: z.strictObject({ labelSmoothing, ...divergenceOptions }),
  needsReference: true,
  // −(1−ε) ls(h) − ε ls(−h)
  build: (pairs, options) => smoothedNll(margin(pairs, options), options.labelSmoothing),
})
