// Proximal policy optimization (arXiv 1707.06347): a mean over all tokens of the step.
import { definePolicyLoss } from './policy-loss.js'
import { clippedSurrogate } from './surrogate.js'

export const ppo = definePolicyLoss({
  summary: 'clipped surrogate, a mean over the tokens of the step',
  level: 'token',
  tokenLoss: clippedSurrogate,
  weight: (_, { tokens }) => 1 / tokens,
})
