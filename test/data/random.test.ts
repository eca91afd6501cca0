import { expect, it } from 'vitest'
import { CounterRandom, permutation, philox } from '../../src/data/random.js'

it('gives the known answers of Philox 4x32-10', () => {
  // Random123, kat_vectors: counter, key → output
  const cases: [number[], number[], number[]][] = [
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ]
  const out = new Uint32Array(4)
  for (const [[c0, c1, c2, c3], [k0, k1], expected] of cases) {
    philox(c0!, c1!, c2!, c3!, k0!, k1!, out)
    expect([...out]).toEqual(expected)
  }
})

it('continues from a position', () => {
  const first = new CounterRandom(7, 'stream', 3)
  for (let i = 0; i < 11; i++) first.nextUint32()
  const expected = [first.nextFloat(), first.nextInt(10), first.nextNormal()]
  const second = new CounterRandom(7, 'stream', 3)
  second.position = 11
  expect([second.nextFloat(), second.nextInt(10), second.nextNormal()]).toEqual(expected)
  expect(new CounterRandom(7, 'other', 3).nextUint32()).not.toBe(new CounterRandom(7, 'stream', 3).nextUint32())
})

it('shuffles into permutations and draws normals of mean 0 and variance 1', () => {
  const order = permutation(1000, 1, 'test')
  expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: 1000 }, (_, i) => i))
  expect([...order]).not.toEqual([...permutation(1000, 1, 'test', 1)])
  const random = new CounterRandom(5, 'normal')
  const draws = Array.from({ length: 20_000 }, () => random.nextNormal())
  const mean = draws.reduce((sum, x) => sum + x, 0) / draws.length
  expect(Math.abs(mean)).toBeLessThan(0.03)
  expect(draws.reduce((sum, x) => sum + (x - mean) ** 2, 0) / draws.length).toBeCloseTo(1, 1)
})
