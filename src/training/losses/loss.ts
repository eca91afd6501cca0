// What a token loss declares (stop 8).

export interface TokenLoss {
  readonly summary: string
  /**
   * d loss / d logp is known before the forward pass (it does not depend on the log-probabilities), so that the
   * head may compute logits once for loss and gradient.
   */
  readonly isLinear: boolean
  /** Loss from the log-probabilities of M labelled rows and their weights. */
  value(logps: ArrayLike<number>, weights: ArrayLike<number>): number
  /** d value / d logps → [M]. */
  dLogps(logps: ArrayLike<number>, weights: ArrayLike<number>): Float32Array
}

export const defineLoss = (loss: TokenLoss): TokenLoss => loss
