// How sure a metric over rows is: percentile intervals of the bootstrap (Efron 1979), rows drawn with replacement; a difference
// is drawn in pairs, the same rows for both sides (Koehn 2004). Deterministic for a seed.
import { CounterRandom } from '../data/index.js'

/** What a row adds to a metric: the metric is the sum of sums over the sum of weights. */
export interface RowShare {
  readonly sum: number
  readonly weight: number
}

export interface Estimate {
  readonly value: number
  /** The interval that holds the value with 95 % confidence. */
  readonly low: number
  readonly high: number
}

export interface BootstrapOptions {
  readonly seed: number
  /** Draws; default 2,000. */
  readonly samples?: number
  /** From the quotient to the metric, for example exp for a perplexity. */
  readonly transform?: (quotient: number) => number
}

const SAMPLES = 2000
const LEVEL = 0.95

function quantile(sorted: Float64Array, share: number): number {
  const at = share * (sorted.length - 1)
  const below = Math.floor(at)
  const above = Math.min(below + 1, sorted.length - 1)
  return sorted[below]! + (at - below) * (sorted[above]! - sorted[below]!)
}

/** `statistic` of all rows and its interval; it is given the rows of a draw by index. */
function estimate(count: number, statistic: (rows: ArrayLike<number>) => number, options: BootstrapOptions): Estimate {
  const { seed, samples = SAMPLES } = options
  const rows = Int32Array.from({ length: count }, (_, i) => i)
  const value = statistic(rows)
  if (count === 0) return { value, low: Number.NaN, high: Number.NaN }
  const random = new CounterRandom(seed, 'bootstrap')
  const drawn = new Float64Array(samples)
  for (let s = 0; s < samples; s++) {
    for (let i = 0; i < count; i++) rows[i] = Math.floor((random.nextUint32() / 2 ** 32) * count)
    drawn[s] = statistic(rows)
  }
  drawn.sort()
  return { value, low: quantile(drawn, (1 - LEVEL) / 2), high: quantile(drawn, (1 + LEVEL) / 2) }
}

function quotient(shares: readonly RowShare[], rows: ArrayLike<number>, transform = (x: number) => x): number {
  let sum = 0
  let weight = 0
  for (let i = 0; i < rows.length; i++) {
    const share = shares[rows[i]!]!
    sum += share.sum
    weight += share.weight
  }
  return transform(sum / weight)
}

export function bootstrap(shares: readonly RowShare[], options: BootstrapOptions): Estimate {
  return estimate(shares.length, (rows) => quotient(shares, rows, options.transform), options)
}

/** `to` minus `from`, both over the same rows. */
export function bootstrapDifference(
  from: readonly RowShare[],
  to: readonly RowShare[],
  options: BootstrapOptions,
): Estimate {
  if (from.length !== to.length)
    throw new Error(`a paired difference needs the same rows: ${from.length} and ${to.length} are given`)
  const { transform } = options
  return estimate(from.length, (rows) => quotient(to, rows, transform) - quotient(from, rows, transform), options)
}
