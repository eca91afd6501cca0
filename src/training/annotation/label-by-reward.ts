// AI feedback: a reward source (a rule in TypeScript, a judge model) answers instead of a person, and the log says so. It scores both
// answers of a pair; the one with more is the better.
import type { Comparison, EncodeContext } from '../../data/index.js'
import { encodeComparison, readableText } from '../../data/index.js'
import { openRewards } from '../rewards/index.js'
import type { Completion, Score } from '../rewards/reward.js'
import { type RewardInput, rewardSpecSchema } from '../stages/online-schema.js'
import type { Annotator } from './annotator.js'
import type { Label } from './log.js'

export interface LabelByRewardOptions {
  readonly annotator: Annotator
  /** A function or a judge, as the rewards of a recipe say it. */
  readonly reward: RewardInput
  readonly context: EncodeContext
  /** Most answers to add; default all that are left. */
  readonly labels?: number | undefined
  /** Answers between two choices of what to ask. Default: 2 % of the pairs, at least 16. */
  readonly labelsPerRound?: number | undefined
  readonly signal: AbortSignal
  readonly onProgress?: ((done: number, total: number) => void) | undefined
}

/** null: the source says nothing of one of them. */
export function labelOf(first: Score, second: Score): Label {
  if (first === null || second === null) return 'skip'
  return first === second ? 'tie' : first > second ? 'first' : 'second'
}

function completionsOf(comparison: Comparison, context: EncodeContext): { seen: Completion[]; ids: Int32Array[] } {
  const documents = encodeComparison(comparison, context)
  const prompt = readableText(comparison.prompt)
  const seen = [comparison.first, comparison.second].map((side, i): Completion => {
    const { inputIds, completionStart } = documents[i]!
    const tokens = inputIds.length - completionStart
    const row = { prompt: comparison.prompt, completion: side }
    return { prompt, completion: readableText(side), tokens, finishReason: 'stop', row, place: comparison.place }
  })
  return { seen, ids: documents.map(({ inputIds }) => inputIds) }
}

/** The source, and what the log says of who answered: `judge:MODEL` or `rule:NAME`. */
async function openLabeller(reward: RewardInput) {
  const spec = rewardSpecSchema.parse(reward)
  const open = () => Promise.reject(new Error('a reward model does not annotate: pairs that it learns from come first'))
  const [source] = await openRewards([spec], { open, most: { maxTokens: 0, size: 0 } })
  return { source: source!, by: 'judge' in spec ? `judge:${spec.judge.model}` : `rule:${source!.name}` }
}

/**
 * Answers until there are enough. What was answered before a failure stays in the log, and going on asks the rest.
 * @returns how many were added
 * @throws RewardError where the reward fails
 */
export async function labelByReward(options: LabelByRewardOptions): Promise<number> {
  const { annotator, context, signal, onProgress } = options
  const { source, by } = await openLabeller(options.reward)
  const total = Math.min(options.labels ?? Number.POSITIVE_INFINITY, annotator.status.left)
  const perRound = options.labelsPerRound ?? Math.max(16, Math.round(0.02 * annotator.comparisons.length))
  let done = 0
  while (done < total) {
    signal.throwIfAborted()
    await annotator.settled()
    const round = annotator.nextRound(Math.min(perRound, total - done))
    const asked = round.map((comparison) => completionsOf(comparison, context))
    const began = performance.now()
    const scores = await source.score(
      asked.flatMap(({ seen }) => seen),
      asked.flatMap(({ ids }) => ids),
      signal,
    )
    const seconds = (performance.now() - began) / 1000 / round.length
    for (const [i, comparison] of round.entries())
      annotator.record(comparison, labelOf(scores[2 * i]!, scores[2 * i + 1]!), by, seconds)
    done += round.length
    onProgress?.(done, total)
  }
  return done
}
