// Tokens of the engine → text as it comes: whole characters only, nothing of a stop string.
import type { Tokenizer } from '../data/index.js'
import { createQueue } from './queue.js'
import type { FinishReason, GeneratedToken, TokenStream } from './request.js'
import { createStopMatcher } from './stop-strings.js'

/** A piece of text with the tokens that came since the piece before. */
export interface TextChunk {
  readonly text: string
  readonly tokens: readonly GeneratedToken[]
}

export interface Generation {
  /** Up to the stop string, where one ended it. */
  text: string
  /** All that were sampled, those of a stop string too; a stop token is not among them. */
  tokenIds: number[]
  /** Natural log of each token's probability at temperature 1. */
  logps: number[]
  finishReason: FinishReason
  promptTokens: number
  /** Prompt tokens that were found in the cache. */
  cachedTokens: number
  seconds: number
  tokens: GeneratedToken[]
}

/** Text as it comes; ending the iteration early cancels. `result` is there with or without iterating. */
export interface GenerationStream extends AsyncIterable<TextChunk> {
  readonly result: Promise<Generation>
  cancel(): void
}

/** A sequence that was handed to the engine. */
export interface OpenedSequence {
  readonly tokens: TokenStream
  readonly promptTokens: number
  /** Called once when the sequence is over. */
  release?(): void
}

/** Text of a sequence that is being opened. */
export function streamText(
  tokenizer: Tokenizer,
  stop: readonly string[] | undefined,
  opening: Promise<OpenedSequence>,
): GenerationStream {
  const chunks = createQueue<TextChunk>()
  let stream: TokenStream | undefined
  let isCancelled = false
  const cancel = () => {
    isCancelled = true
    stream?.cancel()
  }
  const run = async (): Promise<Generation> => {
    const started = performance.now()
    const { tokens: source, promptTokens, release } = await opening
    stream = source
    source.finished.catch(() => {}) // a cancelled one rejects; the iteration says so too
    try {
      if (isCancelled) source.cancel()
      const matcher = createStopMatcher(stop)
      const decoder = tokenizer.createDecodeStream()
      const tokens: GeneratedToken[] = []
      let pending: GeneratedToken[] = []
      let text = ''
      const give = (part: string) => {
        if (!part) return
        text += part
        chunks.push({ text: part, tokens: pending })
        pending = []
      }
      for await (const token of source) {
        tokens.push(token)
        pending.push(token)
        give(matcher.push(decoder.push(token.id)))
        if (matcher.isFound) break
      }
      let finishReason: FinishReason = 'stop'
      if (!matcher.isFound) {
        finishReason = await source.finished
        // What is left of a character that never became whole is not given.
        give(matcher.push(decoder.end().replace(/\ufffd+$/, '')))
        if (matcher.isFound) finishReason = 'stop'
        give(matcher.end())
      }
      if (pending.length > 0) chunks.push({ text: '', tokens: pending })
      return {
        text,
        tokenIds: tokens.map(({ id }) => id),
        logps: tokens.map(({ logp }) => logp),
        finishReason,
        promptTokens,
        cachedTokens: source.cachedTokens,
        seconds: (performance.now() - started) / 1000,
        tokens,
      }
    } finally {
      release?.()
    }
  }
  const result = run()
  result.then(
    () => chunks.end(),
    (error) => chunks.end(error),
  )
  return { result, cancel, [Symbol.asyncIterator]: () => chunks.read(cancel) }
}
