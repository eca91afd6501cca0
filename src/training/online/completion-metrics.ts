// What the text of a step looks like: lengths, and the signs of a policy that has learned to please a reward and no one
// else (repetition, empty or endless answers).

import { mean } from '../statistics.js'
import type { SampledCompletion } from './rollout.js'

/** Distinct bigrams over all bigrams of the completions (Li et al. 2016, distinct-2); NaN without any. */
export function distinct2(completions: readonly Pick<SampledCompletion, 'completionIds'>[]): number {
  const seen = new Set<number>()
  let total = 0
  for (const { completionIds } of completions) {
    for (let i = 0; i + 1 < completionIds.length; i++) {
      seen.add(completionIds[i]! * 2 ** 24 + completionIds[i + 1]!)
      total++
    }
  }
  return seen.size / total
}

/** Share of the bigrams of each completion that it has had before, meant over completions of two tokens and more. */
export function repetition(completions: readonly Pick<SampledCompletion, 'completionIds'>[]): number {
  const shares = completions.flatMap((completion) => {
    const own = distinct2([completion])
    return Number.isNaN(own) ? [] : [1 - own]
  })
  return shares.length > 0 ? mean(shares) : 0
}

/** Under TRL's names. */
export function completionMetrics(completions: readonly SampledCompletion[]): Record<string, number> {
  const lengths = completions.map(({ completionIds }) => completionIds.length)
  const ended = completions.flatMap(({ finishReason, completionIds }) =>
    finishReason === 'stop' ? completionIds.length : [],
  )
  return {
    'completions/meanLength': mean(lengths),
    'completions/minLength': Math.min(...lengths),
    'completions/maxLength': Math.max(...lengths),
    'completions/clippedRatio': 1 - ended.length / lengths.length,
    ...(ended.length > 0 ? { 'completions/meanTerminatedLength': mean(ended) } : {}),
    'completions/distinct2': distinct2(completions),
    'completions/repetition': repetition(completions),
  }
}
