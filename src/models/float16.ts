// IEEE half precision and bfloat16 as 16-bit patterns, to and from float32, rounded to nearest, ties to even.

const word = new Uint32Array(1)
const float = new Float32Array(word.buffer)

function decodeHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const fraction = bits & 0x3ff
  if (exponent === 0) return sign * fraction * 2 ** -24
  if (exponent === 31) return fraction ? NaN : sign * Infinity
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}

let table: Float32Array | undefined

/** float32 of every half-precision pattern, built at first use (256 KB). */
export function halfTable(): Float32Array {
  if (!table) {
    table = new Float32Array(65536)
    for (let bits = 0; bits < 65536; bits++) table[bits] = decodeHalf(bits)
  }
  return table
}

/** The half-precision pattern nearest to `value`. */
export function toHalf(value: number): number {
  float[0] = value
  const bits = word[0]!
  const sign = (bits >>> 16) & 0x8000
  const magnitude = bits & 0x7fffffff
  if (magnitude > 0x7f800000) return sign | 0x7e00
  // 65520 and above round to infinity
  if (magnitude >= 0x477ff000) return sign | 0x7c00
  if (magnitude < 0x38800000) {
    // Subnormal halves count in units of 2^-24; scaling by a power of two is exact.
    float[0] = magnitude === 0 ? 0 : Math.abs(value) * 2 ** 24
    const units = float[0]!
    const floor = Math.floor(units)
    const rest = units - floor
    return sign | (floor + (rest > 0.5 || (rest === 0.5 && floor & 1) ? 1 : 0))
  }
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1)
  return sign | ((rounded - 0x38000000) >>> 13)
}

/** float32 values of half-precision patterns. */
export function halfToFloat32(bits: Uint16Array, into = new Float32Array(bits.length)): Float32Array {
  const values = halfTable()
  for (let i = 0; i < bits.length; i++) into[i] = values[bits[i]!]!
  return into
}

/** Half-precision patterns nearest to `values`. */
export function float32ToHalf(values: Float32Array, into = new Uint16Array(values.length)): Uint16Array {
  for (let i = 0; i < values.length; i++) into[i] = toHalf(values[i]!)
  return into
}

/** float32 values of bfloat16 patterns (exact). */
export function bfloat16ToFloat32(bits: Uint16Array, into = new Float32Array(bits.length)): Float32Array {
  const words = new Uint32Array(into.buffer, into.byteOffset, bits.length)
  for (let i = 0; i < bits.length; i++) words[i] = bits[i]! << 16
  return into
}

/** bfloat16 patterns nearest to `values`. */
export function float32ToBfloat16(values: Float32Array, into = new Uint16Array(values.length)): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length)
  for (let i = 0; i < words.length; i++) {
    const bits = words[i]!
    into[i] = (bits & 0x7fffffff) > 0x7f800000 ? (bits >>> 16) | 0x40 : (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16
  }
  return into
}
