// Quantiles of document lengths, for reports and `espalier plan`.

export interface LengthQuantiles {
  min: number
  p5: number
  p25: number
  p50: number
  p75: number
  p95: number
  p99: number
  max: number
  mean: number
}

/** Nearest-rank quantiles; zeros for no lengths. */
export function lengthQuantiles(lengths: Int32Array): LengthQuantiles {
  const sorted = lengths.slice().sort()
  const at = (share: number): number =>
    sorted.length === 0 ? 0 : sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)]!
  let sum = 0
  for (const length of sorted) sum += length
  return {
    min: at(0),
    p5: at(0.05),
    p25: at(0.25),
    p50: at(0.5),
    p75: at(0.75),
    p95: at(0.95),
    p99: at(0.99),
    max: at(1),
    mean: sorted.length === 0 ? 0 : sum / sorted.length,
  }
}
