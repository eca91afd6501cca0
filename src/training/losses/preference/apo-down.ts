// Anchored preference optimization (APO, arXiv 2408.06266) for chosen completions worse than the model.
import { z } from 'zod'
import { add, neg, sigmoid } from '../../../compiler/ops/elementwise.js'
import { difference, rewards } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const apoDown = definePreferenceLoss({
  summary: 'APO-down: lowers both, the rejected more',
  options: z.strictObject({}),
  needsReference: true,
  // σ(βu) + 1 − σ(β(u − v)), with 1 − σ(x) = σ(−x)
  build(pairs, { beta }) {
    const both = rewards(pairs, beta)
    return add(sigmoid(both.chosen), sigmoid(neg(difference(both))))
  },
})
