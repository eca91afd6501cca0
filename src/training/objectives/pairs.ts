// What objectives over pairs share: which labelled rows belong to which side of which pair. Documents come in twos,
// the chosen one first.
import { type MicroBatch, targetsOf } from '../program.js'

/** Inputs of the graph, f32: rows of each side as matrices [P, M], completion tokens [P]. */
export const pairInputs = {
  chosenRows: 'chosenRows',
  rejectedRows: 'rejectedRows',
  chosenLengths: 'chosenLengths',
  rejectedLengths: 'rejectedLengths',
} as const

/** The labelled rows of both sides of the pairs of one micro-batch; M rows, documents d = 2 p and 2 p + 1 of pair p. */
export interface PairRows {
  readonly pairs: number
  /** First row of each document, and M last [2 P + 1]. */
  readonly starts: Int32Array
  /** Rows of each document that predict prompt tokens: they come first [2 P]. */
  readonly prompts: Int32Array
  /** Rows of each document that predict its completion [2 P]. */
  readonly lengths: Int32Array
}

export function pairRows(batch: MicroBatch): PairRows {
  const documents = batch.cuSeqlens.length - 1
  const { rows } = targetsOf(batch)
  const starts = new Int32Array(documents + 1)
  const prompts = new Int32Array(documents)
  const lengths = new Int32Array(documents)
  for (let d = 0, m = 0; d < documents; d++) {
    for (; m < rows.length && rows[m]! < batch.cuSeqlens[d + 1]!; m++) {
      if (batch.labels[rows[m]!]! < 0) prompts[d]!++
      else lengths[d]!++
    }
    starts[d + 1] = m
  }
  return { pairs: documents / 2, starts, prompts, lengths }
}

/** The membership matrices [P, M] with `weightOf(document, index)` for row `index` of a document, 1 by default. */
export function membership(
  { pairs, starts }: PairRows,
  weightOf: (document: number, index: number) => number = () => 1,
): { chosenRows: Float32Array; rejectedRows: Float32Array } {
  const rows = starts.at(-1)!
  const sides = [new Float32Array(pairs * rows), new Float32Array(pairs * rows)] as const
  for (let d = 0; d < 2 * pairs; d++)
    for (let m = starts[d]!; m < starts[d + 1]!; m++) sides[d & 1]![(d >> 1) * rows + m] = weightOf(d, m - starts[d]!)
  return { chosenRows: sides[0], rejectedRows: sides[1] }
}
