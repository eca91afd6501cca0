// Alignment via optimal transport, unpaired (AOT, arXiv 2406.05882): the chosen log-ratios' distribution is to lie above
// that of the rejected ones. Entry k of the result belongs to rank k, not to pair k.
import { z } from 'zod'
import { scale, sub } from '../../../compiler/ops/elementwise.js'
import { sort } from '../../../compiler/ops/reduce.js'
import { labelSmoothing, logRatios, smoothedNll } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const aotUnpaired = definePreferenceLoss({
  summary: 'AOT: the sorted chosen log-ratios above the sorted rejected ones',
  options: z.strictObject({ labelSmoothing }),
  needsReference: true,
  couplesPairs: true,
  // x = β(sort(u) − sort(v)); −(1−ε) ls(x) − ε ls(−x)
  build(pairs, options) {
    const { chosen, rejected } = logRatios(pairs)
    return smoothedNll(scale(sub(sort(chosen), sort(rejected)), options.beta), options.labelSmoothing)
  },
})
