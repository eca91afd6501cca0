// The completions of one step with their scores and log-probabilities, ragged: token values of all completions lie end to
// end, `starts[i]` … `starts[i + 1]` those of completion i.
import type { Score } from '../rewards/reward.js'
import type { SampledCompletion } from './rollout.js'

export interface ScoredBatch {
  readonly completions: readonly SampledCompletion[]
  /** [B + 1] */
  readonly starts: Int32Array
  /** By completion, one entry per reward source; null: not scored. */
  readonly scores: readonly (readonly Score[])[]
  /** Of the policy that sampled, at the sampling temperature, recomputed by the training step's arithmetic. */
  readonly logps: Float32Array
  readonly refLogps: Float32Array | null
  /** Of the value model, where there is one. */
  readonly values: Float32Array | null
}

export function startsOf(completions: readonly Pick<SampledCompletion, 'completionIds'>[]): Int32Array {
  const starts = new Int32Array(completions.length + 1)
  for (const [i, { completionIds }] of completions.entries()) starts[i + 1] = starts[i]! + completionIds.length
  return starts
}
