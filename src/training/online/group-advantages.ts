// Advantages against a prompt's own group of completions: GRPO (arXiv 2402.03300) and leave-one-out (arXiv 2402.14740).
import { deviation, mean } from '../statistics.js'

/** What a deviation is measured over: each group, all rows, or nothing; or each reward by itself, then all rows. */
export const rewardScalings = ['group', 'batch', 'none', 'normalize_then_sum'] as const
export type RewardScaling = (typeof rewardScalings)[number]

/** One entry per reward function; null: not scored. */
export type RewardRow = readonly (number | null)[]

const epsilon = 1e-4

function statistics(values: readonly number[]): { mean: number; deviation: number } {
  const known = values.filter((x) => !Number.isNaN(x))
  return { mean: mean(known), deviation: deviation(known) }
}

/** Σ w_f R_f over the functions that scored; NaN where none did. */
export function combineRewards(rows: readonly RewardRow[], weights: readonly number[]): number[] {
  return rows.map((row) => {
    const scored = row.flatMap((reward, f) => (reward === null ? [] : [weights[f]! * reward]))
    return scored.length === 0 ? Number.NaN : scored.reduce((a, b) => a + b, 0)
  })
}

/** Runs of `size` consecutive rows. */
const groupsOf = (count: number, size: number) =>
  Array.from({ length: Math.ceil(count / size) }, (_, g) => [g * size, Math.min(count, (g + 1) * size)] as const)

export interface GroupAdvantages {
  /** Weighted sums [B]; NaN: not scored. */
  readonly rewards: number[]
  /** [B]; 0 for rows that were not scored and groups without variance. */
  readonly advantages: number[]
  /** Of each group. */
  readonly means: number[]
  readonly deviations: number[]
}

/**
 * A = r − mean of the group, divided as `scaling` says by a deviation + 1e-4.
 * @param rows of each completion, a prompt's `size` completions side by side
 */
export function groupAdvantages(
  rows: readonly RewardRow[],
  weights: readonly number[],
  size: number,
  scaling: RewardScaling,
): GroupAdvantages {
  const rewards = combineRewards(rows, weights)
  const groups = groupsOf(rows.length, size)
  const byGroup = groups.map(([from, to]) => statistics(rewards.slice(from, to)))
  const means = byGroup.map(({ mean }) => mean)
  const deviations = byGroup.map(({ deviation }) => deviation)
  const groupOf = (row: number) => Math.floor(row / size)
  let advantages: number[]
  if (scaling === 'normalize_then_sum') {
    const normalised = rows.map((row) => row.map((): number | null => null))
    for (const f of weights.keys()) {
      for (const [from, to] of groups) {
        const column = rows.slice(from, to).map((row) => row[f] ?? Number.NaN)
        const { mean, deviation } = statistics(column)
        for (const [i, x] of column.entries())
          if (!Number.isNaN(x)) normalised[from + i]![f] = (x - mean) / (deviation + epsilon)
      }
    }
    const sums = combineRewards(normalised, weights)
    const { mean, deviation } = statistics(sums)
    advantages = sums.map((x) => (x - mean) / (deviation + epsilon))
  } else {
    const all = statistics(rewards).deviation
    const divisor = (row: number) =>
      scaling === 'none' ? 1 : (scaling === 'group' ? deviations[groupOf(row)]! : all) + epsilon
    advantages = rewards.map((reward, row) => (reward - means[groupOf(row)]!) / divisor(row))
  }
  return { rewards, advantages: advantages.map((a) => (Number.isNaN(a) ? 0 : a)), means, deviations }
}

/**
 * A = reward − mean of the group's other scored rows; 0 where there is none.
 * @param rewards NaN: not scored
 */
export function leaveOneOut(
  rewards: readonly number[],
  size: number,
  options: { normalizeAdvantages: boolean },
): { baselines: number[]; advantages: number[] } {
  const baselines = rewards.map(() => Number.NaN)
  for (const [from, to] of groupsOf(rewards.length, size)) {
    const known = rewards.slice(from, to).filter((x) => !Number.isNaN(x))
    const sum = known.reduce((a, b) => a + b, 0)
    for (let i = from; i < to; i++)
      if (!Number.isNaN(rewards[i]!) && known.length > 1) baselines[i] = (sum - rewards[i]!) / (known.length - 1)
  }
  const raw = rewards.map((reward, i) => reward - baselines[i]!)
  if (!options.normalizeAdvantages) return { baselines, advantages: raw.map((a) => (Number.isNaN(a) ? 0 : a)) }
  const { mean, deviation } = statistics(raw)
  const advantages = raw.map((a) => (Number.isNaN(a) ? 0 : (a - mean) / (deviation + epsilon)))
  return { baselines, advantages }
}
