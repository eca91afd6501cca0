// The pool of cache blocks: references, what can be found again, and in which order it is given up.
import { expect, it } from 'vitest'
import {
  allocateBlock,
  availableBlocks,
  blocksFor,
  chainKeys,
  createBlockPool,
  findBlock,
  forgetKey,
  isWritable,
  registerBlock,
  releaseBlock,
  releaseBlocks,
  retainBlock,
} from '../../src/inference/blocks.js'

const range = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i)

it('counts holders and refuses what nobody holds', () => {
  const pool = createBlockPool(2)
  const block = allocateBlock(pool)!
  retainBlock(pool, block)
  expect(isWritable(pool, block)).toBe(false)
  releaseBlock(pool, block)
  expect(isWritable(pool, block)).toBe(true)
  releaseBlock(pool, block)
  expect(availableBlocks(pool)).toBe(2)
  expect(() => releaseBlock(pool, block)).toThrow(/released more often/)
  expect(() => retainBlock(pool, block)).toThrow(/holds nothing/)
})

it('gives null when every block is held', () => {
  const pool = createBlockPool(2)
  expect([allocateBlock(pool), allocateBlock(pool)].sort()).toEqual([0, 1])
  expect(allocateBlock(pool)).toBeNull()
})

it('takes the neighbour of the block before where it is free', () => {
  const pool = createBlockPool(6)
  const blocks = range(6).map(() => allocateBlock(pool)!)
  expect(blocks).toEqual(range(6))
  for (const block of [4, 1, 2, 5]) releaseBlock(pool, block)
  expect(allocateBlock(pool, 0)).toBe(1)
  expect(allocateBlock(pool, 1)).toBe(2)
  expect([allocateBlock(pool, 2), allocateBlock(pool, 5)].sort()).toEqual([4, 5])
  expect(allocateBlock(pool, 4)).toBeNull()
})

it('keeps released blocks findable and gives up the least recently used first, tails before heads', () => {
  const pool = createBlockPool(4)
  const first = [allocateBlock(pool)!, allocateBlock(pool)!]
  const second = [allocateBlock(pool)!, allocateBlock(pool)!]
  for (const [i, block] of first.entries()) registerBlock(pool, block, `first ${i}`)
  for (const [i, block] of second.entries()) registerBlock(pool, block, `second ${i}`)
  releaseBlocks(pool, first)
  releaseBlocks(pool, second)
  // Used again: now the most recent.
  retainBlock(pool, findBlock(pool, 'first 0')!)
  releaseBlock(pool, findBlock(pool, 'first 0')!)
  expect(range(4).map(() => allocateBlock(pool))).toEqual([first[1], second[1], second[0], first[0]])
  expect(pool.byKey.size).toBe(0)
})

it('does not let a block with a key be written', () => {
  const pool = createBlockPool(1)
  const block = allocateBlock(pool)!
  registerBlock(pool, block, 'key')
  expect(isWritable(pool, block)).toBe(false)
  forgetKey(pool, block)
  expect(isWritable(pool, block)).toBe(true)
  expect(findBlock(pool, 'key')).toBeNull()
})

it('keeps the first block of a key', () => {
  const pool = createBlockPool(2)
  const [a, b] = [allocateBlock(pool)!, allocateBlock(pool)!]
  registerBlock(pool, a, 'key')
  registerBlock(pool, b, 'key')
  expect(findBlock(pool, 'key')).toBe(a)
  expect(isWritable(pool, b)).toBe(true)
})

it('chains keys: a block is found only behind the same tokens, in the same namespace', () => {
  const prompt = range(100)
  const keys = chainKeys(prompt, 'base')
  expect(keys).toHaveLength(3)
  expect(chainKeys(prompt.slice(0, 64), 'base')).toEqual(keys.slice(0, 2))
  const other = chainKeys([...prompt.slice(0, 32), 7, ...prompt.slice(33)], 'base')
  expect(other[0]).toBe(keys[0])
  expect(other[1]).not.toBe(keys[1])
  // The last block has the same tokens, behind others.
  expect(other[2]).not.toBe(keys[2])
  expect(chainKeys(prompt, 'adapter')[0]).not.toBe(keys[0])
  expect(blocksFor(0)).toBe(0)
  expect(blocksFor(33)).toBe(2)
})
