// Batch-normalised GRPO: a mean over the tokens of the step, so that long completions count more than in `grpo`.
import { definePolicyLoss } from './policy-loss.js'
import { clippedSurrogate } from './surrogate.js'

export const bnpo = definePolicyLoss({
  summary: 'clipped surrogate, a mean over the tokens of the step',
  tokenLoss: clippedSurrogate,
  weight: (_, { tokens }) => 1 / Math.max(1, tokens),
})
