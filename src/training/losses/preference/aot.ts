// Alignment via optimal transport, paired (AOT, arXiv 2406.05882): the margins' distribution under the policy is to
// lie above that under the reference. Entry k of the result belongs to rank k, not to pair k.
import { z } from 'zod'
import { scale, sub } from '../../../compiler/ops/elementwise.js'
import { sort } from '../../../compiler/ops/reduce.js'
import { need } from '../../../compiler/ops/shape-rules.js'
import { difference, labelSmoothing, policyLogps, smoothedNll } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const aot = definePreferenceLoss({
  summary: 'AOT: the sorted margins of the policy above those of the reference',
  options: z.strictObject({ labelSmoothing }),
  needsReference: true,
  couplesPairs: true,
  // x = β(sort(log π(c) − log π(r)) − sort(log ref(c) − log ref(r))); −(1−ε) ls(x) − ε ls(−x)
  build(pairs, options) {
    const reference = {
      chosen: need(pairs.refChosenLogps, 'refChosenLogps'),
      rejected: need(pairs.refRejectedLogps, 'refRejectedLogps'),
    }
    const x = sub(sort(difference(policyLogps(pairs))), sort(difference(reference)))
    return smoothedNll(scale(x, options.beta), options.labelSmoothing)
  },
})
