// Dr. GRPO (arXiv 2503.20783): divided by a constant, so that the length of a completion does not weigh its tokens.
import { definePolicyLoss } from './policy-loss.js'
import { clippedSurrogate } from './surrogate.js'

export const drGrpo = definePolicyLoss({
  summary: 'clipped surrogate over completions times their largest length',
  tokenLoss: clippedSurrogate,
  weight: (_, { rows, maxCompletionLength }) => 1 / (rows * maxCompletionLength),
})
