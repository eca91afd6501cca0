// LUSPO: sums over completions, without a division by their length.
import { definePolicyLoss } from './policy-loss.js'
import { clippedSurrogate } from './surrogate.js'

export const luspo = definePolicyLoss({
  summary: 'clipped surrogate, summed over each completion and meant over completions',
  tokenLoss: clippedSurrogate,
  weight: (_, { rows }) => 1 / rows,
})
