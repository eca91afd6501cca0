// Rewards from a reward model: an adapter with a scalar head over the run's own base, read at the last real token.
import { groupByTokens, packDocuments } from '../evaluate.js'
import { lastTokenRows } from '../objectives/reward.js'
import type { MicroBatch } from '../program.js'
import type { Scorer } from '../scorer.js'
import type { RewardSource } from './reward.js'

/** The scalar at the last token of each sequence, in packs of at most `size` sequences and `maxTokens`. */
export async function scoreSequences(
  scorer: { score(batch: MicroBatch): Promise<Float32Array> },
  sequences: readonly ArrayLike<number>[],
  most: { readonly maxTokens: number; readonly size: number },
  onProgress?: (done: number) => void,
): Promise<Float32Array> {
  const scores = new Float32Array(sequences.length)
  let at = 0
  for (const group of groupByTokens(sequences, ({ length }) => length, most.maxTokens, most.size)) {
    const batch = packDocuments(group.map((ids) => ({ ids, labels: new Int32Array(ids.length).fill(-100) })))
    scores.set(await scorer.score(lastTokenRows(batch)), at)
    at += group.length
    onProgress?.(at)
  }
  return scores
}

export interface ModelRewardOptions {
  readonly name: string
  readonly weight: number
  readonly scorer: Scorer
  readonly most: { readonly maxTokens: number; readonly size: number }
}

export function modelReward({ name, weight, scorer, most }: ModelRewardOptions): RewardSource {
  return {
    name,
    weight,
    score: async (_, ids) => Array.from(await scoreSequences(scorer, ids, most)),
    close: () => scorer.close(),
  }
}
