// Noise contrastive alignment over pairs (NCA, arXiv 2402.05369): absolute log-ratios, not only their difference.
import { z } from 'zod'
import { add, logSigmoid, neg, scale } from '../../../compiler/ops/elementwise.js'
import { rewards } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const ncaPair = definePreferenceLoss({
  summary: 'NCA: raises the chosen log-ratio itself, with both as noise',
  options: z.strictObject({}),
  needsReference: true,
  // −ls(βu) − ½ ls(−βu) − ½ ls(−βv)
  build(pairs, { beta }) {
    const { chosen, rejected } = rewards(pairs, beta)
    const noise = add(logSigmoid(neg(chosen)), logSigmoid(neg(rejected)))
    return neg(add(logSigmoid(chosen), scale(noise, 0.5)))
  },
})
