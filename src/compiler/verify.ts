// Checks a cut graph before it is emitted: order, types, and that nothing reads memory after it was overwritten.
import type { Graph, Value } from './graph.js'
import { formatType } from './graph.js'
import type { Segment } from './segment.js'

/** @throws Error naming the segment and node */
export function verify(graph: Graph, segments: readonly Segment[]): void {
  const known = new Set<Value>(graph.leaves)
  const overwritten = new Map<Value, string>()
  for (const segment of segments) {
    for (const node of segment.nodes) {
      const where = `segment ${segment.name}, ${node.op.opType} (node ${node.id})`
      node.inputs.forEach((x, i) => {
        if (!x) return
        if (!known.has(x)) throw new Error(`${where}: input ${i} is read before it is computed`)
        const by = overwritten.get(x)
        if (by) throw new Error(`${where}: input ${i} reads memory that ${by} has overwritten`)
      })
      const types = node.op.infer(node.inputs, node.attributes)
      node.outputs.forEach((y, i) => {
        const type = types[i]
        if (!type || type.dtype !== y.dtype || type.shape.join() !== y.shape.join())
          throw new Error(`${where}: output ${i} is ${formatType(y)}, its op says ${type && formatType(type)}`)
        known.add(y)
      })
      for (const input of Object.values(node.op.mutates ?? {})) {
        const target = node.inputs[input]
        if (target) overwritten.set(target, where)
      }
    }
  }
}
