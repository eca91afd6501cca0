// What is measured of policy updates beside the loss: how far the policy has moved, and what was clipped. Means over the
// tokens that count, of all completions together.
import { mean } from './statistics.js'

export interface PolicyMove {
  /** E[−d], E[½ d²], E[e^d − 1 − d] with d = log π − log π_old. */
  approxKlK1: number
  approxKlK2: number
  approxKlK3: number
  ratioMean: number
  ratioVariance: number
  /** |w − 1| beyond the range. */
  ratioOutsideFraction: number
}

export function policyMove(logps: ArrayLike<number>, oldLogps: ArrayLike<number>, clipRange: number): PolicyMove {
  const moves = Array.from(logps, (logp, i) => logp - oldLogps[i]!)
  const ratios = moves.map(Math.exp)
  const ratioMean = mean(ratios)
  return {
    approxKlK1: mean(moves.map((d) => -d)),
    approxKlK2: mean(moves.map((d) => 0.5 * d * d)),
    approxKlK3: mean(moves.map((d) => Math.expm1(d) - d)),
    ratioMean,
    ratioVariance: mean(ratios.map((w) => (w - ratioMean) ** 2)),
    ratioOutsideFraction: mean(ratios.map((w) => (Math.abs(w - 1) > clipRange ? 1 : 0))),
  }
}

/** Share of the tokens whose clipped term is strictly the larger loss. */
export function policyClipFraction(
  ratios: ArrayLike<number>,
  advantages: ArrayLike<number>,
  epsilonLow: number,
  epsilonHigh: number,
): number {
  return mean(
    Array.from(ratios, (w, i) => {
      const clipped = Math.max(1 - epsilonLow, Math.min(1 + epsilonHigh, w))
      return -advantages[i]! * clipped > -advantages[i]! * w ? 1 : 0
    }),
  )
}

/** Share of the values whose clipped move has strictly the larger error. */
export function valueClipFraction(
  values: ArrayLike<number>,
  oldValues: ArrayLike<number>,
  returns: ArrayLike<number>,
  clipRange: number,
): number {
  return mean(
    Array.from(values, (value, i) => {
      const old = oldValues[i]!
      const clipped = Math.max(old - clipRange, Math.min(old + clipRange, value))
      return (clipped - returns[i]!) ** 2 > (value - returns[i]!) ** 2 ? 1 : 0
    }),
  )
}

/** GRPO's: clipped below with a negative advantage, above with a positive one; each ratio counted once per entry. */
export function clipRatios(
  ratios: ArrayLike<number>,
  advantages: ArrayLike<number>,
  epsilonLow: number,
  epsilonHigh: number,
): { low: number; high: number; region: number } {
  const share = (test: (w: number, a: number) => boolean) =>
    mean(Array.from(ratios, (w, i) => (test(w, advantages[i]!) ? 1 : 0)))
  const low = share((w, a) => w < 1 - epsilonLow && a < 0)
  const high = share((w, a) => w > 1 + epsilonHigh && a > 0)
  return { low, high, region: low + high }
}

/** CISPO's: ratios above the cap with a positive advantage. */
export function cappedRatio(ratios: ArrayLike<number>, advantages: ArrayLike<number>, cap: number): number {
  return mean(Array.from(ratios, (w, i) => (w > cap && advantages[i]! > 0 ? 1 : 0)))
}
