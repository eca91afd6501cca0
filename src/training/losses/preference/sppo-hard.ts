// Self-play preference optimization with hard labels (SPPO, arXiv 2405.00675).
import { z } from 'zod'
import { add, shift, square } from '../../../compiler/ops/elementwise.js'
import { logRatios } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const sppoHard = definePreferenceLoss({
  summary: 'SPPO: squared distance of the log-ratios from ±1/(2β)',
  options: z.strictObject({}),
  needsReference: true,
  // (u − 1/(2β))² + (v + 1/(2β))²
  build(pairs, { beta }) {
    const { chosen, rejected } = logRatios(pairs)
    return add(square(shift(chosen, -0.5 / beta)), square(shift(rejected, 0.5 / beta)))
  },
})
