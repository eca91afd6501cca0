// Texts that end a generation: found across token borders, and what may still become one is held back.

export interface StopMatcher {
  /** Text that is safe to give out; nothing more comes once a stop string was found. */
  push(text: string): string
  /** What was held back, when no more text comes. */
  end(): string
  readonly isFound: boolean
}

/** The longest suffix of `text` that begins one of `stops`. */
function heldLength(text: string, stops: readonly string[]): number {
  let longest = 0
  for (const stop of stops)
    for (let length = Math.min(stop.length - 1, text.length); length > longest; length--)
      if (stop.startsWith(text.slice(text.length - length))) longest = length
  return longest
}

export function createStopMatcher(stops: readonly string[] = []): StopMatcher {
  if (stops.includes('')) throw new Error('an empty stop string would end every text at once: leave it out')
  let held = ''
  let isFound = false
  return {
    push(text) {
      if (isFound) return ''
      const all = held + text
      const found = stops.map((stop) => all.indexOf(stop)).filter((at) => at >= 0)
      if (found.length > 0) {
        isFound = true
        held = ''
        return all.slice(0, Math.min(...found))
      }
      const safe = all.length - heldLength(all, stops)
      held = all.slice(safe)
      return all.slice(0, safe)
    },
    end() {
      const rest = held
      held = ''
      return rest
    },
    get isFound() {
      return isFound
    },
  }
}
