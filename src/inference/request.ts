// What the engine takes and gives, as plain data: shared by the scheduler, the server, the SDK and the tests.

/** How the next token is chosen. Everything has a default; the defaults are greedy decoding. */
export interface SamplingOptions {
  /** Default: what room the context leaves. */
  readonly maxNewTokens?: number
  /** 0 (default): the likeliest token. */
  readonly temperature?: number
  /** Keep the k likeliest tokens; 0 (default): all. */
  readonly topK?: number
  /** Keep the likeliest tokens that together reach this probability; default 1. */
  readonly topP?: number
  /** Keep tokens at least this share as likely as the likeliest; default 0. */
  readonly minP?: number
  /** Divides positive and multiplies negative logits of tokens already in the sequence (arXiv 1909.05858); default 1. */
  readonly repetitionPenalty?: number
  /** Taken from a token's logit for each time it was generated; default 0. */
  readonly frequencyPenalty?: number
  /** Taken once from the logit of every token that was generated; default 0. */
  readonly presencePenalty?: number
  /** Added to logits, by token id. */
  readonly logitBias?: ReadonlyMap<number, number>
  /** The same seed gives the same text, whatever else runs; default 0. */
  readonly seed?: number
  /** Tokens that end the sequence; they are returned neither as tokens nor as text. */
  readonly stopIds?: readonly number[]
  /** Likeliest alternatives reported with every token, 0 (default) to 20. */
  readonly topLogps?: number
  /** Which tokens may come next. */
  readonly constraint?: TokenConstraint
}

/** A grammar's state beside one sequence. */
export interface TokenConstraint {
  /** Bit i % 32 of word i / 32 says whether token i may come next; null: any may. Valid until the next call. */
  allowed(): Int32Array | null
  /** Moves on by a token that was chosen. */
  accept(id: number): void
  /** Takes back the last `count` tokens (drafts that were not taken). */
  rollback(count: number): void
  /** A fresh state at the beginning, for another sequence. */
  fork(): TokenConstraint
  free(): void
}

export interface EngineRequest {
  readonly promptIds: ArrayLike<number>
  readonly sampling?: SamplingOptions
  /** A loaded adapter by name; null or absent: the base. */
  readonly adapter?: string | null
  /** False: never speculate for this request. Default: when the engine has a draft source. */
  readonly speculate?: boolean
  readonly signal?: AbortSignal
}

export type FinishReason = 'stop' | 'length'

export interface TokenChoice {
  readonly id: number
  /** Natural log of its probability under the model, at temperature 1 and without penalties. */
  readonly logp: number
}

export interface GeneratedToken extends TokenChoice {
  /** The likeliest tokens at this position, best first, where `topLogps` asked for them. */
  readonly top?: readonly TokenChoice[]
}

/** Tokens as they come. Ending the iteration early cancels the sequence; an aborted signal rejects with its reason. */
export interface TokenStream extends AsyncIterable<GeneratedToken> {
  /** Why it ended; rejects when it was cancelled or failed. Resolved or rejected before the iteration ends. */
  readonly finished: Promise<FinishReason>
  /** Prompt tokens that were found in the cache; known from the first token on. */
  readonly cachedTokens: number
  cancel(): void
}

export interface EngineStatistics {
  readonly running: number
  readonly waiting: number
  readonly swapped: number
  readonly blocks: { readonly total: number; readonly used: number; readonly cached: number }
  readonly promptTokens: number
  /** Of these, found in the cache. */
  readonly cachedTokens: number
  readonly generatedTokens: number
  readonly steps: number
  readonly preemptions: number
  readonly drafts: { readonly proposed: number; readonly accepted: number }
}

/** The engine as its users see it. */
export interface TextEngine {
  /** Queues a request; several samples of one prompt are several requests with different seeds, submitted together. */
  submit(request: EngineRequest): TokenStream
  submitMany(requests: readonly EngineRequest[]): TokenStream[]
  statistics(): EngineStatistics
  /** Prompt and generated tokens that one sequence may have. */
  readonly maxSequenceTokens: number
  /** @throws where it does not fit the base, unless a part is enough */
  loadAdapter(name: string, folder: string, options?: { readonly allowPartial?: boolean }): Promise<void>
  /** @throws while a sequence uses it */
  unloadAdapter(name: string): void
  adapters(): readonly string[]
  /** Refuses new requests, lets running ones end. */
  drain(): Promise<void>
  close(): Promise<void>
}
