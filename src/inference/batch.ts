// The rows of one run, laid out for the leaves of a graph over the paged cache: tokens, block tables, and for every
// token to be drawn its sampling options, penalties and mask.
import type { Sampling } from './sampling.js'
import type { PrefillChunk, Sequence } from './scheduler.js'

/** A token whose logit changes: how often it occurs in the sequence, and among its generated tokens. */
export interface LogitEdit {
  readonly token: number
  readonly count: number
  readonly generated: number
  readonly bias: number
}

/** A token to be drawn behind row `row`. */
export interface Draw {
  readonly row: number
  /** Of the drawn token: with the seed it keys the noise. */
  readonly position: number
  readonly sampling: Sampling
  readonly edits: readonly LogitEdit[]
  readonly allowed: Int32Array | null
}

export interface Batch {
  readonly ids: number[]
  readonly positions: number[]
  /** Index into `tables`, by row. */
  readonly sequences: number[]
  /** Adapter slot by row. */
  readonly slots: number[]
  readonly tables: (readonly number[])[]
  readonly draws: Draw[]
}

const emptyBatch = (): Batch => ({ ids: [], positions: [], sequences: [], slots: [], tables: [], draws: [] })

/** How often each token occurs in a sequence; empty where no penalty asks for it. */
export interface TokenCounts {
  readonly all: Map<number, number>
  readonly generated: Map<number, number>
}

const increase = (counts: Map<number, number>, token: number, by: number) => {
  const count = (counts.get(token) ?? 0) + by
  if (count === 0) counts.delete(token)
  else counts.set(token, count)
}

export function countTokens(sampling: Sampling, promptIds: ArrayLike<number>): TokenCounts {
  const counts: TokenCounts = { all: new Map(), generated: new Map() }
  if (sampling.repetitionPenalty !== 1)
    for (let i = 0; i < promptIds.length; i++) increase(counts.all, promptIds[i]!, 1)
  return counts
}

/** Counts a generated token, or takes it back with `by` = −1. */
export function countGenerated(counts: TokenCounts, sampling: Sampling, token: number, by: 1 | -1 = 1): void {
  if (sampling.repetitionPenalty !== 1) increase(counts.all, token, by)
  if (sampling.frequencyPenalty !== 0 || sampling.presencePenalty !== 0) increase(counts.generated, token, by)
}

export function logitEdits(counts: TokenCounts, { logitBias }: Sampling): LogitEdit[] {
  const tokens = new Set([...counts.all.keys(), ...counts.generated.keys(), ...logitBias.keys()])
  return Array.from(tokens, (token) => ({
    token,
    count: counts.all.get(token) ?? 0,
    generated: counts.generated.get(token) ?? 0,
    bias: logitBias.get(token) ?? 0,
  }))
}

/** What a batch must know about a sequence beside the scheduler's data. */
export interface Drawing {
  readonly sampling: Sampling
  readonly counts: TokenCounts
}

/** A mask is valid until the next call only. */
const maskOf = (sampling: Sampling): Int32Array | null => sampling.constraint?.allowed()?.slice() ?? null

const drawFor = ({ sampling, counts }: Drawing, row: number, position: number): Draw => ({
  row,
  position,
  sampling,
  edits: logitEdits(counts, sampling),
  allowed: maskOf(sampling),
})

/** Rows of prompt chunks; the samples of a prompt that ends all draw behind its last row. */
export function prefillBatch(
  chunks: readonly PrefillChunk[],
  drawingOf: (sequence: Sequence) => Drawing | null,
): { batch: Batch; drawn: Sequence[] } {
  const batch = emptyBatch()
  const drawn: Sequence[] = []
  for (const { sequence, from, to, samples } of chunks) {
    for (let position = from; position < to; position++) pushRow(batch, sequence, sequence.tokens[position]!, position)
    batch.tables.push(sequence.blocks)
    for (const sample of samples) {
      const drawing = drawingOf(sample)
      if (!drawing) continue
      batch.draws.push(drawFor(drawing, batch.ids.length - 1, to))
      drawn.push(sample)
    }
  }
  return { batch, drawn }
}

function pushRow(batch: Batch, sequence: Sequence, token: number, position: number): void {
  batch.ids.push(token)
  batch.positions.push(position)
  batch.sequences.push(batch.tables.length)
  batch.slots.push(sequence.slot)
}

/**
 * Rows of decoding: each sequence's last token and its drafts, a token drawn behind every one. Drafts that a constraint
 * forbids are dropped from the sequence.
 */
export function decodeBatch(sequences: readonly Sequence[], drawingOf: (sequence: Sequence) => Drawing | null): Batch {
  const batch = emptyBatch()
  for (const sequence of sequences) {
    const drawing = drawingOf(sequence)
    if (!drawing) continue
    const { sampling, counts } = drawing
    const { constraint } = sampling
    const first = sequence.tokens.length
    const draw = (position: number) => batch.draws.push(drawFor(drawing, batch.ids.length - 1, position))
    pushRow(batch, sequence, sequence.tokens.at(-1)!, first - 1)
    draw(first)
    let taken = 0
    for (const draft of sequence.drafts) {
      // What is drawn before it can only be what the mask allows.
      if (!isAllowed(batch.draws.at(-1)!.allowed, draft)) break
      constraint?.accept(draft)
      countGenerated(counts, sampling, draft)
      pushRow(batch, sequence, draft, first + taken)
      taken++
      draw(first + taken)
    }
    if (taken > 0) constraint?.rollback(taken)
    for (let i = 0; i < taken; i++) countGenerated(counts, sampling, sequence.drafts[i]!, -1)
    if (taken < sequence.drafts.length) sequence.drafts = sequence.drafts.slice(0, taken)
    batch.tables.push(sequence.blocks)
  }
  return batch
}

const isAllowed = (mask: Int32Array | null, token: number): boolean =>
  mask === null || ((mask[token >> 5]! >>> (token & 31)) & 1) === 1
