// Drafts from the text itself: what followed the last time that its newest tokens occurred (prompt lookup, after
// https://github.com/apoorvumang/prompt-lookup-decoding). The longest match wins, of equal ones the latest; without a
// match there is no draft. Every n-gram is indexed once, so a proposal takes constant time on average.
import type { Draft, DraftRequest, FreeSource } from './source.js'

/** Lengths of the n-grams that are indexed, longest first; a match is extended backwards from the longest found. */
const gramLengths = [8, 4, 2] as const
/** A longer match says no more. */
const longestMatch = 32

interface LookupIndex {
  /** Tokens whose n-grams are indexed: those that something follows. */
  indexed: number
  /** By n-gram length: hash of the n-gram -> where the token after its latest occurrence lies. */
  readonly grams: readonly Map<number, number>[]
}

/** Hash of tokens [end − n, end); below 2^53, and occurrences are compared, so that a collision is no match. */
function hashGram(tokens: readonly number[], end: number, n: number): number {
  let low = 0x811c9dc5
  let high = 0x2545f491
  for (let i = end - n; i < end; i++) {
    low = Math.imul(low ^ tokens[i]!, 0x01000193)
    high = Math.imul((high ^ tokens[i]!) + 0x7f4a7c15, 0x85ebca6b)
  }
  return (low >>> 0) * 2 ** 21 + (high >>> 11)
}

function grow(index: LookupIndex, tokens: readonly number[]): void {
  for (let end = index.indexed + 1; end < tokens.length; end++)
    gramLengths.forEach((n, i) => {
      if (end >= n) index.grams[i]!.set(hashGram(tokens, end, n), end)
    })
  index.indexed = Math.max(index.indexed, tokens.length - 1)
}

/** Tokens before `end` that equal those at the end of the text. */
function matchLength(tokens: readonly number[], end: number): number {
  let length = 0
  while (length < longestMatch && length < end && tokens[end - 1 - length] === tokens[tokens.length - 1 - length])
    length++
  return length
}

function lookUp(index: LookupIndex, tokens: readonly number[], max: number): Draft | null {
  let best = { at: 0, length: 0 }
  for (const [i, n] of gramLengths.entries()) {
    if (tokens.length <= n || best.length >= n) continue
    const at = index.grams[i]!.get(hashGram(tokens, tokens.length, n))
    if (at === undefined) continue
    const length = matchLength(tokens, at)
    if (length >= n && length > best.length) best = { at, length }
  }
  if (best.length === 0) return null
  const ids: number[] = []
  // A text that repeats itself goes on into its own draft.
  for (let i = 0; i < max; i++) {
    const from = best.at + i
    ids.push(from < tokens.length ? tokens[from]! : ids[from - tokens.length]!)
  }
  return { ids, evidence: best.length }
}

type LookupRequest = Pick<DraftRequest, 'sequence' | 'tokens' | 'max'>

export interface PromptLookup extends FreeSource {
  propose(requests: readonly LookupRequest[]): readonly (Draft | null)[]
}

export function createPromptLookup(): PromptLookup {
  const indices = new Map<number, LookupIndex>()
  const propose = ({ sequence, tokens, max }: LookupRequest): Draft | null => {
    let index = indices.get(sequence)
    if (!index) {
      index = { indexed: 0, grams: gramLengths.map(() => new Map<number, number>()) }
      indices.set(sequence, index)
    }
    grow(index, tokens)
    return max > 0 ? lookUp(index, tokens, max) : null
  }
  return {
    name: 'prompt-lookup',
    kind: 'free',
    propose: (requests) => requests.map(propose),
    release: (sequence) => {
      indices.delete(sequence)
    },
  }
}
