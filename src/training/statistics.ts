// Small statistics that stages and metrics share.

/** Arithmetic mean; of nothing `ifEmpty`. */
export function mean(values: ArrayLike<number>, ifEmpty = Number.NaN): number {
  let sum = 0
  for (let i = 0; i < values.length; i++) sum += values[i]!
  return values.length > 0 ? sum / values.length : ifEmpty
}

/** Standard deviation of a sample (divided by n − 1); of one value 0, of nothing NaN. */
export function deviation(values: ArrayLike<number>): number {
  if (values.length < 2) return values.length === 1 ? 0 : Number.NaN
  const centre = mean(values)
  let squares = 0
  for (let i = 0; i < values.length; i++) squares += (values[i]! - centre) ** 2
  return Math.sqrt(squares / (values.length - 1))
}

/** log(1 + eˣ) = −log σ(−x), without overflow. */
export const softplus = (x: number): number => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)))
