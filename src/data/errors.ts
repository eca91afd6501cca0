// The error that everything here throws about data: it names the place (file:line, file row n, or dataset row n) and says
// what to do next, so that a caller may print the message as it is.

/** A row, file or option that cannot be used. `place` is for example `train.jsonl:17`; the message begins with it. */
export class DataError extends Error {
  readonly place: string

  constructor(place: string, problem: string, options?: ErrorOptions) {
    super(`${place}: ${problem}`, options)
    this.name = 'DataError'
    this.place = place
  }
}

/** The message of whatever was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** A short, one-line form of a value for messages. */
export function brief(value: unknown, maxLength = 80): string {
  let text: string
  try {
    text = typeof value === 'string' ? JSON.stringify(value) : (JSON.stringify(value) ?? String(value))
  } catch {
    text = String(value)
  }
  return text.length > maxLength ? `${text.slice(0, maxLength - 1)}…` : text
}

/** Levenshtein distance; small strings only. Serves the hints about misspelt column names. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    }
    row = next
  }
  return row[b.length]!
}

/** The candidate nearest to `word`, if one is near enough to be what was meant. */
export function nearest(word: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined
  let bestDistance = Math.max(2, Math.floor(word.length / 3)) + 1
  for (const candidate of candidates) {
    if (Math.abs(candidate.length - word.length) >= bestDistance || candidate.length > 64) continue
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase())
    if (distance < bestDistance) {
      best = candidate
      bestDistance = distance
    }
  }
  return best
}
