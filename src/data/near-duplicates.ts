// Near-duplicate texts by MinHash over word shingles with banded candidates (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of
// Massive Datasets", chapter 3). Deterministic: the hash functions are fixed.
import { philox } from './random.js'

const numHashes = 64
const shingleWords = 3

/** Rows of a band: 32 bands of 2 find pairs of similarity 0.3 with probability 0.95, 21 of 3 those of 0.5 with 0.94. */
const rowsPerBandFor = (threshold: number): number => (threshold < 0.5 ? 2 : 3)

export interface NearDuplicateOptions {
  /** Jaccard similarity of the shingle sets from which two texts count as the same. Default 0.5. */
  threshold?: number
}

function hashText(text: string): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  return (hash ^ (hash >>> 13)) >>> 0
}

/** Hashes of all runs of three words, letters and digits only, case ignored; of the whole text where it is shorter. */
function shingles(text: string): Set<number> {
  const words = text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []
  const found = new Set<number>()
  for (let i = 0; i + shingleWords <= words.length; i++) found.add(hashText(words.slice(i, i + shingleWords).join(' ')))
  if (found.size === 0) found.add(hashText(words.join(' ')))
  return found
}

function similarity(a: Set<number>, b: Set<number>): number {
  let common = 0
  for (const shingle of a) if (b.has(shingle)) common++
  return common / (a.size + b.size - common)
}

/** For each text the index of the first text of its group; texts joined by a chain of near-duplicates are one group. */
export function clusterNearDuplicates(
  texts: readonly string[],
  { threshold = 0.5 }: NearDuplicateOptions = {},
): Int32Array {
  const rowsPerBand = rowsPerBandFor(threshold)
  const multipliers = new Uint32Array(numHashes)
  const additions = new Uint32Array(numHashes)
  const block = new Uint32Array(4)
  for (let i = 0; i < numHashes; i++) {
    philox(i, 0, 0, 0, 0x6d696e, 0x68617368, block)
    multipliers[i] = block[0]! | 1
    additions[i] = block[1]!
  }
  const sets = texts.map(shingles)
  const parent = Int32Array.from(texts, (_, i) => i)
  const rootOf = (i: number): number => {
    while (parent[i] !== i) {
      parent[i] = parent[parent[i]!]!
      i = parent[i]!
    }
    return i
  }
  const signature = new Uint32Array(numHashes)
  const buckets = new Map<string, number[]>()
  for (const [i, set] of sets.entries()) {
    signature.fill(0xffffffff)
    for (const shingle of set) {
      for (let h = 0; h < numHashes; h++) {
        const mixed = Math.imul(shingle ^ additions[h]!, multipliers[h]!)
        const value = (mixed ^ (mixed >>> 15)) >>> 0
        if (value < signature[h]!) signature[h] = value
      }
    }
    for (let start = 0; start + rowsPerBand <= numHashes; start += rowsPerBand) {
      const key = `${start}:${signature.subarray(start, start + rowsPerBand).join()}`
      const bucket = buckets.get(key)
      if (!bucket) {
        buckets.set(key, [i])
        continue
      }
      for (const j of bucket) {
        const [low, high] = [rootOf(i), rootOf(j)].sort((a, b) => a - b) as [number, number]
        if (low !== high && similarity(set, sets[j]!) >= threshold) parent[high] = low
      }
      bucket.push(i)
    }
  }
  return Int32Array.from(texts, (_, i) => rootOf(i))
}

/** The first item of every group of near-duplicates, in order. */
export function removeNearDuplicates<T>(
  items: readonly T[],
  textOf: (item: T) => string,
  options: NearDuplicateOptions = {},
): T[] {
  const groups = clusterNearDuplicates(items.map(textOf), options)
  return items.filter((_, i) => groups[i] === i)
}
