// Mutated copies of files, by seed: flipped bits, truncation, extension, large numbers, repeated and removed pieces,
// exchanged words. What a reader does with them must be an error of its own or a sound result.

/** Numbers in [0, 1) by seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const LARGE = [0n, 1n, 0xffn, 0x7fffffffn, 0xffffffffn, 2n ** 53n, 2n ** 63n - 1n, 2n ** 64n - 1n]

/** One mutation of `bytes`, mostly in the first `headBytes`. `words` are exchanged for one another as text. */
export function mutate(bytes: Uint8Array, random: () => number, headBytes: number, words: string[] = []): Uint8Array {
  const at = (limit: number) => Math.floor(random() * limit)
  const place = () => at(random() < 0.9 ? Math.min(headBytes, bytes.length) : bytes.length)
  // Not `slice`: that of a Buffer shares its memory.
  const copy = new Uint8Array(bytes)
  const kinds: (() => Uint8Array)[] = [
    () => {
      for (let n = 1 + at(8); n > 0; n--) copy[place()]! ^= 1 << at(8)
      return copy
    },
    () => {
      for (let n = 1 + at(4); n > 0; n--) copy[place()] = at(256)
      return copy
    },
    () => bytes.subarray(0, at(bytes.length)),
    () => bytes.subarray(0, place()),
    () => Buffer.concat([bytes, new Uint8Array(1 + at(100))]),
    () => {
      const number = Buffer.alloc(8)
      number.writeBigUInt64LE(LARGE[at(LARGE.length)]!)
      const width = random() < 0.5 ? 8 : 4
      copy.set(number.subarray(0, width), Math.min(place(), Math.max(0, bytes.length - width)))
      return copy
    },
    () => {
      const from = place()
      const to = Math.min(bytes.length, from + 1 + at(64))
      return Buffer.concat([bytes.subarray(0, to), bytes.subarray(from, to), bytes.subarray(to)])
    },
    () => {
      const from = place()
      return Buffer.concat([bytes.subarray(0, from), bytes.subarray(from + 1 + at(64))])
    },
    () => {
      if (words.length < 2) return copy.fill(at(256), place())
      const [from, to] = [words[at(words.length)]!, words[at(words.length)]!]
      const buffer = Buffer.from(bytes)
      const found: number[] = []
      for (let i = buffer.indexOf(from); i >= 0 && i < headBytes; i = buffer.indexOf(from, i + 1)) found.push(i)
      if (found.length === 0) return copy.fill(at(256), place(), place())
      const i = found[at(found.length)]!
      return Buffer.concat([buffer.subarray(0, i), Buffer.from(to), buffer.subarray(i + from.length)])
    },
  ]
  return kinds[at(kinds.length)]!()
}

/** As `mutate`, for a safetensors file: the length of the header follows, so that the change reaches the header's text. */
export function mutateSafetensors(bytes: Uint8Array, random: () => number, words: string[]): Uint8Array {
  const headerBytes = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true))
  if (random() < 0.3) return mutate(bytes, random, 8 + headerBytes, words)
  const header = mutate(bytes.subarray(8, 8 + headerBytes), random, headerBytes, words)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  return Buffer.concat([length, header, bytes.subarray(8 + headerBytes)])
}
