// Reward heads that are refitted in a fraction of a second, and how far they disagree: linear Bradley–Terry models over frozen
// features. The mean head is the posterior mode under a Gaussian prior. Each of the others is fitted to a bootstrap of the labels
// (exponential weights: Newton and Raftery, "Approximate Bayesian inference with the weighted likelihood bootstrap", 1994) and is
// held to a random draw of the prior (Osband et al., "Randomized prior functions for deep reinforcement learning", 2018), so that
// the heads agree where labels speak and differ where none do.
import { setImmediate } from 'node:timers/promises'
import { CounterRandom } from '../../data/index.js'
import { deviation, softplus } from '../statistics.js'
import { dot, minimize } from './minimize.js'

/** What was said of a pair: 1 the first is better, 0 the second, ½ a tie. */
export type PairTarget = number

export interface EnsembleOptions {
  /** Heads beside the mean head; 0 where only its scores are wanted. Default 16. */
  readonly numHeads?: number | undefined
  /**
   * Standard deviation of a weight under the prior, for features scaled as scaleFeatures does: of the margin of a pair of unrelated
   * completions it is √2 times as much. Default 2: in the simulation over the valence pairs, 3 gains less.
   */
  readonly priorDeviation?: number | undefined
  readonly seed?: number | undefined
}

/** What the ensemble thinks of a pair: the mean head's margin and the standard deviation of the heads' margins. */
export interface Judgement {
  readonly margin: number
  readonly deviation: number
}

/**
 * Completions' features [F] divided by the standard deviation that each has over all of them and by √F, so that one prior suits any
 * base. Features that do not vary become 0.
 */
export function scaleFeatures(features: readonly Float32Array[]): Float32Array[] {
  const width = features[0]?.length ?? 0
  const scales = new Float64Array(width)
  for (let i = 0; i < width; i++) {
    let sum = 0
    let squares = 0
    for (const vector of features) {
      sum += vector[i]!
      squares += vector[i]! ** 2
    }
    const variance = squares / features.length - (sum / features.length) ** 2
    scales[i] = variance > 1e-12 ? 1 / Math.sqrt(variance * width) : 0
  }
  return features.map((vector) => vector.map((x, i) => x * scales[i]!))
}

/** What a linear head sees of a pair: features of the first less those of the second. */
export const differenceOf = (first: Float32Array, second: Float32Array): Float32Array =>
  first.map((x, i) => x - second[i]!)

interface Head {
  weights: Float64Array // [F]
  /** Where the prior is centred [F]. */
  readonly centre: Float64Array
  /** Weight of label i; draws of its own stream, so that a label keeps its weight while others are added. */
  readonly weightOf: (label: number) => number
}

export class RewardEnsemble {
  readonly #mean: Head
  readonly #heads: Head[]
  readonly #precision: number

  constructor(numFeatures: number, options: EnsembleOptions = {}) {
    const { numHeads = 16, priorDeviation = 2, seed = 0 } = options
    if (!(priorDeviation > 0)) throw new Error(`priorDeviation must be positive, not ${priorDeviation}`)
    this.#precision = 1 / priorDeviation ** 2
    this.#mean = { weights: new Float64Array(numFeatures), centre: new Float64Array(numFeatures), weightOf: () => 1 }
    this.#heads = Array.from({ length: numHeads }, (_, k) => {
      const prior = new CounterRandom(seed, 'annotate/prior', k)
      const centre = new Float64Array(numFeatures).map(() => priorDeviation * prior.nextNormal())
      const bootstrap = new CounterRandom(seed, 'annotate/bootstrap', k)
      const drawn: number[] = []
      return {
        weights: centre.slice(),
        centre,
        weightOf(label) {
          while (drawn.length <= label) drawn.push(-Math.log(1 - bootstrap.nextFloat()))
          return drawn[label]!
        },
      }
    })
  }

  /**
   * Fits all heads to the labelled pairs, from where they are: add new labels behind the old ones.
   * Minimises Σ wᵢ·[log(1 + exp mᵢ) − tᵢ·mᵢ] + ½·‖θ − centre‖²/σ² with m = D·θ, by L-BFGS. Others have their turn between two
   * heads: a screen answers keys meanwhile.
   */
  async fit(
    differences: readonly Float32Array[],
    targets: readonly PairTarget[],
    signal?: AbortSignal | undefined,
  ): Promise<void> {
    if (differences.length !== targets.length)
      throw new Error(`${differences.length} pairs and ${targets.length} targets; there must be as many`)
    for (const head of [this.#mean, ...this.#heads]) {
      await setImmediate()
      signal?.throwIfAborted()
      this.#fitHead(head, differences, targets)
    }
  }

  #fitHead(head: Head, differences: readonly Float32Array[], targets: readonly PairTarget[]): void {
    const precision = this.#precision
    const { centre } = head
    const labelWeights = targets.map((_, i) => head.weightOf(i))
    head.weights = minimize(head.weights, (weights, gradient) => {
      let loss = 0
      for (let f = 0; f < weights.length; f++) {
        const away = weights[f]! - centre[f]!
        loss += 0.5 * precision * away * away
        gradient[f] = precision * away
      }
      for (let i = 0; i < differences.length; i++) {
        const difference = differences[i]!
        const margin = dot(difference, weights)
        loss += labelWeights[i]! * (softplus(margin) - targets[i]! * margin)
        // d/dm = σ(m) − t
        const slope = labelWeights[i]! * (1 / (1 + Math.exp(-margin)) - targets[i]!)
        for (let f = 0; f < weights.length; f++) gradient[f] = gradient[f]! + slope * difference[f]!
      }
      return loss
    })
  }

  /** Margin of a pair by the mean head; of one completion's features its reward, of which only differences mean something. */
  margin(difference: Float32Array): number {
    return dot(difference, this.#mean.weights)
  }

  /** @throws where the ensemble has fewer than two heads: one cannot disagree */
  judge(difference: Float32Array): Judgement {
    if (this.#heads.length < 2) throw new Error(`an ensemble of ${this.#heads.length} heads has no disagreement`)
    const margins = this.#heads.map(({ weights }) => dot(difference, weights))
    return { margin: this.margin(difference), deviation: deviation(margins) }
  }
}
