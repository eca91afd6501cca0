// REINFORCE leave-one-out (arXiv 2402.14740): one ratio for a whole completion.
import { definePolicyLoss } from './policy-loss.js'
import { clippedSurrogate } from './surrogate.js'

export const rloo = definePolicyLoss({
  summary: 'clipped surrogate of whole completions, with the leave-one-out baseline',
  level: 'sum',
  tokenLoss: clippedSurrogate,
  // Every token of a completion holds its value
  weight: (length, { rows }) => 1 / (rows * Math.max(1, length)),
  emptyRowLoss: (advantage, { rows }) => -advantage / rows, // its ratio is 1
})
