// Efficient exact optimization over pairs (EXO, arXiv 2402.00856): the reverse KL divergence to smoothed labels.
import { z } from 'zod'
import type { Value } from '../../../compiler/graph.js'
import { add, exp, logSigmoid, mul, neg, shift } from '../../../compiler/ops/elementwise.js'
import { divergenceOptions } from './divergence.js'
import { margin } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

/** σ(x) (ls(x) − log p), with σ as e^ls so that its slope keeps its digits where it is nearly 0. */
function term(x: Value, p: number): Value {
  const logProb = logSigmoid(x)
  return mul(exp(logProb), shift(logProb, -Math.log(p)))
}

export const exoPair = definePreferenceLoss({
  summary: 'EXO: reverse KL divergence from the margin to smoothed labels',
  options: z.strictObject({ labelSmoothing: z.number().gt(0).lt(0.5).default(1e-3), ...divergenceOptions }),
  needsReference: true,
  // σ(h)(ls(h) − log(1−ε)) + σ(−h)(ls(−h) − log ε)
  build(pairs, options) {
    const h = margin(pairs, options)
    return add(term(h, 1 - options.labelSmoothing), term(neg(h), options.labelSmoothing))
  },
})
