// Where drafts for speculative decoding come from: guesses at the next tokens, which one decode step then verifies.
import type { Batch } from '../batch.js'
import type { Drawn } from '../executor.js'
import type { Sampling } from '../sampling.js'

/** A sequence that wants a draft. */
export interface DraftRequest {
  /** Number of the sequence. */
  readonly sequence: number
  /** Prompt and generated tokens; grows between calls, what is there does not change. */
  readonly tokens: readonly number[]
  /** Tokens at most. */
  readonly max: number
  /** Where its keys and values lie: those of all tokens but the last. */
  readonly blocks: readonly number[]
  /** Adapter slot; −1: the base. */
  readonly slot: number
  readonly sampling: Sampling
}

export interface Draft {
  readonly ids: readonly number[]
  /** How much speaks for it, such as the length of a match: acceptance is counted by it. */
  readonly evidence: number
}

/** What all sources are. */
interface Source {
  readonly name: string
  /** Forgets a sequence. */
  release(sequence: number): void
  close?(): void | Promise<void>
}

/** A source that reads its drafts off the text: they cost no time worth counting. */
export interface FreeSource extends Source {
  readonly kind: 'free'
  /** One draft or none for every request. */
  propose(requests: readonly DraftRequest[]): readonly (Draft | null)[]
}

/** A source that computes its drafts, one program for all sequences: it is asked for as many tokens as pay. */
export interface ComputedSource extends Source {
  readonly kind: 'computed'
  /** Ways to draft, such as numbers of layers; which one pays best is measured. */
  readonly variants: readonly number[]
  /** Whether it writes keys and values of its drafts into the sequences' blocks, which are made ready before. */
  readonly writesCache: boolean
  propose(requests: readonly DraftRequest[], variant: number): Promise<readonly (Draft | null)[]>
}

export type DraftSource = FreeSource | ComputedSource

/** A decoder of the first layers of the model, over the engine's cache and adapters. */
export interface PartialDecoder {
  /** Draws behind every row, as the engine's decode runs do. */
  run(batch: Batch): Promise<Drawn>
  close(): void
}

/** What the engine lends to a source that computes. */
export interface DraftHost {
  readonly numLayers: number
  openDecoder(layers: number): Promise<PartialDecoder>
}
