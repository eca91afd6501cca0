// What is measured of a reward model beside its loss: who wins, by how much, and whether its probabilities can be
// believed (expected calibration error, arXiv 1706.04599); and where a score is read.
import { mean, softplus } from './statistics.js'

export interface RewardMetrics {
  /** Share of the pairs whose chosen score is strictly higher. */
  accuracy: number
  margin: number
  /** Over all scores of both sides. */
  minReward: number
  meanReward: number
  maxReward: number
}

/** Scores of the two completions of each pair. */
export function rewardMetrics(chosen: ArrayLike<number>, rejected: ArrayLike<number>): RewardMetrics {
  const margins = Array.from(chosen, (c, i) => c - rejected[i]!)
  const all = [...Array.from(chosen), ...Array.from(rejected)]
  return {
    accuracy: mean(margins.map((m) => (m > 0 ? 1 : 0))),
    margin: mean(margins),
    minReward: all.reduce((a, b) => Math.min(a, b)),
    meanReward: mean(all),
    maxReward: all.reduce((a, b) => Math.max(a, b)),
  }
}

/** One bin of a reliability diagram; its means are NaN where it is empty. */
export interface ReliabilityBin {
  bin: number
  count: number
  meanProbability: number
  /** How often what was given that probability was so. */
  frequency: number
}

export interface Calibration {
  /** Of p = σ(score A − score B) against "A was preferred". */
  ece: number
  reliability: ReliabilityBin[]
  /** Of max(p, 1 − p) against "the more probable side was preferred". */
  eceConfidence: number
  reliabilityConfidence: ReliabilityBin[]
  /** Mean (p − y)². */
  brier: number
  /** Mean −log of the probability given to what was preferred. */
  nll: number
  /** Share of the pairs whose more probable side was preferred. */
  accuracy: number
}

/** Equal bins of [0, 1]. */
export const CALIBRATION_BINS = 10

function reliability(probabilities: readonly number[], outcomes: readonly number[]): ReliabilityBin[] {
  const binOf = probabilities.map((p) => Math.min(Math.floor(p * CALIBRATION_BINS), CALIBRATION_BINS - 1))
  return Array.from({ length: CALIBRATION_BINS }, (_, bin) => {
    const inside = (values: readonly number[]) => values.filter((_, i) => binOf[i] === bin)
    const given = inside(probabilities)
    return { bin, count: given.length, meanProbability: mean(given), frequency: mean(inside(outcomes)) }
  })
}

/** Σ_b (n_b / N) · |frequency − mean probability| */
function calibrationError(bins: readonly ReliabilityBin[]): number {
  const total = bins.reduce((n, { count }) => n + count, 0)
  return bins
    .filter(({ count }) => count > 0)
    .reduce((sum, b) => sum + (b.count / total) * Math.abs(b.frequency - b.meanProbability), 0)
}

/** Scores of two completions A and B of each prompt, and whether A was preferred (1 or 0). */
export function calibrate(
  scoresA: ArrayLike<number>,
  scoresB: ArrayLike<number>,
  prefersA: ArrayLike<number>,
): Calibration {
  const leads = Array.from(scoresA, (a, i) => a - scoresB[i]!)
  const outcomes = Array.from(prefersA)
  const probabilities = leads.map((x) => 1 / (1 + Math.exp(-x)))
  const agrees = leads.map((x, i) => ((outcomes[i] ? x > 0 : x < 0) ? 1 : 0))
  const byProbability = reliability(probabilities, outcomes)
  const byConfidence = reliability(
    probabilities.map((p) => Math.max(p, 1 - p)),
    agrees,
  )
  return {
    ece: calibrationError(byProbability),
    reliability: byProbability,
    eceConfidence: calibrationError(byConfidence),
    reliabilityConfidence: byConfidence,
    brier: mean(probabilities.map((p, i) => (p - outcomes[i]!) ** 2)),
    // −log σ(±x)
    nll: mean(leads.map((x, i) => softplus(outcomes[i] ? -x : x))),
    accuracy: mean(agrees),
  }
}

/**
 * The position of the last real token, where a sequence's score is read. The attention mask decides, not the ids: the
 * padding token may be a real one too, such as an end token.
 * @throws where no token is real
 */
export function lastRealIndex(attentionMask: ArrayLike<number>): number {
  for (let i = attentionMask.length - 1; i >= 0; i--) if (attentionMask[i]) return i
  throw new Error('no token of the sequence is real: there is nowhere to read its score')
}
