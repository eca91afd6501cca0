// Completions as micro-batches: prompt and completion of each as one document, the completion's tokens as targets.
import { packDocuments } from '../evaluate.js'
import type { MicroBatch } from '../program.js'
import type { SampledCompletion } from './rollout.js'

/** One micro-batch of the completions named, in that order. */
export function batchOf(completions: readonly SampledCompletion[], members: readonly number[]): MicroBatch {
  return packDocuments(
    members.map((index) => {
      const { promptIds, completionIds } = completions[index]!
      const ids = Int32Array.of(...promptIds, ...completionIds)
      const labels = new Int32Array(ids.length).fill(-100)
      labels.set(completionIds, promptIds.length - 1) // where each is predicted
      return { ids, labels, row: index }
    }),
  )
}

/** Cuts a list into micro-batches of at most `size` completions and `maxTokens` tokens. */
export function cutBatches(
  completions: readonly SampledCompletion[],
  members: readonly number[],
  most: { readonly size: number; readonly maxTokens: number },
): number[][] {
  const batches: number[][] = []
  let tokens = 0
  for (const index of members) {
    const { promptIds, completionIds } = completions[index]!
    const length = promptIds.length + completionIds.length
    const last = batches.at(-1)
    if (last && last.length < most.size && tokens + length <= most.maxTokens) {
      last.push(index)
      tokens += length
    } else {
      batches.push([index])
      tokens = length
    }
  }
  return batches
}

/** Values of the completions named, from values of all. */
export function pick(values: Float32Array, starts: Int32Array, members: readonly number[]): Float32Array {
  const parts = members.map((index) => values.subarray(starts[index]!, starts[index + 1]!))
  const picked = new Float32Array(parts.reduce((n, part) => n + part.length, 0))
  let at = 0
  for (const part of parts) {
    picked.set(part, at)
    at += part.length
  }
  return picked
}

/** A value of each token of all completions [Σ lengths], through `score` in micro-batches. */
export async function scoreCompletions(
  completions: readonly SampledCompletion[],
  starts: Int32Array,
  most: { readonly size: number; readonly maxTokens: number },
  score: (batch: MicroBatch) => Promise<Float32Array>,
): Promise<Float32Array> {
  const values = new Float32Array(starts.at(-1)!)
  const all = completions.map((_, index) => index)
  for (const members of cutBatches(completions, all, most)) {
    values.set(await score(batchOf(completions, members)), starts[members[0]!]!)
  }
  return values
}
