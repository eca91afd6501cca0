// The losses that a stage can name. A loss says what it makes of token log-probabilities; the head op
// (`LinearLogProb`) turns hidden states into those and carries the gradient back.
import { crossEntropy } from './cross-entropy.js'
import type { TokenLoss } from './loss.js'

export const losses = {
  crossEntropy,
} satisfies Record<string, TokenLoss>

export type LossName = keyof typeof losses
export const lossNames = Object.keys(losses) as [LossName, ...LossName[]]
