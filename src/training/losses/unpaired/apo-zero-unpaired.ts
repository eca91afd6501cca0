// Anchored preference optimization (APO, arXiv 2408.06266) over single completions: KTO with 0 for the divergence.
import { scale, sub } from '../../../compiler/ops/elementwise.js'
import { defineUnpairedLoss, unpairedOptions, weightedByClass } from './unpaired-loss.js'

export const apoZeroUnpaired = defineUnpairedLoss({
  summary: 'APO-zero over single completions: log-ratios above or below 0',
  options: unpairedOptions,
  needsKl: false,
  // desirable w_d (1 − σ(βρ)), undesirable w_u σ(βρ)
  build: ({ logps, refLogps, labels }, options) =>
    weightedByClass(scale(sub(logps, refLogps), options.beta), labels, options),
})
