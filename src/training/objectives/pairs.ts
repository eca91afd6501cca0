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

/** Both sides of the pairs of one micro-batch, over its M labelled rows. */
export interface PairRows {
  readonly pairs: number
  /** First and end row of each document, [2 P + 1]: those of document d are `starts[d]` … `starts[d + 1]`. */
  readonly starts: Int32Array
}

export function pairRows(batch: MicroBatch): PairRows {
  const documents = batch.cuSeqlens.length - 1
  const { rows } = targetsOf(batch)
  const starts = new Int32Array(documents + 1)
  let document = 0
  for (const [m, row] of rows.entries()) while (row >= batch.cuSeqlens[document + 1]!) starts[++document] = m
  while (document < documents) starts[++document] = rows.length
  return { pairs: documents / 2, starts }
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

/** Sums of the rows' values by side, [P] each, with the same weights. */
export function sumByPair(
  { pairs, starts }: PairRows,
  values: Float32Array,
  weightOf: (document: number, index: number) => number = () => 1,
): { chosen: Float32Array; rejected: Float32Array } {
  const sums = [new Float32Array(pairs), new Float32Array(pairs)] as const
  for (let d = 0; d < 2 * pairs; d++) {
    let sum = 0
    for (let m = starts[d]!; m < starts[d + 1]!; m++) sum += weightOf(d, m - starts[d]!) * values[m]!
    sums[d & 1]![d >> 1] = sum
  }
  return { chosen: sums[0], rejected: sums[1] }
}
