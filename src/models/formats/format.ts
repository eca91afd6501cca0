// How a weight format is written and read: values become parts and parts values. Which parts a format has is said where
// its ops are (compiler/ops/weight.ts). The record of a format is one file; index.ts lists them.

/** Receives finished bytes of part `part`, to be placed `byteOffset` bytes into it. */
export type PartSink = (part: number, bytes: Uint8Array, byteOffset: number) => void

/** Turns rows of values into parts. Rows come in order, in pieces of whole rows. */
export interface Packer {
  rows(values: Float32Array, firstRow: number): void
  /** Ends the weight; squares of the values and of the differences to what was stored. */
  finish(): PackError
}

export interface PackError {
  sumOfSquares: number
  errorSquares: number
}

export interface WeightFormat {
  name: string
  /** Values per scale; 1 for dense formats. The first is the default. */
  blocks: readonly number[]
  /** Columns must be a multiple of this. */
  columnsMultiple(block: number): number
  /** Absent: the format is read, never written. */
  createPacker?(rows: number, columns: number, block: number, write: PartSink): Packer
  /** Values of rows `from` to `to`; `parts` hold the whole weight. */
  unpack(parts: Uint8Array[], columns: number, block: number, from: number, to: number): Float32Array
}

/** A typed view of bytes, copied only where they are not aligned for it. */
export function viewF32(bytes: Uint8Array): Float32Array {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice()
  return new Float32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength >> 2)
}

export function viewU16(bytes: Uint8Array): Uint16Array {
  const aligned = bytes.byteOffset % 2 === 0 ? bytes : bytes.slice()
  return new Uint16Array(aligned.buffer, aligned.byteOffset, aligned.byteLength >> 1)
}

export function bytesOf(array: Float32Array | Uint16Array | Int8Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength)
}

/** Adding and subtracting this rounds a double below 2^51 to an integer, ties to even. */
export const ROUND = 1.5 * 2 ** 52
