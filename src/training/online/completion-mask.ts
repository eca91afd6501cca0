// Where a completion ends: with its first end token, whatever was sampled after it.

/** Tokens up to and including the first end token; all of them, and not ended, where there is none. */
export function endOf(ids: ArrayLike<number>, endId: number): { length: number; hasEnded: boolean } {
  for (let i = 0; i < ids.length; i++) if (ids[i] === endId) return { length: i + 1, hasEnded: true }
  return { length: ids.length, hasEnded: false }
}
