// Which pairs to ask about next: those on which the reward heads disagree and are not sure, given that the others of the round will
// be answered as well.
import type { Judgement, RewardEnsemble } from './reward-ensemble.js'
import { addScaled, dot } from './vectors.js'

/** Variance p·(1 − p) of an answer; p is the mean of σ over the heads' margins, by MacKay's approximation. */
export function answerVariance({ margin, deviation }: Judgement): number {
  const moderated = Math.abs(margin) / Math.sqrt(1 + (Math.PI * deviation ** 2) / 8)
  const p = 1 / (1 + Math.exp(-moderated))
  return p * (1 - p)
}

/**
 * What an answer is expected to tell about the reward: the variance of the heads' margins times that of the answer, the first term
 * of the information that a Bernoulli answer gives of its logit (Houlsby et al., "Bayesian active learning for classification and
 * preference learning", 2011).
 */
export const informativeness = (judgement: Judgement): number => judgement.deviation ** 2 * answerVariance(judgement)

/**
 * The `count` candidates to ask about, most telling first. Greedy: after each, the heads' disagreement on the others is reduced to
 * what its answer would leave. With c the covariance of a margin with the chosen one, v the chosen one's variance and q that of its
 * answer, a variance loses c²·q / (1 + q·v), and so do covariances: the deviations are updated in place by the square root of that
 * (Whitaker and Hamill, "Ensemble data assimilation without perturbed observations", 2002).
 * @param differences one [F] per candidate
 * @returns indices of candidates
 */
export function chooseRound(ensemble: RewardEnsemble, differences: readonly Float32Array[], count: number): number[] {
  const candidates = differences.map((difference, index) => {
    const spread = ensemble.spread(difference)
    const variance = dot(spread, spread)
    const answer = answerVariance({ margin: ensemble.margin(difference), deviation: Math.sqrt(variance) })
    return { index, spread, variance, answer }
  })
  const score = ({ variance, answer }: (typeof candidates)[number]) => variance * answer
  const chosen: number[] = []
  while (chosen.length < count && candidates.length > 0) {
    const best = candidates.reduce((most, candidate, i) => (score(candidate) > score(candidates[most]!) ? i : most), 0)
    const [taken] = candidates.splice(best, 1)
    chosen.push(taken!.index)
    const { spread, variance, answer } = taken!
    if (variance === 0) continue // nothing is left to be told of any
    const gain = (1 - 1 / Math.sqrt(1 + answer * variance)) / variance
    for (const other of candidates) {
      const covariance = dot(other.spread, spread)
      addScaled(other.spread, -gain * covariance, spread)
      other.variance = Math.max(0, other.variance - (covariance ** 2 * answer) / (1 + answer * variance))
    }
  }
  return chosen
}
