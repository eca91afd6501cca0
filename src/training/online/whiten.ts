// Whitening: values to mean 0 and variance 1 (Ziegler et al. 2019; the variance is unbiased).

const epsilon = 1e-8

/** (x − μ) / √(var + 1e-8); with `keepMean` the mean is added back. Fewer than two values stay as they are, less their mean. */
export function whiten(values: ArrayLike<number>, options: { keepMean?: boolean } = {}): Float64Array {
  const n = values.length
  let mean = 0
  for (let i = 0; i < n; i++) mean += values[i]! / n
  let variance = 0
  for (let i = 0; i < n; i++) variance += (values[i]! - mean) ** 2 / Math.max(1, n - 1)
  const scale = n < 2 ? 1 : 1 / Math.sqrt(variance + epsilon)
  const shift = options.keepMean ? mean : 0
  return Float64Array.from(values, (x) => (x - mean) * scale + shift)
}
