// NF4 with double quantization (QLoRA, arXiv:2305.14314): the codes and scales of bitsandbytes exactly, with two codes per
// byte the other way round (even element in the low nibble), as in our other formats.
import { DYNAMIC_MAP, NF4_TABLE } from '../../compiler/ops/weight.js'
import { bytesOf, type Packer, type PartSink, viewF32, type WeightFormat } from './format.js'

/** Quantiles of a normal distribution (QLoRA appendix E). */
export const nf4Table = new Float32Array(NF4_TABLE)

/** bitsandbytes' signed 8-bit dynamic map, for the nested scales. */
export const dynamicMap = new Float32Array(DYNAMIC_MAP)

/** Values per nested scale. */
export const NESTED_BLOCK = 256

/** Midpoints of neighbouring values of an ascending table, exact in double. */
const midpointsOf = (table: Float32Array): Float64Array =>
  new Float64Array(table.length - 1).map((_, i) => (table[i]! + table[i + 1]!) / 2)

const BUCKETS = 1024

/** Number of midpoints strictly below x in [−1, 1]: the index of the nearest table value, ties to the lower one. */
export type NearestIndex = (x: number) => number

/** Builds the search: a bucket gives the first index that it can be, few steps remain. */
export function nearestIndexOf(table: Float32Array): NearestIndex {
  const midpoints = midpointsOf(table)
  const first = new Uint16Array(BUCKETS + 1)
  for (let bucket = 0, index = 0; bucket <= BUCKETS; bucket++) {
    // A little early: the bucket of an x is found in floating point.
    const edge = (bucket / BUCKETS) * 2 - 1 - 1e-9
    while (index < midpoints.length && midpoints[index]! < edge) index++
    first[bucket] = index
  }
  return (x) => {
    let index = first[Math.max(0, Math.min(BUCKETS, ((x + 1) * (BUCKETS / 2)) | 0))]!
    while (index < midpoints.length && midpoints[index]! < x) index++
    return index
  }
}

const nearestNf4 = nearestIndexOf(nf4Table)
const nearestDynamic = nearestIndexOf(dynamicMap)

export interface NestedScales {
  codes: Uint8Array
  nestedAbsmax: Float32Array
  offset: number
}

/** Double quantization of block scales: mean taken off, then 8-bit dynamic codes in blocks of 256. */
export function quantizeScales(absmax: Float32Array): NestedScales {
  let sum = 0
  for (let i = 0; i < absmax.length; i++) sum += absmax[i]!
  const offset = Math.fround(sum / absmax.length)
  const codes = new Uint8Array(absmax.length)
  const nestedAbsmax = new Float32Array(Math.ceil(absmax.length / NESTED_BLOCK))
  for (let n = 0; n < nestedAbsmax.length; n++) {
    const to = Math.min(absmax.length, (n + 1) * NESTED_BLOCK)
    let largest = 0
    for (let i = n * NESTED_BLOCK; i < to; i++) largest = Math.max(largest, Math.abs(Math.fround(absmax[i]! - offset)))
    nestedAbsmax[n] = largest
    const inverse = largest === 0 ? 0 : Math.fround(1 / largest)
    for (let i = n * NESTED_BLOCK; i < to; i++) {
      codes[i] = nearestDynamic(Math.fround(Math.fround(absmax[i]! - offset) * inverse))
    }
  }
  return { codes, nestedAbsmax, offset }
}

/** float32 block scales from their nested form. */
export function dequantizeScales(scales: NestedScales): Float32Array {
  return new Float32Array(scales.codes.length).map((_, i) =>
    Math.fround(
      Math.fround(dynamicMap[scales.codes[i]!]! * scales.nestedAbsmax[Math.floor(i / NESTED_BLOCK)]!) + scales.offset,
    ),
  )
}

/** NF4 codes of one block and its absmax. `codes` takes one code per byte. */
export function quantizeNf4Block(values: Float32Array, from: number, to: number, codes: Uint8Array): number {
  let absmax = 0
  for (let i = from; i < to; i++) absmax = Math.max(absmax, Math.abs(values[i]!))
  const inverse = absmax === 0 ? 0 : Math.fround(1 / absmax)
  for (let i = from; i < to; i++) codes[i - from] = nearestNf4(Math.fround(values[i]! * inverse))
  return absmax
}

function packNf4(rows: number, columns: number, block: number, write: PartSink): Packer {
  const blocks = (rows * columns) / block
  const absmax = new Float32Array(blocks)
  // The error needs the final scales: Σw², Σ w·t and Σ t² per block give it without the values (t the table value).
  const products = new Float64Array(blocks)
  const squares = new Float64Array(blocks)
  const unpacked = new Uint8Array(block)
  let sumOfSquares = 0
  return {
    rows(values, firstRow) {
      const codes = new Uint8Array(values.length / 2)
      const first = (firstRow * columns) / block
      for (let b = 0; b * block < values.length; b++) {
        const from = b * block
        absmax[first + b] = quantizeNf4Block(values, from, from + block, unpacked)
        let product = 0
        let square = 0
        for (let i = 0; i < block; i++) {
          const value = values[from + i]!
          const level = nf4Table[unpacked[i]!]!
          sumOfSquares += value * value
          product += value * level
          square += level * level
          codes[(from + i) >> 1]! |= unpacked[i]! << ((i & 1) << 2)
        }
        if (!Number.isFinite(absmax[first + b]!)) throw new Error(`row ${firstRow} holds a value that is not finite`)
        products[first + b] = product
        squares[first + b] = square
      }
      write(0, codes, (firstRow * columns) / 2)
    },
    finish() {
      const scales = quantizeScales(absmax)
      write(1, scales.codes, 0)
      write(2, bytesOf(scales.nestedAbsmax), 0)
      write(3, bytesOf(new Float32Array([scales.offset])), 0)
      const stored = dequantizeScales(scales)
      let errorSquares = sumOfSquares
      for (let b = 0; b < blocks; b++) errorSquares += stored[b]! * (stored[b]! * squares[b]! - 2 * products[b]!)
      return { sumOfSquares, errorSquares: Math.max(0, errorSquares) }
    },
  }
}

export const nf4: WeightFormat = {
  name: 'nf4',
  blocks: [64],
  columnsMultiple: (block) => block,
  createPacker: packNf4,
  unpack(parts, columns, block, from, to) {
    const [codes, absmaxCodes, nested, offset] = parts as [Uint8Array, Uint8Array, Uint8Array, Uint8Array]
    const nestedAbsmax = viewF32(nested)
    const offsetValue = viewF32(offset)[0]!
    const values = new Float32Array((to - from) * columns)
    const first = from * columns
    for (let b = first / block, at = 0; at < values.length; b++) {
      const level = Math.fround(dynamicMap[absmaxCodes[b]!]! * nestedAbsmax[Math.floor(b / NESTED_BLOCK)]!)
      const absmax = Math.fround(level + offsetValue)
      for (let i = 0; i < block; i++, at++) {
        const index = first + at
        values[at] = nf4Table[(codes[index >> 1]! >> ((index & 1) << 2)) & 15]! * absmax
      }
    }
    return values
  },
}
