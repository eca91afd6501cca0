// Contrastive preference optimization (CPO, arXiv 2401.08417): DPO's losses without a reference, and likelihood.
import { z } from 'zod'
import type { Value } from '../../../compiler/graph.js'
import { scale, shift, square } from '../../../compiler/ops/elementwise.js'
import { hingeOf } from './hinge.js'
import { cpoAlpha, nllMetric, withNll } from './likelihood-term.js'
import { difference, labelSmoothing, policyLogps, policyMeanLogps, smoothedNll } from './margins.js'
import { definePreferenceLoss, type PairValues } from './preference-loss.js'

interface Variant {
  readonly averages: boolean
  build(pairs: PairValues, options: { beta: number; labelSmoothing: number }): Value
}

const variants = {
  // −(1−ε) ls(βz) − ε ls(−βz)
  sigmoid: {
    averages: false,
    build: (pairs, options) => smoothedNll(scale(difference(policyLogps(pairs)), options.beta), options.labelSmoothing),
  },
  // max(0, 1 − βz)
  hinge: { averages: false, build: (pairs, { beta }) => hingeOf(scale(difference(policyLogps(pairs)), beta)) },
  // (z̄ − 1/(2β))²
  ipo: {
    averages: true,
    build: (pairs, { beta }) => square(shift(difference(policyMeanLogps(pairs)), -0.5 / beta)),
  },
} satisfies Record<string, Variant>

type VariantName = keyof typeof variants

export const cpo = definePreferenceLoss({
  summary: 'CPO: a margin without a reference, and likelihood of the chosen',
  options: z
    .strictObject({
      variant: z.enum(Object.keys(variants) as [VariantName, ...VariantName[]]).default('sigmoid'),
      cpoAlpha: cpoAlpha.default(1),
      labelSmoothing,
    })
    .refine(({ variant, labelSmoothing }) => variant === 'sigmoid' || labelSmoothing === 0, {
      path: ['labelSmoothing'],
      message: 'only the variant sigmoid smooths its labels',
    }),
  needsReference: false,
  averagesTokens: true,
  policyScore: ({ variant }) => (variants[variant].averages ? (logp, length) => logp / length : (logp) => logp),
  metrics: (pairs, { cpoAlpha }) => nllMetric(pairs, cpoAlpha),
  build: (pairs, options) => withNll(variants[options.variant].build(pairs, options), pairs, options.cpoAlpha),
})
