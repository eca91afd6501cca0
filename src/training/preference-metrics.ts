// What is measured of preference training beside its loss, under TRL's names: implicit rewards of both sides and their
// log-probabilities, as means over the pairs (or completions) given.
import type { PolicyScore } from './losses/preference/preference-loss.js'
import { mean } from './statistics.js'

/** Completions of one side. */
export interface ScoredCompletions {
  /** Log-probabilities summed over the completion's tokens. */
  readonly logps: ArrayLike<number>
  /** The same under the reference model; null: there is none. */
  readonly refLogps: ArrayLike<number> | null
  /** Tokens of the completions. */
  readonly lengths: ArrayLike<number>
}

/** β(log π − log ref) of each completion, or without a reference β times what the loss makes of log π. */
export function implicitRewards(
  { logps, refLogps, lengths }: ScoredCompletions,
  beta: number,
  score: PolicyScore = (logp) => logp,
): number[] {
  return Array.from(logps, (logp, i) => beta * (refLogps ? logp - refLogps[i]! : score(logp, lengths[i]!)))
}

export type PreferenceMetrics = Record<
  'rewards/chosen' | 'rewards/rejected' | 'rewards/accuracies' | 'rewards/margins' | 'logps/chosen' | 'logps/rejected',
  number
>

/** Rewards and summed log-probabilities of both sides of each pair. */
export function preferenceMetrics(pairs: {
  readonly chosenRewards: ArrayLike<number>
  readonly rejectedRewards: ArrayLike<number>
  readonly chosenLogps: ArrayLike<number>
  readonly rejectedLogps: ArrayLike<number>
}): PreferenceMetrics {
  const margins = Array.from(pairs.chosenRewards, (c, i) => c - pairs.rejectedRewards[i]!)
  return {
    'rewards/chosen': mean(pairs.chosenRewards),
    'rewards/rejected': mean(pairs.rejectedRewards),
    // A tie is no win.
    'rewards/accuracies': mean(margins.map((m) => (m > 0 ? 1 : 0))),
    'rewards/margins': mean(margins),
    'logps/chosen': mean(pairs.chosenLogps),
    'logps/rejected': mean(pairs.rejectedLogps),
  }
}

/** Undefined where a class is absent. */
export type UnpairedMetrics = Record<Exclude<keyof PreferenceMetrics, 'rewards/accuracies'>, number | undefined>

/** The same of single completions; `labels` 1 or true: desirable, which stands for chosen. */
export function unpairedMetrics(completions: {
  readonly rewards: ArrayLike<number>
  readonly logps: ArrayLike<number>
  readonly labels: ArrayLike<number | boolean>
}): UnpairedMetrics {
  const meanOf = (values: ArrayLike<number>, isDesirable: boolean) => {
    const ofClass = Array.from(values).filter((_, i) => Boolean(completions.labels[i]) === isDesirable)
    return ofClass.length > 0 ? mean(ofClass) : undefined
  }
  const chosen = meanOf(completions.rewards, true)
  const rejected = meanOf(completions.rewards, false)
  return {
    'rewards/chosen': chosen,
    'rewards/rejected': rejected,
    'rewards/margins': chosen === undefined || rejected === undefined ? undefined : chosen - rejected,
    'logps/chosen': meanOf(completions.logps, true),
    'logps/rejected': meanOf(completions.logps, false),
  }
}
