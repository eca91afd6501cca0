// Anchored preference optimization (APO, arXiv 2408.06266) for chosen completions better than the model.
import { z } from 'zod'
import { add, neg, sigmoid } from '../../../compiler/ops/elementwise.js'
import { rewards } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const apoZero = definePreferenceLoss({
  summary: 'APO-zero: raises the chosen and lowers the rejected, each by itself',
  options: z.strictObject({}),
  needsReference: true,
  // 1 − σ(βu) + σ(βv), with 1 − σ(x) = σ(−x)
  build(pairs, { beta }) {
    const { chosen, rejected } = rewards(pairs, beta)
    return add(sigmoid(neg(chosen)), sigmoid(rejected))
  },
})
