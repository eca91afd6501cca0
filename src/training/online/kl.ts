// The divergence from the reference by sampled tokens, and the controller of its weight (Schulman, "Approximating KL
// divergence", 2020; Ziegler et al. 2019).

export const klEstimators = {
  /** log π − log ref: unbiased, of either sign. */
  k1: (logp: number, ref: number) => logp - ref,
  /** e^d − 1 − d with d = log ref − log π: unbiased and never negative. */
  k3: (logp: number, ref: number) => Math.expm1(ref - logp) - (ref - logp),
} as const
export type KlEstimator = keyof typeof klEstimators

/** Of every token. */
export function tokenKl(logps: ArrayLike<number>, refLogps: ArrayLike<number>, estimator: KlEstimator): Float64Array {
  const estimate = klEstimators[estimator]
  return Float64Array.from(logps, (logp, i) => estimate(logp, refLogps[i]!))
}

const errorClip = 0.2

/**
 * The next weight: coefficient · (1 + clip(kl / target − 1, ± 0.2) · n / horizon).
 * @param kl measured, a sum over the tokens of a completion in the mean
 * @param n completions since the last call
 */
export function adaptCoefficient(
  coefficient: number,
  kl: number,
  { target, horizon, n }: { target: number; horizon: number; n: number },
): number {
  const error = Math.min(errorClip, Math.max(-errorClip, kl / target - 1))
  return coefficient * (1 + (error * n) / horizon)
}
