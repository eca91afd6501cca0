// Odds ratio preference optimization (ORPO, arXiv 2403.07691): likelihood and preference in one stage, no reference.
import { z } from 'zod'
import type { Value } from '../../../compiler/graph.js'
import { add, div, exp, log, log1p, logSigmoid, min, neg, scale, sub, tanh } from '../../../compiler/ops/elementwise.js'
import { need } from '../../../compiler/ops/shape-rules.js'
import { scalar } from '../../../compiler/ops/tensor.js'
import { type BothSides, chosenNll, difference, policyMeanLogps } from './margins.js'
import { definePreferenceLoss, type PairValues } from './preference-loss.js'

// Half of float32's spacing below 1: a completion that is certain to the last digit keeps finite odds.
const LARGEST_MEAN_LOGP = -(2 ** -25)

/** log(p / (1 − p)) of p = e^x, with 1 − e^x = −tanh(x/2)(1 + e^x): no cancellation where p is near 1. */
function logOdds(x: Value): Value {
  const below = min(x, scalar(x.graph, LARGEST_MEAN_LOGP, x.dtype))
  return sub(below, add(log(neg(tanh(scale(below, 0.5)))), log1p(exp(below))))
}

// p̄_c − p̄_r − (log(1 − e^p̄_c) − log(1 − e^p̄_r))
const logOddsRatio = ({ chosen, rejected }: BothSides) =>
  difference({ chosen: logOdds(chosen), rejected: logOdds(rejected) })

const negativeLogLikelihood = {
  // −(log π(c) + log π(prompt)) over the tokens of both
  sequence({ chosenLogps, promptLogps, meanChosenLength, meanPromptLength }: PairValues) {
    const logps = add(chosenLogps, need(promptLogps, 'promptLogps'))
    return neg(div(logps, add(meanChosenLength, need(meanPromptLength, 'meanPromptLength'))))
  },
  completion: chosenNll,
}

export const orpo = definePreferenceLoss({
  summary: 'ORPO: likelihood of the chosen and the odds ratio of both, no reference',
  options: z.strictObject({
    /** Tokens of the likelihood term: prompt and completion (as TRL), or the completion alone. */
    nllOver: z.enum(['sequence', 'completion']).default('sequence'),
  }),
  needsReference: false,
  needsPrompt: true,
  averagesTokens: true,
  policyScore: () => (logp, length) => logp / length,
  metrics(pairs, { nllOver }) {
    const odds = logOddsRatio(policyMeanLogps(pairs))
    return { nllLoss: negativeLogLikelihood[nllOver](pairs), logOddsRatio: logSigmoid(odds), logOddsChosen: odds }
  },
  // NLL − β ls(log odds ratio)
  build: (pairs, { nllOver, beta }) =>
    sub(negativeLogLikelihood[nllOver](pairs), scale(logSigmoid(logOddsRatio(policyMeanLogps(pairs))), beta)),
})
