// Kahneman-Tversky optimization (KTO, arXiv 2402.01306).
import { scale, sub } from '../../../compiler/ops/elementwise.js'
import { need } from '../../../compiler/ops/shape-rules.js'
import { defineUnpairedLoss, unpairedOptions, weightedByClass } from './unpaired-loss.js'

export const kto = defineUnpairedLoss({
  summary: 'KTO: log-ratios above or below the KL divergence from the reference',
  options: unpairedOptions,
  needsKl: true,
  // desirable w_d (1 − σ(β(ρ − kl))), undesirable w_u (1 − σ(β(kl − ρ))) = w_u σ(β(ρ − kl))
  build({ logps, refLogps, labels, kl }, options) {
    return weightedByClass(scale(sub(sub(logps, refLogps), need(kl, 'kl')), options.beta), labels, options)
  },
})
