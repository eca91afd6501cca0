// Half precision and bfloat16: every pattern, and rounding to nearest, ties to even, between them.
import { describe, expect, it } from 'vitest'
import {
  bfloat16ToFloat32,
  float32ToBfloat16,
  float32ToHalf,
  halfTable,
  halfToFloat32,
  toHalf,
} from '../../src/models/float16.js'

const patterns = new Uint16Array(65536).map((_, i) => i)

describe('half precision', () => {
  it('decodes known values', () => {
    const known: [number, number][] = [
      [0x0000, 0],
      [0x0001, 2 ** -24],
      [0x03ff, 1023 * 2 ** -24],
      [0x0400, 2 ** -14],
      [0x3c00, 1],
      [0x3555, 0.333251953125],
      [0x7bff, 65504],
      [0xc000, -2],
      [0x7c00, Infinity],
      [0xfc00, -Infinity],
    ]
    for (const [bits, value] of known) expect(halfTable()[bits]).toBe(value)
  })

  it('gives every pattern back', () => {
    const again = float32ToHalf(halfToFloat32(patterns))
    for (let i = 0; i < 65536; i++) {
      const isNan = (i & 0x7c00) === 0x7c00 && (i & 0x3ff) !== 0
      if (isNan) expect(again[i]! & 0x7e00).toBe(0x7e00)
      else expect(again[i]).toBe(i)
    }
  })

  it('rounds to the nearest, ties to even', () => {
    for (let i = 0; i < 0x7bff; i++) {
      const low = halfTable()[i]!
      const high = halfTable()[i + 1]!
      const middle = (low + high) / 2
      const even = i % 2 === 0 ? i : i + 1
      expect(toHalf(middle)).toBe(even)
      expect(toHalf(middle - (high - low) / 1024)).toBe(i)
      expect(toHalf(middle + (high - low) / 1024)).toBe(i + 1)
      expect(toHalf(-middle)).toBe(even | 0x8000)
    }
    expect(toHalf(65519.99)).toBe(0x7bff)
    expect(toHalf(65520)).toBe(0x7c00)
    expect(toHalf(1e-10)).toBe(0)
    expect(toHalf(-1e-10)).toBe(0x8000)
  })
})

describe('bfloat16', () => {
  it('gives every pattern back', () => {
    const again = float32ToBfloat16(bfloat16ToFloat32(patterns))
    for (let i = 0; i < 65536; i++) {
      const isNan = (i & 0x7f80) === 0x7f80 && (i & 0x7f) !== 0
      if (isNan) expect(again[i]! & 0x7fc0).toBe(0x7fc0)
      else expect(again[i]).toBe(i)
    }
  })

  it('rounds to the nearest, ties to even', () => {
    const words = new Uint32Array([0x3f808000, 0x3f818000, 0x3f808001, 0x3f817fff, 0x7f7fffff])
    expect([...float32ToBfloat16(new Float32Array(words.buffer))]).toEqual([0x3f80, 0x3f82, 0x3f81, 0x3f81, 0x7f80])
  })
})
