// The likelihood of the chosen completions as a term beside a preference loss (CPO, arXiv 2401.08417).
import { z } from 'zod'
import type { Value } from '../../../compiler/graph.js'
import { add, scale } from '../../../compiler/ops/elementwise.js'
import { chosenNll } from './margins.js'
import type { PairValues } from './preference-loss.js'

/** Weight of the chosen tokens' mean negative log-likelihood. */
export const cpoAlpha = z.number().nonnegative()

export const withNll = (preference: Value, pairs: PairValues, weight: number): Value =>
  weight === 0 ? preference : add(preference, scale(chosenNll(pairs), weight))

/** The term as a metric; none where it has no weight. */
export const nllMetric = (pairs: PairValues, weight: number): Record<string, Value> =>
  weight === 0 ? {} : { nllLoss: chosenNll(pairs) }
