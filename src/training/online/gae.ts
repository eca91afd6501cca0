// Generalised advantage estimation (arXiv 1506.02438) over ragged completions; nothing follows the last token.

export interface GaeOptions {
  readonly gamma: number
  readonly lambda: number
}

// δ_t = r_t + γ V_{t+1} − V_t, A_t = δ_t + γ λ A_{t+1}, returns = A + V
export function generalizedAdvantages(
  rewards: ArrayLike<number>,
  values: ArrayLike<number>,
  starts: ArrayLike<number>,
  { gamma, lambda }: GaeOptions,
): { advantages: Float64Array; returns: Float64Array } {
  const advantages = new Float64Array(rewards.length)
  const returns = new Float64Array(rewards.length)
  for (let i = 0; i + 1 < starts.length; i++) {
    let nextAdvantage = 0
    let nextValue = 0
    for (let t = starts[i + 1]! - 1; t >= starts[i]!; t--) {
      const delta = rewards[t]! + gamma * nextValue - values[t]!
      nextAdvantage = delta + gamma * lambda * nextAdvantage
      nextValue = values[t]!
      advantages[t] = nextAdvantage
      returns[t] = nextAdvantage + values[t]!
    }
  }
  return { advantages, returns }
}
