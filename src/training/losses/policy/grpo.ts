// Group relative policy optimization (arXiv 2402.03300): the mean of each completion first, then over completions.
import { definePolicyLoss } from './policy-loss.js'
import { clippedSurrogate } from './surrogate.js'

export const grpo = definePolicyLoss({
  summary: 'clipped surrogate, a mean over each completion and then over completions',
  tokenLoss: clippedSurrogate,
  weight: (length, { rows }) => 1 / (rows * Math.max(1, length)),
})
