// The tensor types of GGUF files: sizes of all of them, so that any file can be listed, and for those we import the
// packed form that holds exactly the same values (ggml/src/ggml-common.h has the block layouts).

export interface GgmlType {
  name: string
  id: number
  blockValues: number
  blockBytes: number
  /** How to import it; absent: listed, not imported. */
  native?: NativeForm
}

/** The weight format with the same values, and the split of consecutive blocks into its parts. */
export interface NativeForm {
  format: string
  block: number
  toParts(bytes: Uint8Array, blocks: number): Uint8Array[]
}

const halves = (count: number) => new Uint8Array(count * 2)

/** Sixteen bytes with element j low and j + 16 high become elements 2i low and 2i + 1 high. */
function repackNibbles(bytes: Uint8Array, from: number, codes: Uint8Array, to: number): void {
  for (let i = 0; i < 8; i++) {
    const even = bytes[from + 2 * i]!
    const odd = bytes[from + 2 * i + 1]!
    codes[to + i] = (even & 15) | ((odd & 15) << 4)
    codes[to + 8 + i] = (even >> 4) | (odd & 0xf0)
  }
}

/** Q4_0: half d, 16 bytes; w = (code − 8)·d. */
function splitQ4_0(bytes: Uint8Array, blocks: number): Uint8Array[] {
  const codes = new Uint8Array(blocks * 16)
  const scales = halves(blocks)
  for (let b = 0, at = 0; b < blocks; b++, at += 18) {
    scales[2 * b] = bytes[at]!
    scales[2 * b + 1] = bytes[at + 1]!
    repackNibbles(bytes, at + 2, codes, b * 16)
  }
  return [codes, scales]
}

/** Q4_1: half d, half m, 16 bytes; w = code·d + m. */
function splitQ4_1(bytes: Uint8Array, blocks: number): Uint8Array[] {
  const codes = new Uint8Array(blocks * 16)
  const scales = halves(blocks)
  const offsets = halves(blocks)
  for (let b = 0, at = 0; b < blocks; b++, at += 20) {
    scales[2 * b] = bytes[at]!
    scales[2 * b + 1] = bytes[at + 1]!
    offsets[2 * b] = bytes[at + 2]!
    offsets[2 * b + 1] = bytes[at + 3]!
    repackNibbles(bytes, at + 4, codes, b * 16)
  }
  return [codes, scales, offsets]
}

/** Q8_0: half d, 32 signed bytes; w = code·d. */
function splitQ8_0(bytes: Uint8Array, blocks: number): Uint8Array[] {
  const codes = new Uint8Array(blocks * 32)
  const scales = halves(blocks)
  for (let b = 0, at = 0; b < blocks; b++, at += 34) {
    scales[2 * b] = bytes[at]!
    scales[2 * b + 1] = bytes[at + 1]!
    codes.set(bytes.subarray(at + 2, at + 34), b * 32)
  }
  return [codes, scales]
}

const whole = (format: string): NativeForm => ({ format, block: 1, toParts: (bytes) => [bytes] })

const types: GgmlType[] = [
  { id: 0, name: 'F32', blockValues: 1, blockBytes: 4, native: whole('f32') },
  { id: 1, name: 'F16', blockValues: 1, blockBytes: 2, native: whole('f16') },
  {
    id: 2,
    name: 'Q4_0',
    blockValues: 32,
    blockBytes: 18,
    native: { format: 'int4sym', block: 32, toParts: splitQ4_0 },
  },
  { id: 3, name: 'Q4_1', blockValues: 32, blockBytes: 20, native: { format: 'int4', block: 32, toParts: splitQ4_1 } },
  { id: 6, name: 'Q5_0', blockValues: 32, blockBytes: 22 },
  { id: 7, name: 'Q5_1', blockValues: 32, blockBytes: 24 },
  { id: 8, name: 'Q8_0', blockValues: 32, blockBytes: 34, native: { format: 'int8', block: 32, toParts: splitQ8_0 } },
  { id: 9, name: 'Q8_1', blockValues: 32, blockBytes: 36 },
  { id: 10, name: 'Q2_K', blockValues: 256, blockBytes: 84 },
  { id: 11, name: 'Q3_K', blockValues: 256, blockBytes: 110 },
  { id: 12, name: 'Q4_K', blockValues: 256, blockBytes: 144 },
  { id: 13, name: 'Q5_K', blockValues: 256, blockBytes: 176 },
  { id: 14, name: 'Q6_K', blockValues: 256, blockBytes: 210 },
  { id: 15, name: 'Q8_K', blockValues: 256, blockBytes: 292 },
  { id: 16, name: 'IQ2_XXS', blockValues: 256, blockBytes: 66 },
  { id: 17, name: 'IQ2_XS', blockValues: 256, blockBytes: 74 },
  { id: 18, name: 'IQ3_XXS', blockValues: 256, blockBytes: 98 },
  { id: 19, name: 'IQ1_S', blockValues: 256, blockBytes: 50 },
  { id: 20, name: 'IQ4_NL', blockValues: 32, blockBytes: 18 },
  { id: 21, name: 'IQ3_S', blockValues: 256, blockBytes: 110 },
  { id: 22, name: 'IQ2_S', blockValues: 256, blockBytes: 82 },
  { id: 23, name: 'IQ4_XS', blockValues: 256, blockBytes: 136 },
  { id: 24, name: 'I8', blockValues: 1, blockBytes: 1 },
  { id: 25, name: 'I16', blockValues: 1, blockBytes: 2 },
  { id: 26, name: 'I32', blockValues: 1, blockBytes: 4 },
  { id: 27, name: 'I64', blockValues: 1, blockBytes: 8 },
  { id: 28, name: 'F64', blockValues: 1, blockBytes: 8 },
  { id: 29, name: 'IQ1_M', blockValues: 256, blockBytes: 56 },
  { id: 30, name: 'BF16', blockValues: 1, blockBytes: 2, native: whole('bf16') },
  { id: 34, name: 'TQ1_0', blockValues: 256, blockBytes: 54 },
  { id: 35, name: 'TQ2_0', blockValues: 256, blockBytes: 66 },
  { id: 39, name: 'MXFP4', blockValues: 32, blockBytes: 17 },
]

/** Tensor types by their number in the file. */
export const ggmlTypes: ReadonlyMap<number, GgmlType> = new Map(types.map((type) => [type.id, type]))
