// Which pairs to ask about next: those whose answers leave the reward heads most agreed about all the others, given that the rest of
// the round will be answered as well.
import type { Judgement, RewardEnsemble } from './reward-ensemble.js'
import { addScaled, dot } from './vectors.js'

/** Variance p·(1 − p) of an answer; p is the mean of σ over the heads' margins, by MacKay's approximation. */
export function answerVariance({ margin, deviation }: Judgement): number {
  const moderated = Math.abs(margin) / Math.sqrt(1 + (Math.PI * deviation ** 2) / 8)
  const p = 1 / (1 + Math.exp(-moderated))
  return p * (1 - p)
}

/**
 * The `count` candidates to ask about, most telling first: those whose answers leave the least unsure of all candidates' answers. With
 * v the variance of a candidate's margin, q that of its answer and c the covariance of two margins, an answer takes c²·q / (1 + q·v)
 * from the variance of another margin; what counts is the sum of that over all candidates, each times its own q (Yu, Bi and Tresp,
 * "Active learning via transductive experimental design", 2006; to first order the expected information of Smith et al.,
 * "Prediction-oriented Bayesian active learning", 2023). A pair that is unlike all others tells little, however unsure the heads are.
 * Greedy: after each, the heads' disagreement is reduced to what its answer would leave, the deviations updated in place by the
 * square root of that (Whitaker and Hamill, "Ensemble data assimilation without perturbed observations", 2002).
 * @param differences one [F] per candidate
 * @returns indices of candidates
 */
export function chooseRound(ensemble: RewardEnsemble, differences: readonly Float32Array[], count: number): number[] {
  const judged = differences.map((difference, index) => {
    const spread = ensemble.spread(difference)
    const variance = dot(spread, spread)
    const answer = answerVariance({ margin: ensemble.margin(difference), deviation: Math.sqrt(variance) })
    return { index, spread, variance, answer }
  })
  const all = weightedMoment(judged)
  // All · spread: what the answers of all candidates have in common with this one's
  const left = judged.map((candidate) => ({
    ...candidate,
    common: Float64Array.from(all, (row) => dot(row, candidate.spread)),
  }))
  const score = ({ spread, common, variance, answer }: (typeof left)[number]) =>
    (answer * dot(spread, common)) / (1 + answer * variance)
  const chosen: number[] = []
  while (chosen.length < count && left.length > 0) {
    const scores = left.map(score)
    const best = scores.reduce((most, value, i) => (value > scores[most]! ? i : most), 0)
    const [taken] = left.splice(best, 1)
    const { index, spread, common, variance, answer } = taken!
    chosen.push(index)
    if (variance === 0) continue // nothing is left to be told of any
    // Every spread s becomes M·s with M = I − gain·spread·spreadᵀ, and so All becomes M·All·M
    const gain = (1 - 1 / Math.sqrt(1 + answer * variance)) / variance
    const twice = gain * (2 - gain * variance) // M² = I − twice·spread·spreadᵀ
    for (const other of left) {
      const covariance = dot(other.spread, spread)
      addScaled(other.spread, -gain * covariance, spread)
      addScaled(other.common, -twice * covariance, common)
      addScaled(other.common, -gain * dot(spread, other.common), spread)
      other.variance = Math.max(0, other.variance - (covariance ** 2 * answer) / (1 + answer * variance))
    }
  }
  return chosen
}

/** Σ answer · spread · spreadᵀ over the candidates: rows of [heads]. */
function weightedMoment(candidates: readonly { spread: Float64Array; answer: number }[]): Float64Array[] {
  const heads = candidates[0]?.spread.length ?? 0
  const moment = Array.from({ length: heads }, () => new Float64Array(heads))
  for (const { spread, answer } of candidates)
    for (const [k, row] of moment.entries()) addScaled(row, answer * spread[k]!, spread)
  return moment
}
