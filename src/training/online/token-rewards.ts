// Rewards of tokens from scores of completions (Ziegler et al. 2019): the score at the last token, the divergence at each.

/** The score, less the penalty where the completion never ended. */
export const penalised = (score: number, hasEnded: boolean, missingEosPenalty: number): number =>
  hasEnded ? score : score - missingEosPenalty

/** −coefficient · kl of every token, and the score at the last one of each completion. */
export function tokenRewards(
  kl: ArrayLike<number>,
  starts: ArrayLike<number>,
  scores: ArrayLike<number>,
  coefficient: number,
): Float64Array {
  const rewards = Float64Array.from(kl, (value) => -coefficient * value)
  for (let i = 0; i + 1 < starts.length; i++) {
    if (starts[i + 1]! > starts[i]!) rewards[starts[i + 1]! - 1]! += scores[i]!
  }
  return rewards
}
