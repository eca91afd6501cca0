// Small statistics that stages and metrics share.

/** Arithmetic mean; of nothing `ifEmpty`. */
export function mean(values: ArrayLike<number>, ifEmpty = Number.NaN): number {
  let sum = 0
  for (let i = 0; i < values.length; i++) sum += values[i]!
  return values.length > 0 ? sum / values.length : ifEmpty
}
