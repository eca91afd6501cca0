// Packing of whole documents into packs of bounded length, best fit decreasing: each document goes into the fullest pack that
// still has room (Ding et al. 2024, "Fewer truncations improve language modeling", without splitting). Documents stay apart
// through cumulative lengths; nothing is padded.

/** Capacities that have open packs, as a bitmap, so that the smallest one that fits is found a word at a time. */
class CapacitySet {
  readonly #words: Int32Array

  constructor(capacity: number) {
    this.#words = new Int32Array((capacity >> 5) + 1)
  }

  add(value: number): void {
    this.#words[value >> 5]! |= 1 << (value & 31)
  }

  delete(value: number): void {
    this.#words[value >> 5]! &= ~(1 << (value & 31))
  }

  /** The smallest member that is at least `value`, or −1. */
  atLeast(value: number): number {
    let index = value >> 5
    let word = (this.#words[index] ?? 0) & (-1 << (value & 31))
    while (word === 0) {
      if (++index >= this.#words.length) return -1
      word = this.#words[index]!
    }
    return (index << 5) + 31 - Math.clz32(word & -word)
  }
}

/**
 * Packs of documents with at most `capacity` tokens each. `order` gives the documents; of equally long ones the earlier is placed
 * first, so a shuffled order gives other packs. A document longer than `capacity` is an error of the caller.
 */
export function packBestFit(order: ArrayLike<number>, lengths: Int32Array, capacity: number): number[][] {
  // Counting sort by falling length, stable.
  const starts = new Int32Array(capacity + 2)
  for (let i = 0; i < order.length; i++) {
    const length = lengths[order[i]!]!
    if (length > capacity) throw new Error(`document ${order[i]} has ${length} tokens and a pack holds ${capacity}`)
    starts[capacity - length + 1]!++
  }
  for (let i = 1; i < starts.length; i++) starts[i]! += starts[i - 1]!
  const sorted = new Uint32Array(order.length)
  for (let i = 0; i < order.length; i++) sorted[starts[capacity - lengths[order[i]!]!]!++] = order[i]!

  const packs: number[][] = []
  const open: number[][] = Array.from({ length: capacity + 1 }, () => []) // packs by the room that they have left
  const rooms = new CapacitySet(capacity)
  for (const document of sorted) {
    const length = lengths[document]!
    const room = rooms.atLeast(length)
    let pack: number
    if (room < 0) pack = packs.push([]) - 1
    else {
      pack = open[room]!.pop()!
      if (open[room]!.length === 0) rooms.delete(room)
    }
    packs[pack]!.push(document)
    const left = (room < 0 ? capacity : room) - length
    if (left > 0) {
      if (open[left]!.push(pack) === 1) rooms.add(left)
    }
  }
  return packs
}
