// How kernels want packed weights: in stripes of 16 rows (kernels/stripes.h). Files hold whole rows; the addon lays them in
// stripes while it loads a file, this does it for weights that are in memory.

import type { WeightTensor } from '../compiler/ops/weight.js'
import type { StripedRange } from '../runtime/types.js'

/** Rows of a stripe. */
export const STRIPE_ROWS = 16

/** A tensor whose rows consist of units that stay together: words of codes, single scales. */
export type Striping = Pick<StripedRange, 'rows' | 'unitBytes'>

/** How kernels want a tensor of a matrix of so many rows; null: as it is. */
export const stripingOf = ({ stripeUnit }: WeightTensor, rows: number): Striping | null =>
  stripeUnit === 0 ? null : { rows, unitBytes: stripeUnit }

/** [rows][unit] as [stripe][unit][row of the stripe]; the last stripe has the rows that are left. */
export function layInStripes(bytes: Uint8Array, { rows, unitBytes }: Striping): Uint8Array {
  const perRow = bytes.byteLength / rows / unitBytes
  const laid = new Uint8Array(bytes.byteLength)
  for (let first = 0, at = 0; first < rows; first += STRIPE_ROWS) {
    const end = Math.min(rows, first + STRIPE_ROWS)
    for (let unit = 0; unit < perRow; unit++) {
      for (let row = first; row < end; row++, at += unitBytes) {
        const from = (row * perRow + unit) * unitBytes
        laid.set(bytes.subarray(from, from + unitBytes), at)
      }
    }
  }
  return laid
}
