// The space in which reward heads compare two completions: features on one scale, projected on the directions in which completions
// differ most. The few hundred leading components hold what the heads can learn from some hundred answers; the thousand features
// that are left only blur where the heads are unsure.
import { setImmediate } from 'node:timers/promises'
import { CounterRandom, permutation } from '../../data/index.js'
import { addScaled, dot } from './vectors.js'

export interface FeatureSpaceOptions {
  /**
   * Most components; fewer where the completions do not vary in so many directions. Default 320: in the simulation over the valence
   * pairs 256 to 320 need the fewest labels, 400 and all features more.
   */
  readonly maxComponents?: number | undefined
  readonly seed?: number | undefined
  readonly signal?: AbortSignal | undefined
  /** Passes over the sample done and in all. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
}

/** Completions that the components are found from; more change them little. */
const SAMPLE = 1024
/** Each multiplies the ratio of two eigenvalues once more into what the basis has too much of the smaller one. */
const ITERATIONS = 3
/** Of the longest row: less is rounding, of float32 features under the square that a covariance is. */
const RANK_TOLERANCE = 1e-10
/** Vectors between two pauses in which others have their turn. */
const CHUNK = 16

/** What linear heads see of pairs of completions, by the same projection for all. */
export class FeatureSpace {
  /** Components by features, each divided by its scale: C rows of [F]. */
  readonly #projection: readonly Float64Array[]

  private constructor(projection: readonly Float64Array[]) {
    this.#projection = projection
  }

  get numComponents(): number {
    return this.#projection.length
  }

  /**
   * From the features [F] of many completions. Each feature is divided by its standard deviation and by √F, so that one prior suits
   * any base; one that does not vary counts 0. The components are the leading eigenvectors of the covariance of a sample, by
   * randomized subspace iteration (Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, algorithm 4.4).
   */
  static async fit(features: readonly Float32Array[], options: FeatureSpaceOptions = {}): Promise<FeatureSpace> {
    const { maxComponents = 320, seed = 0, signal, onProgress } = options
    const width = features[0]?.length ?? 0
    const { means, scales } = momentsOf(features, width)
    const sample = Array.from(permutation(features.length, seed, 'annotate/sample').subarray(0, SAMPLE), (i) =>
      Float64Array.from(features[i]!, (x, f) => (x - means[f]!) * scales[f]!),
    )
    const count = Math.min(maxComponents, width, sample.length)
    const random = new CounterRandom(seed, 'annotate/components')
    // Random combinations of the sample: what it has no part in is not there.
    const mixtures = Array.from({ length: count }, () => sample.map(() => random.nextNormal()))
    let basis = await orthonormalized(await combined(mixtures, sample, signal), signal)
    for (let iteration = 0; iteration < ITERATIONS; iteration++) {
      onProgress?.(iteration, ITERATIONS)
      const parts = await projected(basis, sample, signal)
      basis = await orthonormalized(await combined(parts, sample, signal), signal)
    }
    onProgress?.(ITERATIONS, ITERATIONS)
    return new FeatureSpace(basis.map((component) => component.map((x, f) => x * scales[f]!)))
  }

  /** Of every pair the features of the first less those of the second, in this space: [C]. */
  async differences(
    pairs: readonly (readonly [Float32Array, Float32Array])[],
    signal?: AbortSignal | undefined,
  ): Promise<Float32Array[]> {
    const vectors = pairs.map(([first, second]) => Float64Array.from(first, (x, f) => x - second[f]!))
    const parts = await projected(this.#projection, vectors, signal)
    return pairs.map((_, i) => Float32Array.from(parts, (part) => part[i]!))
  }
}

/** Mean of each feature, and 1 / (standard deviation · √F), 0 where it does not vary. */
function momentsOf(features: readonly Float32Array[], width: number): { means: Float64Array; scales: Float64Array } {
  const means = new Float64Array(width)
  const squares = new Float64Array(width)
  for (const vector of features) {
    for (let f = 0; f < width; f++) {
      means[f]! += vector[f]! / features.length
      squares[f]! += vector[f]! ** 2 / features.length
    }
  }
  const scales = squares.map((square, f) => {
    const variance = square - means[f]! ** 2
    return variance > 1e-12 ? 1 / Math.sqrt(variance * width) : 0
  })
  return { means, scales }
}

async function pause(index: number, signal: AbortSignal | undefined): Promise<void> {
  if (index % CHUNK !== 0) return
  await setImmediate()
  signal?.throwIfAborted()
}

/** Inner products of each of K rows with each of N vectors: K rows of [N]. */
async function projected(
  rows: readonly Float64Array[],
  vectors: readonly Float64Array[],
  signal: AbortSignal | undefined,
): Promise<Float64Array[]> {
  const parts: Float64Array[] = []
  for (const [k, row] of rows.entries()) {
    await pause(k, signal)
    parts.push(Float64Array.from(vectors, (vector) => dot(row, vector)))
  }
  return parts
}

/** K sums of N vectors, with the weights of a row [N] each. */
async function combined(
  weights: readonly ArrayLike<number>[],
  vectors: readonly Float64Array[],
  signal: AbortSignal | undefined,
): Promise<Float64Array[]> {
  const sums: Float64Array[] = []
  for (const [k, row] of weights.entries()) {
    await pause(k, signal)
    const sum = new Float64Array(vectors[0]!.length)
    for (const [i, vector] of vectors.entries()) addScaled(sum, row[i]!, vector)
    sums.push(sum)
  }
  return sums
}

/** An orthonormal basis of what the rows span, by Gram–Schmidt, each row twice (Giraud et al., 2005: twice is enough). */
async function orthonormalized(
  rows: readonly Float64Array[],
  signal: AbortSignal | undefined,
): Promise<Float64Array[]> {
  const basis: Float64Array[] = []
  const longest = Math.sqrt(rows.reduce((most, row) => Math.max(most, dot(row, row)), 0))
  for (const [k, row] of rows.entries()) {
    await pause(k, signal)
    for (let pass = 0; pass < 2; pass++) for (const unit of basis) addScaled(row, -dot(unit, row), unit)
    const left = Math.sqrt(dot(row, row))
    if (left > RANK_TOLERANCE * longest) basis.push(row.map((x) => x / left))
  }
  return basis
}
