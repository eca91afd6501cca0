// DAPO (arXiv 2503.14476): a mean over the tokens of the whole accumulated step.
import { definePolicyLoss } from './policy-loss.js'
import { clippedSurrogate } from './surrogate.js'

export const dapo = definePolicyLoss({
  summary: 'clipped surrogate, a mean over all tokens of the accumulated step',
  tokenLoss: clippedSurrogate,
  weight: (_, { tokens }) => 1 / Math.max(1, tokens),
})
