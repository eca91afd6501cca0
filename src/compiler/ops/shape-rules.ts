// Shape rules shared by the op records.
import { type Dim, formatType, type Shape, type TensorType } from '../graph.js'

/** NumPy broadcasting over static and symbolic dimensions. */
export function broadcast(a: Shape, b: Shape, what: string): Shape {
  const rank = Math.max(a.length, b.length)
  return Array.from({ length: rank }, (_, i): Dim => {
    const x = a[i - rank + a.length] ?? 1
    const y = b[i - rank + b.length] ?? 1
    if (x === y || y === 1) return x
    if (x === 1) return y
    throw new Error(`${what}: shapes [${a.join(', ')}] and [${b.join(', ')}] do not broadcast`)
  })
}

export function need<T extends TensorType>(input: T | null | undefined, what: string): T {
  if (!input) throw new Error(`${what} is required`)
  return input
}

export function lastDim(type: TensorType): Dim {
  const dim = type.shape.at(-1)
  if (dim === undefined) throw new Error(`a scalar ${formatType(type)} has no last dimension`)
  return dim
}

export function staticDim(dim: Dim | undefined, what: string): number {
  if (typeof dim !== 'number') throw new Error(`${what}: ${dim ?? 'a missing dimension'} must be a known size`)
  return dim
}

export function normalizeAxis(axis: number, rank: number): number {
  return axis < 0 ? axis + rank : axis
}
