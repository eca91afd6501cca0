// Embeddings of texts: the mean of the last hidden states of their tokens, scaled to length 1.
import { type InferenceSession, packSequences } from './session.js'

/** Sum [width] of the rows [from, to) of a matrix [N, width]. */
export function sumOfRows(rows: Float32Array, from: number, to: number, width: number): Float64Array {
  const sums = new Float64Array(width)
  for (let row = from; row < to; row++) for (let i = 0; i < width; i++) sums[i] = sums[i]! + rows[row * width + i]!
  return sums
}

/** One vector of `hiddenSize` per sequence. */
export async function embedSequences(
  session: InferenceSession,
  sequences: readonly ArrayLike<number>[],
  signal?: AbortSignal,
): Promise<Float32Array[]> {
  const { hiddenSize } = session.base.config
  const packed = packSequences(sequences)
  const hidden = await session.hidden(packed, signal) // [N, D]
  return sequences.map((_, d) => {
    const sums = sumOfRows(hidden, packed.cuSeqlens[d]!, packed.cuSeqlens[d + 1]!, hiddenSize)
    const length = Math.sqrt(sums.reduce((sum, x) => sum + x * x, 0))
    return Float32Array.from(sums, (x) => x / (length || 1))
  })
}
