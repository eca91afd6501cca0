// Where drafts for speculative decoding come from: guesses at the next tokens, which one decode step then verifies.

/** A sequence that wants a draft. */
export interface DraftRequest {
  /** Number of the sequence. */
  readonly sequence: number
  /** Prompt and generated tokens; grows between calls, what is there does not change. */
  readonly tokens: readonly number[]
  /** Tokens at most. */
  readonly max: number
}

export interface Draft {
  readonly ids: readonly number[]
  /** How much speaks for it, such as the length of a match: acceptance is counted by it. */
  readonly evidence: number
}

export interface DraftSource {
  readonly name: string
  /** Whether a draft costs time worth counting: such a source is asked only for as many tokens as pay. */
  readonly isFree: boolean
  /** One draft or none for every request, in one call so that a source may run a program over all of them. */
  propose(requests: readonly DraftRequest[]): readonly (Draft | null)[] | Promise<readonly (Draft | null)[]>
  /** Forgets a sequence. */
  release(sequence: number): void
  close?(): void | Promise<void>
}
