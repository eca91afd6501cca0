// Which pairs to ask about next: those on which the reward heads disagree and are not sure, no two of a round alike.
import { dot } from './minimize.js'
import type { Judgement, RewardEnsemble } from './reward-ensemble.js'

/**
 * What an answer is expected to tell about the reward: the variance of the heads' margins times that of the answer, p·(1 − p), the
 * first term of the information that a Bernoulli answer gives of its logit (Houlsby et al., "Bayesian active learning for
 * classification and preference learning", 2011). p is the mean of σ over the heads' margins, by MacKay's approximation.
 */
export function informativeness({ margin, deviation }: Judgement): number {
  const variance = deviation ** 2
  const moderated = Math.abs(margin) / Math.sqrt(1 + (Math.PI * variance) / 8)
  const p = 1 / (1 + Math.exp(-moderated))
  return variance * p * (1 - p)
}

/**
 * The `count` candidates to ask about, most telling first. Greedy: what a chosen pair says is taken off the others, by the square of
 * the cosine between their feature differences.
 * @param differences one [F] per candidate
 * @returns indices of candidates
 */
export function chooseRound(ensemble: RewardEnsemble, differences: readonly Float32Array[], count: number): number[] {
  const candidates = differences
    .map((difference, index) => ({ index, difference, score: informativeness(ensemble.judge(difference)) }))
    .map((candidate) => ({ ...candidate, square: dot(candidate.difference, candidate.difference) }))
  const chosen: number[] = []
  while (chosen.length < count && candidates.length > 0) {
    const best = candidates.reduce((most, { score }, i) => (score > candidates[most]!.score ? i : most), 0)
    const [taken] = candidates.splice(best, 1)
    chosen.push(taken!.index)
    for (const other of candidates) {
      const squares = taken!.square * other.square
      const cosine = squares > 0 ? dot(taken!.difference, other.difference) / Math.sqrt(squares) : 0
      other.score *= 1 - Math.min(1, cosine * cosine)
    }
  }
  return chosen
}
