// Linear reward heads over the differences of completions' features: Bayesian logistic regression of "the first is better". One
// head says what is thought, and draws from the posterior say how sure that is.
import { setImmediate } from 'node:timers/promises'
import { CholeskyDecomposition, Matrix } from 'ml-matrix'
import { CounterRandom } from '../../data/index.js'
import { softplus } from '../statistics.js'
import { addScaled, dot } from './vectors.js'

/** What was said of a pair: 1 the first is better, 0 the second, ½ a tie. */
export type PairTarget = number

export interface EnsembleOptions {
  /** Heads beside the mean head; 0 where only its scores are wanted. Default 128: a deviation is then known to 6 %. */
  readonly numHeads?: number | undefined
  /**
   * Standard deviation of a weight under the prior, for features scaled as FeatureSpace does: of the margin of a pair of unrelated
   * completions it is about √2 times as much. Default 2: in the simulation over the valence pairs, 3 gains less.
   */
  readonly priorDeviation?: number | undefined
  readonly seed?: number | undefined
}

/** What the ensemble thinks of a pair: the mean head's margin and the standard deviation of the heads' margins about it. */
export interface Judgement {
  readonly margin: number
  readonly deviation: number
}

const MAX_NEWTON_STEPS = 50
/** The last of Newton's steps is expected to lower the loss by less than half of it: what is left then is of its square. */
const TOLERANCE = 1e-4

const sigmoid = (margin: number): number => 1 / (1 + Math.exp(-margin))

export class RewardEnsemble {
  readonly #precision: number
  /** Standard normal draws, a column per head [F, heads]; the same at each fit, so that heads move no more than the posterior. */
  readonly #draws: Matrix
  /** The posterior's mode [F]. */
  #weights: Float64Array
  /** A draw from the posterior less its mode, per head [F]. */
  #deviations: Float64Array[]

  constructor(numFeatures: number, options: EnsembleOptions = {}) {
    const { numHeads = 128, priorDeviation = 2, seed = 0 } = options
    if (!(priorDeviation > 0)) throw new Error(`priorDeviation must be positive, not ${priorDeviation}`)
    this.#precision = 1 / priorDeviation ** 2
    this.#weights = new Float64Array(numFeatures)
    this.#draws = Matrix.zeros(numFeatures, numHeads)
    for (let k = 0; k < numHeads; k++) {
      const random = new CounterRandom(seed, 'annotate/heads', k)
      for (let f = 0; f < numFeatures; f++) this.#draws.set(f, k, random.nextNormal())
    }
    this.#deviations = columnsOf(Matrix.mul(this.#draws, priorDeviation))
  }

  /**
   * Fits all heads to the labelled pairs. The mean head minimises Σ [log(1 + exp mᵢ) − tᵢ·mᵢ] + ½·‖θ‖²/σ² with m = D·θ, by Newton's
   * method; the others are draws from the Laplace approximation of the posterior, θ ~ N(mode, H⁻¹) with H the Hessian of that loss
   * there (Bishop, "Pattern recognition and machine learning", section 4.5.1). Others have their turn between two steps: a screen
   * answers keys meanwhile.
   * @param differences one [F] per pair
   * @throws where the search does not end, which it does for finite features
   */
  async fit(
    differences: readonly Float32Array[],
    targets: readonly PairTarget[],
    signal?: AbortSignal | undefined,
  ): Promise<void> {
    if (differences.length !== targets.length)
      throw new Error(`${differences.length} pairs and ${targets.length} targets; there must be as many`)
    for (let i = 0; i < MAX_NEWTON_STEPS; i++) {
      await setImmediate()
      signal?.throwIfAborted()
      const { gradient, hessian } = this.#derivatives(differences, targets)
      const factor = new CholeskyDecomposition(hessian)
      const step = factor.solve(Matrix.columnVector(gradient)).to1DArray()
      const isLower = this.#descend(step, differences, targets)
      if (dot(gradient, step) >= TOLERANCE && isLower) continue
      // H⁻¹·L·z has the covariance H⁻¹·L·Lᵀ·H⁻¹ = H⁻¹.
      if (this.#draws.columns > 0)
        this.#deviations = columnsOf(factor.solve(factor.lowerTriangularMatrix.mmul(this.#draws)))
      return
    }
    throw new Error(`reward heads over ${differences.length} pairs have not converged after ${MAX_NEWTON_STEPS} steps`)
  }

  /** Takes a step of the mean head, or the first of its halves that raises the loss no more. @returns whether there is one */
  #descend(step: readonly number[], differences: readonly Float32Array[], targets: readonly PairTarget[]): boolean {
    const loss = this.#loss(this.#weights, differences, targets)
    for (let rate = 1; rate > 1e-6; rate /= 2) {
      const next = this.#weights.slice()
      addScaled(next, -rate, step)
      if (this.#loss(next, differences, targets) <= loss) {
        this.#weights = next
        return true
      }
    }
    return false // in this precision
  }

  #loss(weights: Float64Array, differences: readonly Float32Array[], targets: readonly PairTarget[]): number {
    let loss = 0.5 * this.#precision * dot(weights, weights)
    for (const [i, difference] of differences.entries()) {
      const margin = dot(difference, weights)
      loss += softplus(margin) - targets[i]! * margin
    }
    return loss
  }

  #derivatives(differences: readonly Float32Array[], targets: readonly PairTarget[]) {
    const weights = this.#weights
    const gradient = weights.map((weight) => this.#precision * weight)
    const rows = differences.map((difference, i) => {
      const p = sigmoid(dot(difference, weights))
      addScaled(gradient, p - targets[i]!, difference)
      const root = Math.sqrt(p * (1 - p))
      return Array.from(difference, (x) => root * x)
    })
    const hessian = rows.length > 0 ? new Matrix(rows).gram() : Matrix.zeros(weights.length, weights.length)
    return { gradient, hessian: hessian.add(Matrix.eye(weights.length).mul(this.#precision)) }
  }

  /** Margin of a pair by the mean head. */
  margin(difference: Float32Array): number {
    return dot(difference, this.#weights)
  }

  /**
   * How much each head's margin differs from the mean head's, divided by the root of their number: the inner product of two pairs'
   * spreads is the covariance of their margins. [heads]
   * @throws where the ensemble has fewer than two heads: one cannot disagree
   */
  spread(difference: Float32Array): Float64Array {
    const count = this.#deviations.length
    if (count < 2) throw new Error(`an ensemble of ${count} heads has no disagreement`)
    return Float64Array.from(this.#deviations, (deviation) => dot(difference, deviation) / Math.sqrt(count))
  }

  /** @throws as `spread` */
  judge(difference: Float32Array): Judgement {
    const spread = this.spread(difference)
    return { margin: this.margin(difference), deviation: Math.sqrt(dot(spread, spread)) }
  }
}

const columnsOf = (matrix: Matrix): Float64Array[] =>
  Array.from({ length: matrix.columns }, (_, k) => Float64Array.from(matrix.getColumn(k)))
