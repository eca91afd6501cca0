// Simple preference optimization (SimPO, arXiv 2405.14734): mean log-probabilities, a target margin, no reference;
// with alphaPo the reward is reshaped (AlphaPO, arXiv 2501.03884), with cpoAlpha likelihood is added (CPO-SimPO).
import { z } from 'zod'
import type { Value } from '../../../compiler/graph.js'
import { exp, scale, shift, sub } from '../../../compiler/ops/elementwise.js'
import { cpoAlpha, nllMetric, withNll } from './likelihood-term.js'
import { labelSmoothing, policyMeanLogps, smoothedNll } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

// (1 − e^(−αp̄))/α of a mean log-probability p̄; p̄ itself for α = 0
const shaped = (meanLogp: Value, alpha: number) =>
  alpha === 0 ? meanLogp : scale(shift(exp(scale(meanLogp, -alpha)), -1), -1 / alpha)

export const simpo = definePreferenceLoss({
  summary: 'SimPO: the margin of mean log-probabilities beyond a target, no reference',
  options: z.strictObject({
    /** γ/β, the target of the margin before it is scaled by β; 0.5 as the paper. */
    gammaBetaRatio: z.number().nonnegative().default(0.5),
    labelSmoothing,
    alphaPo: z.number().default(0),
    cpoAlpha: cpoAlpha.default(0),
  }),
  needsReference: false,
  averagesTokens: true,
  policyScore({ alphaPo }) {
    return (logp, length) => (alphaPo === 0 ? logp / length : -Math.expm1((-alphaPo * logp) / length) / alphaPo)
  },
  metrics: (pairs, { cpoAlpha }) => nllMetric(pairs, cpoAlpha),
  // x = βz̄ − γ; −(1−ε) ls(x) − ε ls(−x)
  build(pairs, { beta, gammaBetaRatio, ...options }) {
    const { chosen, rejected } = policyMeanLogps(pairs)
    const z = sub(shaped(chosen, options.alphaPo), shaped(rejected, options.alphaPo))
    const x = scale(shift(z, -gammaBetaRatio), beta)
    return withNll(smoothedNll(x, options.labelSmoothing), pairs, options.cpoAlpha)
  },
})
