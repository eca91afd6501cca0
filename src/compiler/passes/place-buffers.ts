// Places the values that cross segments in one workspace: each lives from the step that makes it to the last that reads
// it, and the space is used again afterwards.
import { bytesOf, sizeWith, type Value } from '../graph.js'
import type { Segment } from '../segment.js'

export interface PlacedValue {
  readonly value: Value
  readonly byteOffset: number
  readonly byteLength: number
  readonly firstStep: number
  readonly lastStep: number
}

export interface Workspace {
  readonly values: ReadonlyMap<Value, PlacedValue>
  readonly byteLength: number
}

const ALIGNMENT = 64

/** `pinned` values live to the end of the run. */
export function placeBuffers(
  segments: readonly Segment[],
  dims: Readonly<Record<string, number>>,
  elsewhere: ReadonlySet<Value>,
): Workspace {
  const life = new Map<Value, { first: number; last: number }>()
  segments.forEach((segment, step) => {
    for (const y of segment.outputs) if (!elsewhere.has(y)) life.set(y, { first: step, last: step })
    for (const x of segment.inputs) {
      const seen = life.get(x)
      if (seen) seen.last = step
    }
  })
  const placed: PlacedValue[] = []
  const wanted = [...life].map(([value, { first, last }]) => ({
    value,
    first,
    last,
    size: Math.ceil((sizeWith(value.shape, dims) * bytesOf[value.dtype]) / ALIGNMENT) * ALIGNMENT,
  }))
  // Long-lived values first, then large ones: the classic greedy order for interval packing.
  wanted.sort((a, b) => b.last - b.first - (a.last - a.first) || b.size - a.size)
  for (const { value, first, last, size } of wanted) {
    const busy = placed
      .filter((p) => p.firstStep <= last && first <= p.lastStep)
      .sort((a, b) => a.byteOffset - b.byteOffset)
    let at = 0
    for (const p of busy) {
      if (p.byteOffset - at >= size) break
      at = Math.max(at, p.byteOffset + p.byteLength)
    }
    placed.push({ value, byteOffset: at, byteLength: size, firstStep: first, lastStep: last })
  }
  return {
    values: new Map(placed.map((p) => [p.value, p])),
    byteLength: placed.reduce((n, p) => Math.max(n, p.byteOffset + p.byteLength), 0),
  }
}

/** The most that values inside one segment take at once when its nodes run in order, in bytes. */
export function intermediateBytes(segment: Segment, dims: Readonly<Record<string, number>>): number {
  const lastUse = new Map<Value, number>()
  segment.nodes.forEach((node, i) => {
    for (const x of node.inputs) if (x) lastUse.set(x, i)
  })
  const outputs = new Set(segment.outputs)
  const size = (v: Value) => sizeWith(v.shape, dims) * bytesOf[v.dtype]
  let live = 0
  let peak = 0
  segment.nodes.forEach((node, i) => {
    for (const y of node.outputs) if (!outputs.has(y) && lastUse.has(y)) live += size(y)
    peak = Math.max(peak, live)
    for (const x of new Set(node.inputs))
      if (x?.producer && segment.nodes.includes(x.producer) && !outputs.has(x) && lastUse.get(x) === i) live -= size(x)
  })
  return peak
}
