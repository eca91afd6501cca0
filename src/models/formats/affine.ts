// Affine formats, with half-precision scales per block of a row: int4 (w = code·scale + offset; exactly Q4_1),
// int4sym (w = (code − 8)·scale; exactly Q4_0) and int8 (w = code·scale; exactly Q8_0).
import { halfTable, toHalf } from '../float16.js'
import { bytesOf, type Packer, type PartSink, ROUND, viewU16, type WeightFormat } from './format.js'

/** Scale and offset of one block, as half-precision patterns. */
interface Grid {
  scale: number
  offset: number
}

interface AffineOptions {
  name: string
  /** Smallest and largest code; codes are stored minus `bias`. */
  minCode: number
  maxCode: number
  bits: 4 | 8
  hasOffset: boolean
  /** Constant added to a code before the scale when there is no offset part. */
  zeroPoint: number
  grid(values: Float32Array, from: number, to: number, into: Grid): void
}

/** Full range of the block: smallest value at code 0, largest at 15. */
function asymmetricGrid(values: Float32Array, from: number, to: number, into: Grid): void {
  let low = Infinity
  let high = -Infinity
  for (let i = from; i < to; i++) {
    const value = values[i]!
    if (value < low) low = value
    if (value > high) high = value
  }
  into.scale = toHalf((high - low) / 15)
  into.offset = toHalf(low)
}

/** The value of largest magnitude, the first one of several, becomes the code −8 exactly. */
export function signedMaxScale(values: Float32Array, from: number, to: number): number {
  let largest = 0
  for (let i = from; i < to; i++) if (Math.abs(values[i]!) > Math.abs(largest)) largest = values[i]!
  return largest / -8
}

function signedMaxGrid(values: Float32Array, from: number, to: number, into: Grid): void {
  into.scale = toHalf(signedMaxScale(values, from, to))
}

function absmaxGrid(values: Float32Array, from: number, to: number, into: Grid): void {
  let absmax = 0
  for (let i = from; i < to; i++) absmax = Math.max(absmax, Math.abs(values[i]!))
  into.scale = toHalf(absmax / 127)
}

function defineAffine(options: AffineOptions): WeightFormat {
  const { name, bits, hasOffset, zeroPoint } = options
  return {
    name,
    blocks: [32, 64],
    columnsMultiple: (block) => block,
    createPacker: (_rows, columns, block, write) => packAffine(options, columns, block, write),
    unpack(parts, columns, block, from, to) {
      const half = halfTable()
      const codes = parts[0]!
      const scales = viewU16(parts[1]!)
      const offsets = hasOffset ? viewU16(parts[2]!) : null
      const values = new Float32Array((to - from) * columns)
      const first = from * columns
      for (let b = first / block, at = 0; at < values.length; b++) {
        const scale = half[scales[b]!]!
        for (let i = 0; i < block; i++, at++) {
          const index = first + at
          const stored = bits === 4 ? (codes[index >> 1]! >> ((index & 1) << 2)) & 15 : (codes[index]! << 24) >> 24
          values[at] = offsets ? stored * scale + half[offsets[b]!]! : (stored - zeroPoint) * scale
        }
      }
      return values
    },
  }
}

/** Nearest code of each value on the grid with the stored scale: quotients in float64, ties to even. */
function packAffine(options: AffineOptions, columns: number, block: number, write: PartSink): Packer {
  const { bits, hasOffset, zeroPoint } = options
  const half = halfTable()
  const stored = new Int32Array(block)
  const grid: Grid = { scale: 0, offset: 0 }
  let sumOfSquares = 0
  let errorSquares = 0
  return {
    rows(values, firstRow) {
      const blocks = values.length / block
      const codes = new Uint8Array((values.length * bits) / 8)
      const scales = new Uint16Array(blocks)
      const offsets = new Uint16Array(hasOffset ? blocks : 0)
      for (let b = 0; b < blocks; b++) {
        const from = b * block
        options.grid(values, from, from + block, grid)
        const scale = half[grid.scale]!
        const offset = hasOffset ? half[grid.offset]! : -zeroPoint * scale
        if (!Number.isFinite(scale) || !Number.isFinite(offset)) {
          throw new Error(`row ${firstRow + Math.floor(from / columns)} has values too large for half-precision scales`)
        }
        scales[b] = grid.scale
        if (hasOffset) offsets[b] = grid.offset
        const difference = encodeBlock(values, from, block, scale, offset, options, stored)
        errorSquares += difference
        for (let i = 0; i < block; i++) {
          const at = from + i
          sumOfSquares += values[at]! * values[at]!
          if (bits === 4) codes[at >> 1]! |= stored[i]! << ((at & 1) << 2)
          else codes[at] = stored[i]!
        }
      }
      write(0, codes, (firstRow * columns * bits) / 8)
      write(1, bytesOf(scales), ((firstRow * columns) / block) * 2)
      if (hasOffset) write(2, bytesOf(offsets), ((firstRow * columns) / block) * 2)
    },
    finish: () => ({ sumOfSquares, errorSquares }),
  }
}

/**
 * Nearest codes of a block on the grid code·scale + offset; a block of scale 0 takes the code nearest to zero's.
 * @returns the sum of squared differences
 */
export function encodeBlock(
  values: Float32Array,
  from: number,
  count: number,
  scale: number,
  offset: number,
  range: { minCode: number; maxCode: number; zeroPoint: number },
  codes: Int32Array,
): number {
  const { minCode, maxCode } = range
  const inverse = scale === 0 ? 0 : 1 / scale
  let errorSquares = 0
  for (let i = 0; i < count; i++) {
    const value = values[from + i]!
    const nearest = scale === 0 ? range.zeroPoint : nearestInteger(value - offset, scale, inverse)
    const code = Math.max(minCode, Math.min(maxCode, nearest))
    codes[i] = code
    const difference = code * scale + offset - value
    errorSquares += difference * difference
  }
  return errorSquares
}

/** Rounded quotient in float64, ties to even; the product by the inverse decides unless it is close to a tie. */
function nearestInteger(value: number, scale: number, inverse: number): number {
  const product = value * inverse
  const rounded = product + ROUND - ROUND
  return Math.abs(Math.abs(product - rounded) - 0.5) < 1e-9 ? value / scale + ROUND - ROUND : rounded
}

export const int4 = defineAffine({
  name: 'int4',
  minCode: 0,
  maxCode: 15,
  bits: 4,
  hasOffset: true,
  zeroPoint: 0,
  grid: asymmetricGrid,
})

export const int8 = defineAffine({
  name: 'int8',
  minCode: -127,
  maxCode: 127,
  bits: 8,
  hasOffset: false,
  zeroPoint: 0,
  grid: absmaxGrid,
})

export const int4sym = defineAffine({
  name: 'int4sym',
  minCode: 0,
  maxCode: 15,
  bits: 4,
  hasOffset: false,
  zeroPoint: 8,
  grid: signedMaxGrid,
})
