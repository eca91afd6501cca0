// Identity preference optimization (arXiv 2310.12036), its margin per token.
import { z } from 'zod'
import { shift, square } from '../../../compiler/ops/elementwise.js'
import { divergenceOptions } from './divergence.js'
import { marginPerToken } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const ipo = definePreferenceLoss({
  summary: 'squared distance of the margin per token from 1/(2β)',
  options: z.strictObject(divergenceOptions),
  needsReference: true,
  // (s_c/n_c − s_r/n_r − 1/(2β))²
  build: (pairs, options) => square(shift(marginPerToken(pairs, options), -0.5 / options.beta)),
})
