// KTO's estimate of the divergence from the reference: log-ratios of completions behind prompts they do not answer.

/** Pairs prompt i with completion i − 1, the first with the last. @throws where there are fewer than two */
export function rotateCompletions<T>(completions: readonly T[]): T[] {
  if (completions.length < 2) throw new Error('a mismatched completion needs at least two in the micro-batch')
  return [completions.at(-1)!, ...completions.slice(0, -1)]
}

/** max(0, mean(log π − log ref)) over the mismatched completions. */
export function estimateKl(klLogps: ArrayLike<number>, refKlLogps: ArrayLike<number>): number {
  let sum = 0
  for (let i = 0; i < klLogps.length; i++) sum += klLogps[i]! - refKlLogps[i]!
  return Math.max(0, sum / klLogps.length)
}
