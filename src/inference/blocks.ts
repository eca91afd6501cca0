// The pool of cache blocks as plain data: who holds which block, and which full blocks of a prompt can be found again.
// Paged attention and prefix sharing after arXiv 2309.06180; keys chain over the blocks before, so that one look-up
// proves a whole prefix.
import { createHash } from 'node:crypto'
import { CACHE_BLOCK } from '../compiler/ops/paged-attention.js'

/** Tokens of one block (design §3). */
export const blockTokens = CACHE_BLOCK

export interface BlockPool {
  readonly size: number
  /** Holders of each block; 0: free, or idle where it has a key. */
  readonly references: Int32Array
  /** Key of what a block holds; null: it cannot be found, and its only holder may write it. */
  readonly keys: (string | null)[]
  readonly byKey: Map<string, number>
  /** Blocks that hold nothing. */
  readonly free: number[]
  /** Blocks that nobody holds and that can still be found, least recently used first. */
  readonly idle: Set<number>
}

export function createBlockPool(size: number): BlockPool {
  return {
    size,
    references: new Int32Array(size),
    keys: new Array<string | null>(size).fill(null),
    byKey: new Map(),
    // Popped from the end: low numbers first.
    free: Array.from({ length: size }, (_, i) => size - 1 - i),
    idle: new Set(),
  }
}

/** Blocks that a sequence of so many tokens takes. */
export const blocksFor = (tokens: number): number => Math.ceil(tokens / blockTokens)

/** Blocks that can be allocated now; idle ones are given up for it. */
export const availableBlocks = (pool: BlockPool): number => pool.free.length + pool.idle.size

/**
 * A block that nobody else holds, with one reference; null: there is none.
 * @param after the block before it in its sequence: where its neighbour is free that one is taken, since neighbours are
 *   read as one stream
 */
export function allocateBlock(pool: BlockPool, after?: number): number | null {
  const neighbour = after === undefined ? -1 : pool.free.lastIndexOf(after + 1)
  let block = neighbour < 0 ? pool.free.pop() : pool.free.splice(neighbour, 1)[0]
  if (block === undefined) {
    const oldest = pool.idle.values().next()
    if (oldest.done) return null
    block = oldest.value
    pool.idle.delete(block)
    forgetKey(pool, block)
  }
  pool.references[block] = 1
  return block
}

export function retainBlock(pool: BlockPool, block: number): void {
  if (pool.references[block]! === 0 && !pool.idle.delete(block)) throw new Error(`block ${block} holds nothing`)
  pool.references[block]!++
}

export function releaseBlock(pool: BlockPool, block: number): void {
  if (pool.references[block]! <= 0) throw new Error(`block ${block} is released more often than it was taken`)
  if (--pool.references[block]! > 0) return
  if (pool.keys[block] === null) pool.free.push(block)
  else pool.idle.add(block)
}

/** Releases the blocks of a sequence, the last first: a tail is of no use without what is before it. */
export function releaseBlocks(pool: BlockPool, blocks: readonly number[]): void {
  for (let i = blocks.length - 1; i >= 0; i--) releaseBlock(pool, blocks[i]!)
}

/** Whether its one holder may write it: nobody else reads it, and nobody can find it. */
export const isWritable = (pool: BlockPool, block: number): boolean =>
  pool.references[block] === 1 && pool.keys[block] === null

/** Makes a full block findable; where another block of the same key is known, that one stays. */
export function registerBlock(pool: BlockPool, block: number, key: string): void {
  if (pool.keys[block] !== null || pool.byKey.has(key)) return
  pool.keys[block] = key
  pool.byKey.set(key, block)
}

/** The block of a key, held or idle; the caller retains it. */
export const findBlock = (pool: BlockPool, key: string): number | null => pool.byKey.get(key) ?? null

/** From now on the block cannot be found. */
export function forgetKey(pool: BlockPool, block: number): void {
  const key = pool.keys[block]
  if (key == null) return
  pool.keys[block] = null
  pool.byKey.delete(key)
  if (pool.idle.delete(block)) pool.free.push(block)
}

/**
 * Keys of the full blocks of a prompt, each a SHA-256 over its tokens and the key before it.
 * @param namespace what else the values depend on: the adapter and its version, and the role that computes them
 */
export function chainKeys(tokens: ArrayLike<number>, namespace: string): string[] {
  const ids = Int32Array.from(tokens)
  const keys: string[] = []
  let parent = createHash('sha256').update(namespace).digest()
  for (let at = 0; at + blockTokens <= ids.length; at += blockTokens) {
    const block = ids.subarray(at, at + blockTokens)
    parent = createHash('sha256')
      .update(parent)
      .update(new Uint8Array(block.buffer, block.byteOffset, block.byteLength))
      .digest()
    keys.push(parent.toString('base64'))
  }
  return keys
}
