// What the preference losses are made of: log-ratios, margins, and −log σ of them. Notation in preference-loss.ts.
import { z } from 'zod'
import type { Value } from '../../../compiler/graph.js'
import { add, div, logSigmoid, neg, scale, sub } from '../../../compiler/ops/elementwise.js'
import { need } from '../../../compiler/ops/shape-rules.js'
import { type DivergenceOptions, score } from './divergence.js'
import type { PairValues } from './preference-loss.js'

/** A value of each completion [P]. */
export interface BothSides {
  readonly chosen: Value
  readonly rejected: Value
}

/** Share of the pairs that are taken to be the wrong way round; from ½ on a pair would say nothing or the opposite. */
export const labelSmoothing = z.number().min(0).lt(0.5).default(0)

const both = ({ chosen, rejected }: BothSides, map: (x: Value) => Value): BothSides => ({
  chosen: map(chosen),
  rejected: map(rejected),
})

/** u and v. */
export function logRatios(pairs: PairValues): BothSides {
  return {
    chosen: sub(pairs.chosenLogps, need(pairs.refChosenLogps, 'refChosenLogps')),
    rejected: sub(pairs.rejectedLogps, need(pairs.refRejectedLogps, 'refRejectedLogps')),
  }
}

/** βu and βv. */
export function rewards(pairs: PairValues, beta: number): BothSides {
  return both(logRatios(pairs), (x) => scale(x, beta))
}

/** s_c and s_r. */
function scores(pairs: PairValues, options: DivergenceOptions): BothSides {
  return both(logRatios(pairs), (x) => score(x, options))
}

const perToken = (pairs: PairValues, { chosen, rejected }: BothSides): BothSides => ({
  chosen: div(chosen, pairs.chosenLengths),
  rejected: div(rejected, pairs.rejectedLengths),
})

export const difference = ({ chosen, rejected }: BothSides): Value => sub(chosen, rejected)

/** h = β(s_c − s_r) */
export function margin(pairs: PairValues, options: DivergenceOptions & { readonly beta: number }): Value {
  return scale(difference(scores(pairs, options)), options.beta)
}

/** s_c/n_c − s_r/n_r */
export function marginPerToken(pairs: PairValues, options: DivergenceOptions): Value {
  return difference(perToken(pairs, scores(pairs, options)))
}

/** log π of both completions, and their means over tokens. */
export const policyLogps = ({ chosenLogps, rejectedLogps }: PairValues): BothSides => ({
  chosen: chosenLogps,
  rejected: rejectedLogps,
})
export const policyMeanLogps = (pairs: PairValues): BothSides => perToken(pairs, policyLogps(pairs))

/** −(1−ε) ls(x) − ε ls(−x) */
export function smoothedNll(x: Value, smoothing: number): Value {
  const kept = scale(neg(logSigmoid(x)), 1 - smoothing)
  return smoothing === 0 ? kept : add(kept, scale(logSigmoid(neg(x)), -smoothing))
}

/** −log π(c) / (chosen tokens a pair): its mean over all pairs of the step is the mean over all their chosen tokens. */
export const chosenNll = (pairs: PairValues): Value => neg(div(pairs.chosenLogps, pairs.meanChosenLength))
