// Damaged copies of files, for tests of what reads them.
import type { CounterRandom } from '../../src/data/random.js'

/** Flips bits, overwrites numbers with extreme ones, cuts, repeats or removes stretches; mostly near the ends, where the heads are. */
export function mutate(original: Uint8Array, random: CounterRandom): Buffer {
  let bytes = Buffer.from(original)
  const extremes = [0, 1, 0x7f, 0x80, 0xff]
  for (let count = 1 + random.nextInt(4); count > 0; count--) {
    const size = bytes.length
    if (size < 16) break
    const nearEnd = random.nextInt(3)
    const range = Math.min(size, 700)
    const at =
      nearEnd === 0 ? random.nextInt(size) : nearEnd === 1 ? random.nextInt(range) : size - 1 - random.nextInt(range)
    const kind = random.nextInt(7)
    if (kind === 0) bytes[at]! ^= 1 << random.nextInt(8)
    else if (kind === 1) bytes[at] = random.nextInt(256)
    else if (kind === 2)
      bytes.fill(extremes[random.nextInt(extremes.length)]!, at, Math.min(size, at + 1 + random.nextInt(8)))
    else if (kind === 3) bytes = bytes.subarray(0, at)
    else if (kind === 4) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + random.nextInt(16))])
    else if (kind === 5)
      bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.max(0, at - random.nextInt(64)))])
    else if (at + 4 <= size) bytes.writeInt32LE(random.nextInt(2) === 0 ? 0x7fffffff : -1, at)
  }
  return bytes
}
