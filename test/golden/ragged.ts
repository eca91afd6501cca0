// Padded arrays of the reference values as the ragged ones that our code takes, and back.
export interface Ragged {
  /** [rows + 1] */
  starts: number[]
  lengths: number[]
}

/** Of a mask [rows][columns] whose ones come first. */
export function raggedOf(mask: readonly (readonly number[])[]): Ragged {
  const lengths = mask.map((row) => row.reduce((sum, x) => sum + x, 0))
  const starts = [0]
  for (const length of lengths) starts.push(starts.at(-1)! + length)
  return { starts, lengths }
}

/** The entries under the mask, row by row. */
export const pack = (padded: readonly (readonly number[])[], { lengths }: Ragged): number[] =>
  padded.flatMap((row, i) => row.slice(0, lengths[i]))

/** Membership [rows, tokens], row by row. */
export function membershipOf({ starts, lengths }: Ragged): number[] {
  const tokens = starts.at(-1)!
  return lengths.flatMap((_, q) =>
    Array.from({ length: tokens }, (_, m) => (m >= starts[q]! && m < starts[q + 1]! ? 1 : 0)),
  )
}

/** A value of each row, for each of its tokens. */
export const spread = (values: readonly number[], { lengths }: Ragged): number[] =>
  values.flatMap((value, q) => new Array<number>(lengths[q]!).fill(value))
