// SLiC's hinge over DPO's margin (arXiv 2305.10425, 2309.06657).
import { z } from 'zod'
import type { Value } from '../../../compiler/graph.js'
import { max, neg, shift } from '../../../compiler/ops/elementwise.js'
import { scalar } from '../../../compiler/ops/tensor.js'
import { divergenceOptions } from './divergence.js'
import { margin } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

/** max(0, 1 − x); the kink has slope 0. */
export const hingeOf = (x: Value): Value => max(scalar(x.graph, 0, x.dtype), shift(neg(x), 1))

export const hinge = definePreferenceLoss({
  summary: 'hinge loss of the margin between both log-ratios',
  options: z.strictObject(divergenceOptions),
  needsReference: true,
  // max(0, 1 − h)
  build: (pairs, options) => hingeOf(margin(pairs, options)),
})
