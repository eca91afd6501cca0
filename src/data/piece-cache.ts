// Tokens of the pieces of text seen lately: a two-way set-associative cache in flat arrays. Allocates nothing after construction,
// so that a long run leaves no garbage in the old generation (a Map of strings made its memory creep up by half).

const numSets = 1 << 14
const numEntries = numSets * 2
/** Longer pieces, and those of more tokens, are rare and merged again each time. */
const maxPieceLength = 24
const maxPieceTokens = 8

export class PieceCache {
  readonly #hashes = new Int32Array(numEntries)
  readonly #lengths = new Uint8Array(numEntries) // 0: empty
  readonly #units = new Uint16Array(numEntries * maxPieceLength)
  readonly #counts = new Uint8Array(numEntries)
  /** The way of each set that was used last. */
  readonly #recent = new Uint8Array(numSets)
  /** Token i of entry e is at e · stride + i: its id, its first byte in the piece and the byte after its last. */
  readonly stride = maxPieceTokens
  readonly ids = new Int32Array(numEntries * maxPieceTokens)
  readonly starts = new Uint8Array(numEntries * maxPieceTokens)
  readonly ends = new Uint8Array(numEntries * maxPieceTokens)

  #hash(piece: string): number {
    let hash = 0x811c9dc5 // FNV-1a over UTF-16 units, then a mix so that the low bits are good
    for (let i = 0; i < piece.length; i++) hash = Math.imul(hash ^ piece.charCodeAt(i), 0x01000193)
    return hash ^ (hash >>> 15)
  }

  #holds(entry: number, hash: number, piece: string): boolean {
    if (this.#hashes[entry] !== hash || this.#lengths[entry] !== piece.length) return false
    const at = entry * maxPieceLength
    for (let i = 0; i < piece.length; i++) if (this.#units[at + i] !== piece.charCodeAt(i)) return false
    return true
  }

  /** The entry of a piece, or −1. */
  find(piece: string): number {
    if (piece.length > maxPieceLength || piece.length === 0) return -1
    const hash = this.#hash(piece)
    const set = hash & (numSets - 1)
    for (let way = 0; way < 2; way++) {
      const entry = set * 2 + way
      if (this.#holds(entry, hash, piece)) {
        this.#recent[set] = way
        return entry
      }
    }
    return -1
  }

  countOf(entry: number): number {
    return this.#counts[entry]!
  }

  /** Keeps the tokens of a piece, triples of (id, first byte, byte after the last), where they fit. */
  store(piece: string, triples: readonly number[]): void {
    const count = triples.length / 3
    if (piece.length > maxPieceLength || piece.length === 0 || count > maxPieceTokens) return
    const hash = this.#hash(piece)
    const set = hash & (numSets - 1)
    const way = this.#recent[set]! ^ 1
    const entry = set * 2 + way
    this.#recent[set] = way
    this.#hashes[entry] = hash
    this.#lengths[entry] = piece.length
    this.#counts[entry] = count
    for (let i = 0; i < piece.length; i++) this.#units[entry * maxPieceLength + i] = piece.charCodeAt(i)
    for (let i = 0; i < count; i++) {
      const at = entry * maxPieceTokens + i
      this.ids[at] = triples[3 * i]!
      this.starts[at] = triples[3 * i + 1]!
      this.ends[at] = triples[3 * i + 2]!
    }
  }
}
