// Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// A draw is a pure function of (seed, stream, counter), so resuming is a matter of saving a counter.

const multiplier0 = 0xd2511f53 // the four constants of Philox 4x32, table 2 of the paper
const multiplier1 = 0xcd9e8d57
const weyl0 = 0x9e3779b9
const weyl1 = 0xbb67ae85

/** High 32 bits of the product of two unsigned 32-bit integers. */
function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff
  const aHigh = a >>> 16
  const bLow = b & 0xffff
  const bHigh = b >>> 16
  const low = aLow * bLow
  const middle1 = aHigh * bLow + (low >>> 16) // below 2^32 + 2^16: exact in a double
  const middle2 = aLow * bHigh + (middle1 % 0x10000)
  return (aHigh * bHigh + Math.floor(middle1 / 0x10000) + Math.floor(middle2 / 0x10000)) >>> 0
}

/** One block of Philox 4x32-10: four counter words and two key words in, four random words out (into `out`). */
export function philox(
  c0: number,
  c1: number,
  c2: number,
  c3: number,
  key0: number,
  key1: number,
  out: Uint32Array,
): void {
  let k0 = key0
  let k1 = key1
  for (let round = 0; round < 10; round++) {
    const high0 = multiplyHigh(multiplier0, c0)
    const low0 = Math.imul(multiplier0, c0) >>> 0
    const high1 = multiplyHigh(multiplier1, c2)
    const low1 = Math.imul(multiplier1, c2) >>> 0
    c0 = (high1 ^ c1 ^ k0) >>> 0
    c2 = (high0 ^ c3 ^ k1) >>> 0
    c1 = low1
    c3 = low0
    k0 = (k0 + weyl0) >>> 0
    k1 = (k1 + weyl1) >>> 0
  }
  out[0] = c0
  out[1] = c1
  out[2] = c2
  out[3] = c3
}

/** FNV-1a over UTF-16 units: turns the name of a stream into a counter word. */
function hashName(name: string): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193) >>> 0
  return hash
}

/**
 * A sequence of random numbers named by a seed, a stream name and an index (an epoch, a step, a row ...). `position` counts the
 * 32-bit words drawn; setting it moves to any place of the sequence.
 */
export class CounterRandom {
  position = 0
  readonly #block = new Uint32Array(4)
  #blockIndex = -1
  readonly #key0: number
  readonly #key1: number
  readonly #stream: number
  readonly #index: number

  constructor(seed: number, stream = '', index = 0) {
    if (!Number.isSafeInteger(seed) || seed < 0) throw new Error(`seed must be a non-negative integer, not ${seed}`)
    this.#key0 = seed >>> 0
    this.#key1 = Math.floor(seed / 2 ** 32) >>> 0
    this.#stream = hashName(stream)
    this.#index = index >>> 0
  }

  /** Uniform over [0, 2^32). */
  nextUint32(): number {
    const block = Math.floor(this.position / 4)
    if (block !== this.#blockIndex) {
      const high = Math.floor(block / 2 ** 32) >>> 0
      philox(block >>> 0, high, this.#index, this.#stream, this.#key0, this.#key1, this.#block)
      this.#blockIndex = block
    }
    return this.#block[this.position++ % 4]!
  }

  /** Uniform over [0, 1), 53 bits. */
  nextFloat(): number {
    const high = this.nextUint32() >>> 5
    return (high * 2 ** 26 + (this.nextUint32() >>> 6)) / 2 ** 53
  }

  /** Uniform over the integers [0, limit), without modulo bias. */
  nextInt(limit: number): number {
    const bound = 2 ** 32 - (2 ** 32 % limit)
    for (;;) {
      const value = this.nextUint32()
      if (value < bound) return value % limit
    }
  }

  /** Standard normal (Box–Muller; two uniforms a draw, the second output is not kept so that `position` says everything). */
  nextNormal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.nextFloat()))
    return radius * Math.cos(2 * Math.PI * this.nextFloat())
  }

  /** Fisher–Yates, in place. */
  shuffle<T extends unknown[] | Uint32Array | Int32Array>(items: T): T {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.nextInt(i + 1)
      const swap = items[i]
      items[i] = items[j]
      items[j] = swap
    }
    return items
  }
}

/** A random order of 0 … length − 1. */
export function permutation(length: number, seed: number, stream: string, index = 0): Uint32Array {
  const order = new Uint32Array(length)
  for (let i = 0; i < length; i++) order[i] = i
  return new CounterRandom(seed, stream, index).shuffle(order)
}
