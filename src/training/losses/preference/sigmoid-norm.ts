// Length-normalised DPO (Tülu 3, arXiv 2411.15124).
import { z } from 'zod'
import { scale } from '../../../compiler/ops/elementwise.js'
import { divergenceOptions } from './divergence.js'
import { marginPerToken, smoothedNll } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const sigmoidNorm = definePreferenceLoss({
  summary: 'DPO over log-ratios per token',
  options: z.strictObject(divergenceOptions),
  needsReference: true,
  // −ls(β(s_c/n_c − s_r/n_r))
  build: (pairs, options) => smoothedNll(scale(marginPerToken(pairs, options), options.beta), 0),
})
