// What a token loss declares (stop 8): a graph of the log-probabilities. The compiler differentiates it, and where the
// incoming gradient turns out not to depend on them, computes the logits once for loss and gradient.
import type { Value } from '../../compiler/graph.js'

export interface TokenLoss {
  readonly summary: string
  /** logps [M] of the labelled rows and their weights [M] -> scalar. */
  build(logps: Value, weights: Value): Value
}

export const defineLoss = (loss: TokenLoss): TokenLoss => loss
